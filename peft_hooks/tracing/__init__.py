"""Shapes of every module in a forward, and why one failed."""
