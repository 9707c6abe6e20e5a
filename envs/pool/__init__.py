"""Suites whose simulators EnvPool steps as one batch."""
