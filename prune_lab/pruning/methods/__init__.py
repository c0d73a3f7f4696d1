"""Pruning methods: each is one file here and one YAML in ``conf/method``."""
