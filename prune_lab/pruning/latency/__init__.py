"""Seconds as a budget: a table of what blocks take at each width, measured on this machine, and counts that fit."""
