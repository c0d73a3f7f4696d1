"""Blocks with their calibration inputs: iterated, observed, written to and reported; nothing chooses weights here."""
