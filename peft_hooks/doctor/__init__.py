"""Checks of a whole model and the report that shows them."""
