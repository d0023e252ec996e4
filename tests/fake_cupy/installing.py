"""Putting the fake into `sys.modules`, and taking all traces of it away again."""

import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from fake_cupy.machine import Machine, _machines
from fake_cupy.memory import Allocators
from fake_cupy.modules import build
from fake_cupy.pinned import PinnedMemoryPool

_LIBRARIES = ("cupy", "cupyx", "cupy_backends", "array_api_compat.cupy")
_CACHES = ("array_api_compat.common", "cqs.backend", "cqs.kernels", "cqs.engines", "cqs.machine")


def install(monkeypatch: pytest.MonkeyPatch, n_devices: int = 2, memory: int = 1 << 30, eager: bool = False) -> Machine:
    """Make `import cupy` give the fake until the monkeypatch is undone; return the machine that it runs on.

    Parameters
    ----------
    n_devices, memory
        How many devices there are, and how many bytes of memory each has.
    eager
        Whether copies run at the first moment that is legal, and not at the last.
    """
    machine = Machine(n_devices, memory, eager)
    _machines.append(machine)
    machine.allocators, machine.pinned_pool = Allocators(), PinnedMemoryPool()
    machine.pinned_allocator = machine.pinned_pool.malloc
    machine.cublas_modes = {}
    monkeypatch.setitem(_Traces(machine), "traces", None)
    return machine


class _Traces(dict[str, Any]):
    """What an installation changed; monkeypatch deletes the item that it set here, and with it the changes."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine
        self._before = _take_out()
        sys.modules.update(build())
        _clear_caches()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        _take_out()
        sys.modules.update(self._before)
        if "array_api_compat.cupy" in self._before:
            sys.modules["array_api_compat"].cupy = self._before["array_api_compat.cupy"]  # type: ignore[attr-defined]
        _clear_caches()
        _machines.remove(self._machine)


def _take_out() -> dict[str, ModuleType]:
    """Remove CuPy, true or fake, and what array_api_compat made of it."""
    taken = {
        n: m for n, m in sys.modules.items() if n.startswith(tuple(f"{x}." for x in _LIBRARIES)) or n in _LIBRARIES
    }
    for name in taken:
        del sys.modules[name]
    compat = sys.modules.get("array_api_compat")
    if compat is not None and "cupy" in vars(compat):
        del compat.cupy
    return taken


def _clear_caches() -> None:
    """Forget what was remembered of CuPy: which classes are its arrays, whether it can be imported, its kernels."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_CACHES):
            for member in list(vars(module).values()):
                if callable(getattr(member, "cache_clear", None)):
                    member.cache_clear()


@pytest.fixture(params=[False, True], ids=["late", "eager"])
def fake_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with two fake GPUs, with copies as late as is legal and at once; races fail the test."""
    with monkeypatch.context() as patch:
        machine = install(patch, eager=request.param)
        yield machine
        gc.collect()
        machine.check()


@pytest.fixture
def cupy(fake_gpu: Machine) -> ModuleType:
    """The fake CuPy."""
    return sys.modules["cupy"]
