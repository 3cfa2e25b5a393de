"""Algorithms: one file is one algorithm, found by its name; nothing is listed here."""

from bigdm_ray.algorithms.base import (
    Algorithm,
    Batch,
    Columns,
    Loss,
    Policy,
    algorithms,
    find_algorithm,
)

__all__ = ["Algorithm", "Batch", "Columns", "Loss", "Policy", "algorithms", "find_algorithm"]
