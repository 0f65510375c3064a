"""Invariance attacks and their judge: alignments, neighbours, perturbations, human-labelled sets, preparation."""
