"""What is swept: search spaces as YAML files, read, checked and drawn from."""
