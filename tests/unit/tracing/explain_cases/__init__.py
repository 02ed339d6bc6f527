"""Errors as people make them, and what a right explanation says of each: one table for each family."""
