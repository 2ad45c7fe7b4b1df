"""Run: the executors of a Program."""
