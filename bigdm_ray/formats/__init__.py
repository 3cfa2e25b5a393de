"""Datasets, and how those of others come in and go out: one file a format."""
