"""Intervals, paired comparisons and corrections for many tests: pure functions."""
