"""Planners: how a sequence model is searched for what to do."""
