"""Experts: programs that do a task well, to be recorded and imitated. One file a source, found by
being there; `base.py` has what they share, `demonstrations.py` records them."""
