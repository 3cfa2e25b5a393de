"""A policy in use: a gRPC server of trained runs, and the way into a live one."""
