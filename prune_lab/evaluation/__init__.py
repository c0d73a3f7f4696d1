"""Evaluations of a model, dense or pruned: perplexity, zero-shot tasks, size."""
