"""A generalist; see `gato.py`."""

from bigdm_ray.algorithms.gato.gato import Gato

ALGORITHM = Gato
