"""Measurements made minutes before a run that costs days. They measure; conformance/checks/preflight judges."""
