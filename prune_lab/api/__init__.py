"""Python: `prune_lab.prune`, `evaluate` and `shrink`, which are the command's runs with the command's settings."""
