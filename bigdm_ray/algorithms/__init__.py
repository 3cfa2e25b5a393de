"""Algorithms: one file is one algorithm, found by its name; nothing is listed here."""

from bigdm_ray.algorithms.base import Algorithm, Columns, Policy, algorithms, find_algorithm
from bigdm_ray.algorithms.learned import Batch, Loss

__all__ = ["Algorithm", "Batch", "Columns", "Loss", "Policy", "algorithms", "find_algorithm"]
