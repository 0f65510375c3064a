"""Write sweeps to MLflow and show its page. The one place that touches MLflow's internals."""
