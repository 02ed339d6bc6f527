"""Render a trace as text, SVG and HTML."""
