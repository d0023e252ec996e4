"""CUDA sources, and how they become kernels: compiled by CuPy when first launched, and kept by it on disk."""

from functools import cache
from typing import Any

import numpy as np

from cqs.backend import import_cupy

__all__ = ["SOURCES", "cuda_source", "launch"]

# file -> the ways in which it is compiled
SOURCES: dict[str, tuple[str, ...]] = {
    "attend_rows.cu": ("-DEXPONENT_BITS=5", "-DEXPONENT_BITS=8"),
    "merge_rows.cu": ("-DREAL=float", "-DREAL=double"),
    "softmax_block.cu": ("-DREAL=float", "-DREAL=double"),
    "scan_values.cu": ("-DWORD_BYTES=2", "-DWORD_BYTES=4", "-DWORD_BYTES=8"),
}


def cuda_source(file: str) -> str:
    """Return the text of a source of this folder. It needs no header, so that NVRTC alone compiles it."""
    from importlib import resources  # slow to import, and not needed to import cqs

    return resources.files("cqs.cuda").joinpath(file).read_text(encoding="utf-8")


def launch(file: str, option: str, name: str, n_blocks: int, n_threads: int, *arguments: Any) -> None:
    """Start a kernel on the current stream of the current device.

    Parameters
    ----------
    file, option, name : str
        A source, one of the options that `SOURCES` has for it, and a kernel in it.
    n_blocks, n_threads : int
        Blocks, and threads of each.
    *arguments
        Whole numbers become `long long`; arrays, and NumPy's scalars, are passed as they are.
    """
    values = tuple(np.int64(x) if isinstance(x, int) else x for x in arguments)
    _kernel(file, option, name)((n_blocks,), (n_threads,), values)


@cache
def _kernel(file: str, option: str, name: str) -> Any:
    """Return a kernel, which CuPy compiles for each device that it is launched on."""
    assert option in SOURCES[file]
    return import_cupy().RawModule(code=cuda_source(file), options=(option,)).get_function(name)
