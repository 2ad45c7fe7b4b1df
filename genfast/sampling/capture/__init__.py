"""Capture: what a module computes from its input, as a recording."""
