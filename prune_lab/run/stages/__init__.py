"""The steps of a run; which of them run, and in what order, says ``stages`` in the configuration."""
