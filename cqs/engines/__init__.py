"""Engines run the tasks of a plan and pass their results on."""

from cqs.engines.engine import Accept, Engine, ExecutorEngine, LocalEngine, as_engine, concurrency

__all__ = ["Accept", "Engine", "ExecutorEngine", "LocalEngine", "as_engine", "concurrency"]
