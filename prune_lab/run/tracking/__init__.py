"""Where a run's numbers go while it runs: a file in its folder, and Weights & Biases beside it."""
