"""The command line: `cqs demo`, `run`, `plan`, `verify`, `quorum` and `doctor`."""

from cqs.cli.app import main

__all__ = ["main"]
