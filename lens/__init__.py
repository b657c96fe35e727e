"""LENS: reinforcement learning that learns from negative groups."""

__version__ = "0.2.0"
