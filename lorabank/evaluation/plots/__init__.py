"""Drawings of what was measured: PNG, SVG and elements of a page."""
