"""The Pareto front: arrays in, arrays out."""
