"""Training: the loop and its parts, in one process. `loop.py` is the page to read first."""
