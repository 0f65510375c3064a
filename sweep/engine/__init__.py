"""Run a plan on Ray: driver, callbacks, workers, packs, nodes. The one place that touches Ray's internals."""
