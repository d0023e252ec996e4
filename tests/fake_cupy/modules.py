"""The modules that `import cupy` finds."""

from types import ModuleType
from typing import Any

import numpy as np

from fake_cupy import array, cublas, devices, functions, launches, memory, names, pinned, runtime, streams
from fake_cupy.machine import now


class Function:
    """A function of NumPy for arrays of the device; a ufunc keeps its methods."""

    def __init__(self, name: str, function: Any) -> None:
        self.__name__, self._function = name, function
        self._run = functions.view if name in names.VIEWS else functions.call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.__name__ in names.ABOUT:
            return self._function(*functions._unwrap(args, []), **kwargs)
        return self._run(self.__name__, self._function, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        part = getattr(object.__getattribute__(self, "_function"), name)
        if not callable(part):
            return part
        written = (0,) if name == "at" else ()
        return lambda *args, **kwargs: functions.call(f"{self.__name__}.{name}", part, args, kwargs, written)

    def __repr__(self) -> str:
        return f"<fake cupy.{self.__name__}>"


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name, "A part of the fake CuPy.")
    module.__path__ = []  # a package, so that its parts can be imported
    module.__dict__.update(members)
    return module


def _from_numpy(module: ModuleType, text: str, of: Any) -> None:
    for name in text.split():
        member = getattr(of, name)
        is_plain = isinstance(member, type) or not callable(member)
        setattr(module, name, member if is_plain else Function(name, member))


def _public(module: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("__")}


def _some(module: Any, members: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in members.split()}


def build() -> dict[str, ModuleType]:
    """Return the modules by their names, for the machine that is installed."""
    allocators = now().allocators
    made = {
        "cupy.cuda.runtime": _module("cupy.cuda.runtime", **_public(runtime)),
        "cupy.cuda.cublas": _module("cupy.cuda.cublas", **_public(cublas)),
        "cupy.cuda.nvrtc": _module("cupy.cuda.nvrtc", getVersion=lambda: (13, 0)),
        "cupy.cuda.driver": _module("cupy.cuda.driver", get_build_version=lambda: 13000),
        "cupy.cuda.memory": _module(
            "cupy.cuda.memory",
            **{
                n: getattr(memory, n)
                for n in ["OutOfMemoryError", "BaseMemory", "Memory", "PooledMemory", "UnownedMemory"]
            },
            **_some(memory, "MemoryPointer MemoryPool alloc _malloc"),
            set_allocator=allocators.set,
            get_allocator=allocators.get,
        ),
        "cupy.cuda.pinned_memory": _module("cupy.cuda.pinned_memory", **_public(pinned)),
        "cupy.cuda.device": _module(
            "cupy.cuda.device",
            Device=devices.Device,
            get_cublas_handle=lambda: devices.Device().cublas_handle,
            get_device_id=lambda: now().device,
            get_compute_capability=lambda: devices.Device().compute_capability,
        ),
        "cupy.cuda.stream": _module("cupy.cuda.stream", **_public(streams)),
        "cupy.linalg": _module("cupy.linalg"),
        "cupy.fft": _module("cupy.fft"),
        "cupy.cublas": _module("cupy.cublas"),
        "cupyx": _module("cupyx", empty_pinned=pinned.empty_pinned, zeros_pinned=pinned.zeros_pinned),
    }
    _from_numpy(made["cupy.linalg"], names.LINALG, np.linalg)
    _from_numpy(made["cupy.fft"], names.FFT, np.fft)
    made["cupy.cuda"] = _cuda(made)
    made["cupy"] = _cupy(made)
    return made


def _cuda(made: dict[str, ModuleType]) -> ModuleType:
    parts = {name.rpartition(".")[2]: module for name, module in made.items() if name.startswith("cupy.cuda.")}
    device, pools = made["cupy.cuda.device"], made["cupy.cuda.memory"]
    return _module(
        "cupy.cuda",
        **parts,
        **{
            n: getattr(pools, n)
            for n in ["Memory", "BaseMemory", "UnownedMemory", "MemoryPointer", "MemoryPool", "alloc"]
        },
        **_some(pools, "set_allocator get_allocator"),
        **_some(pinned, "alloc_pinned_memory set_pinned_memory_allocator"),
        **_some(pinned, "PinnedMemory PinnedMemoryPointer PinnedMemoryPool"),
        **_some(streams, "Stream Event get_current_stream get_elapsed_time"),
        Device=devices.Device,
        get_device_id=device.get_device_id,
        get_cublas_handle=device.get_cublas_handle,
        using_allocator=now().allocators.using,
        is_available=lambda: now().n_devices > 0,
        get_local_runtime_version=lambda: 13000,
    )


def _cupy(made: dict[str, ModuleType]) -> ModuleType:
    module = _module(
        "cupy",
        __version__="14.2.0",
        ndarray=array.ndarray,
        RawKernel=launches.RawKernel,
        RawModule=launches.RawModule,
        **_some(functions, "array asarray ascontiguousarray asfortranarray asnumpy"),
        **_some(functions, "from_dlpack empty empty_like get_array_module"),
        asanyarray=functions.asarray,
        get_default_memory_pool=lambda: now().allocators.pool,
        get_default_pinned_memory_pool=lambda: now().pinned_pool,
        is_available=lambda: now().n_devices > 0,
        cuda=made["cupy.cuda"],
        linalg=made["cupy.linalg"],
        fft=made["cupy.fft"],
        cublas=made["cupy.cublas"],
    )
    _from_numpy(module, names.NAMES, np)
    return module
