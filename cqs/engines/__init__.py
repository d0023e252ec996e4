"""Engines run the tasks of a plan and hand back their results, in the plan's order."""

from cqs.engines.engine import Engine, ExecutorEngine, LocalEngine, as_engine

__all__ = ["Engine", "ExecutorEngine", "LocalEngine", "as_engine"]
