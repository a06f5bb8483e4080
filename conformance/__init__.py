"""LLaMA2 pretraining conformance suite for AI accelerators, run through the real InternEvo."""

__version__ = "0.1.0"
