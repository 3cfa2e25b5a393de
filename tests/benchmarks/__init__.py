"""Measurements, each `python -m tests.benchmarks.NAME`: CPU-seconds and wall, medians, versions
printed."""
