"""What each op of PyTorch does to values on grids: one rule per op, registered in `lower.RULES`."""
