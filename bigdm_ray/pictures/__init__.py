"""Pictures of runs: one file is one picture, found by being there (`base.pictures`); nothing is
listed here."""
