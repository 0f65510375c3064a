"""Sensitivity attacks: norms, FGSM, PGD, APGD, Square, their worst case, and whether an attack means something."""
