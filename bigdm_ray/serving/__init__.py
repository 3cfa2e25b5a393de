"""A policy in use: a gRPC server of trained runs, and the way into a live one."""

import os

# gRPC writes its own lines to stderr when it is imported so; what fails is told in one sentence
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
