"""Named dimensions, checked during a forward."""
