"""Named, ordered forward hooks on any module."""
