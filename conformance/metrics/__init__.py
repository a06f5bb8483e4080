"""Figures from logs: pure functions on frames."""
