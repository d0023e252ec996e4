"""From what a caller gives to inputs and a place for the output: arrays, paths, arrays on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cqs.backend import dtype_of, namespace_of
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError
from cqs.problem import AttentionProblem, dtype_name
from cqs.sources.arrays import ArrayInput, ArraySink, allocate_out, check_out
from cqs.sources.npy import NpyInput, NpySink
from cqs.sources.sink import Sink
from cqs.sources.slices import SliceInput, SliceSink, is_sliceable
from cqs.sources.source import Input, InputSource
from cqs.types import Array

__all__ = ["Target", "like_of", "open_inputs", "open_output"]

PathLike = str | os.PathLike[str]


def open_inputs(q: Any, k: Any, v: Any) -> InputSource:
    """Open queries, keys and values, each of them an array, a path, or an array on disk.

    Raises
    ------
    BackendError
        If something is none of these, or arrays are of different libraries or devices.
    SourceError
        If a file is missing or damaged.
    """
    opened: dict[str, Input] = {}
    try:
        for name, x in (("q", q), ("k", k), ("v", v)):
            opened[name] = _open_input(name, x)
        namespace_of(**{name: like_of(x) for name, x in opened.items()})
    except BaseException:
        for x in opened.values():
            x.close()
        raise
    return InputSource(**opened)


def like_of(x: Input) -> Array:
    """Return an array of the library and device that reading an input gives."""
    if isinstance(x, ArrayInput):
        return x.array
    return np.empty(0)


def _open_input(name: str, x: Any) -> Input:
    if isinstance(x, (str, os.PathLike)):
        if Path(x).suffix == ".npz":
            remedy = "load it with `np.load(path)` and give its arrays, or save them as .npy files"
            raise OptionError.of(name, "be an array or a .npy file", os.fspath(x), remedy)
        return NpyInput(x)
    if isinstance(x, Input):
        return x
    try:
        namespace_of(**{name: x})
    except BackendError:
        if not is_sliceable(x) or isinstance(x, np.ndarray):
            raise
        return SliceInput(x, name)
    return ArrayInput(x)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the output goes, checked, and not opened yet.

    Parameters
    ----------
    kind : {"new", "given", "sink"}
        As of `Setting.output`.
    dtype : str
        The type of the output.
    open : function
        Allocates or creates it.
    """

    kind: Literal["new", "given", "sink"]
    dtype: str
    open: Callable[[], Sink]


def open_output(out: Any, problem: AttentionProblem, source: InputSource) -> Target:
    """Check an `out` argument: None, an array, a path, an array on disk, or a `Sink`.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError
        If it does not fit the problem, or is also an input.
    """
    like = like_of(source.q)
    if out is None:
        return Target("new", problem.dtype, lambda: ArraySink(allocate_out(problem, like)))
    if isinstance(out, (str, os.PathLike)):
        return _file(out, problem, source)
    if not isinstance(out, Sink):
        arrays = {
            n: x.array for n, x in (("q", source.q), ("k", source.k), ("v", source.v)) if isinstance(x, ArrayInput)
        }
        try:
            namespace_of(out=out)
        except BackendError:
            if not is_sliceable(out) or isinstance(out, np.ndarray):
                raise
            out = SliceSink(out)
        else:
            check_out(out, problem, **arrays)
            namespace_of(q=like, out=out)
            array = out
            return Target("given", dtype_name(array), lambda: ArraySink(array))
    return _sink(out, problem)


def _sink(sink: Sink, problem: AttentionProblem) -> Target:
    if tuple(sink.shape) != problem.out_shape:
        raise ShapeError.of("out", f"have the result's shape {problem.out_shape}", tuple(sink.shape), "make another")
    allowed = sorted({problem.dtype, problem.accumulator_dtype})
    if dtype_name(sink) not in allowed:
        raise DTypeError.of("out", f"be of type {' or '.join(allowed)}", dtype_name(sink), "make another")
    return Target("sink", dtype_name(sink), lambda: sink)


def _file(path: PathLike, problem: AttentionProblem, source: InputSource) -> Target:
    target = Path(os.path.realpath(path))
    if target.suffix != ".npy":
        raise OptionError.of(
            "out", "be a .npy file, if it is a path", os.fspath(path), f"write {os.fspath(path)}.npy, say"
        )
    if not target.parent.is_dir():
        raise OptionError.of("out", "be in a directory that exists", os.fspath(path), f"make {target.parent} first")
    if target.exists() and not target.is_file():
        raise OptionError.of("out", "be a regular file", os.fspath(path), "write to another file")
    for x in (source.q, source.k, source.v):
        if isinstance(x, NpyInput) and target.exists() and target.samefile(x.path):
            raise OptionError.of("out", "not be one of the inputs", os.fspath(path), "write to another file")
    dtype = np.dtype(dtype_of(np, problem.dtype))
    return Target("sink", problem.dtype, lambda: NpySink.create(target, problem.out_shape, dtype))
