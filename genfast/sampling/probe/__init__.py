"""Probe: what every number depends on, when it is ready, and what looks ahead."""
