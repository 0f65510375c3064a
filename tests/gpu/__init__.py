"""What one command runs on a machine with a GPU: correctness against the CPU, then speed, the most valuable first."""
