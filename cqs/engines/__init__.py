"""Engines run the tasks of a plan and pass their results on."""

from cqs.engines.devices import DeviceEngine
from cqs.engines.engine import Engine, ExecutorEngine, LocalEngine, as_engine, concurrency
from cqs.engines.turns import Accept

__all__ = ["Accept", "DeviceEngine", "Engine", "ExecutorEngine", "LocalEngine", "as_engine", "concurrency"]
