"""Measurements before a run: devices, host, collectives, kernels."""
