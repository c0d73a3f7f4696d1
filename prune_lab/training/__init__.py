"""Training: the loop, its losses, and methods that prune while it runs."""
