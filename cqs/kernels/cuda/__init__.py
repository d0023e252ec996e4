"""CUDA sources, and how they become kernels: compiled by CuPy when first needed, and kept by it on disk."""

from functools import cache
from typing import Any

from cqs.backend import import_cupy

__all__ = ["SOURCES", "cuda_kernel", "cuda_source"]

# file -> the ways in which it is compiled
SOURCES: dict[str, tuple[str, ...]] = {
    "attend_rows.cu": ("-DEXPONENT_BITS=5", "-DEXPONENT_BITS=8"),
    "softmax_block.cu": ("-DREAL=float", "-DREAL=double"),
    "scan_values.cu": ("-DWORD_BYTES=2", "-DWORD_BYTES=4", "-DWORD_BYTES=8"),
}


def cuda_source(file: str) -> str:
    """Return the text of a source of this folder. It needs no header, so that NVRTC alone compiles it."""
    from importlib import resources  # slow to import, and not needed to import cqs

    return resources.files(__name__).joinpath(file).read_text(encoding="utf-8")


@cache
def cuda_kernel(file: str, option: str, name: str) -> Any:
    """Return a kernel of a source, compiled with one of the options that `SOURCES` has for it, on any device."""
    assert option in SOURCES[file]
    return import_cupy().RawModule(code=cuda_source(file), options=(option,)).get_function(name)
