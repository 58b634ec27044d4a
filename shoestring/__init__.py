"""Shoestring: trains, aligns, evaluates and batch-runs models on the hardware you have."""

__version__ = "0.1.0"
