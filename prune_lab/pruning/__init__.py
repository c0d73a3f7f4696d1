"""The subject: how much goes and where, masks, calibration, solvers, methods and allocations; nothing of runs."""
