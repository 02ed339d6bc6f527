"""Saving and loading models with prompts."""
