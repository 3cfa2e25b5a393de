"""The same loop with its parts on Ray: the only folder of the core that imports it.

Ray reads its settings when it is imported, so they are set here, where the user has not set them:
token authentication on, no usage statistics, actors without a GPU see none, no `uv run` around
workers, no log lines about errors of calls that nobody waits for any more.
"""

import os

for _name, _value in {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}.items():
    os.environ.setdefault(_name, _value)
