"""From an exception in a forward to its cause."""
