"""Allocations: how the sparsity of a target is shared out over the layers of a model."""
