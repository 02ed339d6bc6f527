"""Saves, loads, merges and exports models with prompts."""
