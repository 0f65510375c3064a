"""Files that survive crashes: atomic writes, locks, checkpoints, the tensor cache."""
