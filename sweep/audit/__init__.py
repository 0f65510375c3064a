"""Judge finalists again: fresh seeds, the test split, the whole set of attacks."""
