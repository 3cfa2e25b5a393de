"""Published tables and figures as grids of runs: one file holds some tables, which are found by
being there."""
