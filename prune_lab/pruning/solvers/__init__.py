"""Solvers of one layer's pruning problem: tensors in, tensors out, float32, no model and no configuration."""
