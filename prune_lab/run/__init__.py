"""The life of one run: its configuration, stages, record and trackers."""
