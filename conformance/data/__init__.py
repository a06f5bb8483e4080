"""Data: preparation and fingerprint."""
