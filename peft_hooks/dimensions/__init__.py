"""Named dimensions, checked in a forward."""
