"""Plan: when everything runs, what is kept, and the instructions of a Program."""
