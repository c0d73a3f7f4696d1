"""Hyper-parameter search: a study that is kept on disk, asked for trials and told their results."""
