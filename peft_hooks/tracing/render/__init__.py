"""A trace as text, SVG and HTML."""
