"""InternEvo: which one runs, with what configuration and patches, and what its log says."""
