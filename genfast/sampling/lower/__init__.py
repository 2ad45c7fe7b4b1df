"""Lower: a recording becomes a graph of values on grids, by one rule per op."""
