"""Checks of a whole model, and their report."""
