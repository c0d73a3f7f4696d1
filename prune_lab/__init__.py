"""prune_lab: prune language models, measure what is left, and say how every number came about."""

__version__ = "0.1.0"
