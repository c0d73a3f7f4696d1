"""What knows nothing of pruning: files, locks, digests, progress bars, devices."""
