"""The signed report: keys, envelopes, statements and pages."""
