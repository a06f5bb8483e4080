"""Turns the suite's pytest plugin on."""

pytest_plugins = ["conformance.plugin"]
