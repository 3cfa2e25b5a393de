"""The same loop with its parts on Ray: the only folder of the core that imports it.

Ray reads its settings when it is imported, so they are set here, where the user has not set them: token
authentication on, no usage statistics, actors without a GPU see none, no `uv run` around workers.
"""

import os

for _name, _value in {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}.items():
    os.environ.setdefault(_name, _value)
