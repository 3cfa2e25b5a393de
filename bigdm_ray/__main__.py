"""`python -m bigdm_ray` is the console script `bigdm`."""

from bigdm_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
