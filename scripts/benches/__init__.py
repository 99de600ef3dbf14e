"""Benches: each gives figures with targets, and the baseline of the same run."""
