"""What the doors share: one sentence and an exit code for a user's mistake, the same for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bigdm_ray.errors import UserError


def door(main: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a door's main; print `error: ...` for a UserError and return its exit code."""
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
