"""How leaves of observations and actions become tokens."""
