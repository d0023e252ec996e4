"""From what a caller gives to inputs and a place for the output: arrays, paths, arrays on disk."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cqs.backend import namespace_of
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError
from cqs.problem import AttentionProblem, dtype_name
from cqs.sources.arrays import ArrayInput, ArraySink, allocate_out, check_out
from cqs.sources.npy import NpyInput
from cqs.sources.npy_sink import NpySink
from cqs.sources.places import refuse_shared
from cqs.sources.sink import Sink
from cqs.sources.slices import SliceInput, SliceSink, is_sliceable
from cqs.sources.source import Input, InputSource
from cqs.sources.zarr_sink import ZarrFileSink, ZarrSink, file_write_bytes, is_array
from cqs.sources.zarrs import ZarrInput, is_zarr_path
from cqs.types import Array

__all__ = ["NOWHERE", "Target", "like_of", "open_input", "open_inputs", "open_output"]

NOWHERE = object()  # an `out` of a run that only keeps results, for another that writes the output to a file

PathLike = str | os.PathLike[str]
_HDF5 = (".h5", ".hdf5", ".he5", ".nc")


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
            opened[name] = open_input(name, x)
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


def open_input(name: str, x: Any) -> Input:
    """Open one of them; see `open_inputs`."""
    if isinstance(x, (str, os.PathLike)):
        return _open_path(name, x)
    if not isinstance(x, np.ndarray) and isinstance(x, Input):  # which is slow to find out
        return x
    if _is_zarr(x):
        return ZarrInput.of(x, name)
    try:
        namespace_of(**{name: x})
    except BackendError:
        if not is_sliceable(x) or isinstance(x, np.ndarray):
            raise
        return SliceInput.of(x, name)
    return ArrayInput(x)


def _open_path(name: str, path: PathLike) -> Input:
    suffix = Path(path).suffix
    if suffix == ".npz":
        remedy = "load it with `np.load(path)` and give its arrays, or save them as .npy files"
        raise OptionError.of(name, "be an array or a .npy file", os.fspath(path), remedy)
    if suffix in _HDF5:
        remedy = "open it with `h5py.File(path)` and give its datasets"
        raise OptionError.of(name, "be an array, a .npy file or a Zarr array", os.fspath(path), remedy)
    return ZarrInput.open(path) if is_zarr_path(path) else NpyInput(path)


def _is_zarr(x: object) -> bool:
    """Whether something is a Zarr array; then somebody has imported Zarr."""
    zarr: Any = sys.modules.get("zarr")
    return zarr is not None and isinstance(x, zarr.Array)


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
    write_bytes : int
        What writing may hold beyond what is written.
    """

    kind: Literal["new", "given", "sink"]
    dtype: str
    open: Callable[[], Sink]
    write_bytes: int = 0


def open_output(out: Any, problem: AttentionProblem, source: InputSource) -> Target:
    """Check an `out` argument: None, an array, a path, an array on disk, or a `Sink`. Nothing is written yet.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError
        If it does not fit the problem, is also an input, is of another library, or cannot be where it is to be.
    """
    like = like_of(source.q)
    if out is NOWHERE:
        return Target("sink", _file_dtype(problem), _refuse_to_open)
    if out is None:
        return Target("new", problem.dtype, lambda: ArraySink(allocate_out(problem, like), is_new=True))
    if isinstance(out, (str, os.PathLike)):
        return _file(out, problem, source)
    if isinstance(out, Sink):
        return _sink(out, problem, source, lambda: out)
    if _is_zarr(out):
        zarr_sink = ZarrSink.of(out)
        return _sink(zarr_sink, problem, source, zarr_sink.begin)
    try:
        namespace_of(out=out)
    except BackendError:
        if not is_sliceable(out) or isinstance(out, np.ndarray):
            raise
        slice_sink = SliceSink(out)
        return _sink(slice_sink, problem, source, slice_sink.begin)
    inputs = {"q": source.q, "k": source.k, "v": source.v}
    check_out(out, problem, **{name: x.array for name, x in inputs.items() if isinstance(x, ArrayInput)})
    namespace_of(q=like, out=out)
    refuse_shared(out, source)
    return Target("given", dtype_name(out), lambda: ArraySink(out))


def _sink(sink: Sink, problem: AttentionProblem, source: InputSource, begin: Callable[[], Sink]) -> Target:
    _check_library(source)
    if tuple(sink.shape) != problem.out_shape:
        raise ShapeError.of("out", f"have the result's shape {problem.out_shape}", tuple(sink.shape), "make another")
    allowed = sorted({problem.dtype, problem.accumulator_dtype})
    if dtype_name(sink) not in allowed:
        raise DTypeError.of("out", f"be of type {' or '.join(allowed)}", dtype_name(sink), "make another")
    refuse_shared(getattr(sink, "array", sink), source)
    return Target("sink", dtype_name(sink), begin, getattr(sink, "write_bytes", 0))


def _file(path: PathLike, problem: AttentionProblem, source: InputSource) -> Target:
    _check_library(source)
    target, given = Path(os.path.realpath(path)), os.fspath(path)
    kinds: dict[str, type[NpySink] | type[ZarrFileSink]] = {".npy": NpySink, ".zarr": ZarrFileSink}
    kind = kinds.get(target.suffix)
    if kind is None:
        raise OptionError.of("out", "end in .npy or .zarr, if it is a path", given, f"write {given}.npy, say")
    if not target.parent.is_dir():
        raise OptionError.of("out", "be in a directory that exists", given, f"make {target.parent} first")
    if kind is NpySink and target.exists() and not target.is_file():
        raise OptionError.of("out", "be a regular file", given, "write to another file")
    if kind is ZarrFileSink and target.exists() and not is_array(target):
        rule = "be new, or a Zarr array, which it then replaces"
        raise OptionError.of("out", rule, given, "write to another directory")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OptionError.of("out", "be in a directory that may be written to", given, "write elsewhere")
    refuse_shared(target, source)
    dtype = _file_dtype(problem)
    write_bytes = file_write_bytes(problem.out_shape, np.dtype(dtype).itemsize) if kind is ZarrFileSink else 0
    return Target("sink", dtype, lambda: kind.create(target, problem.out_shape, np.dtype(dtype)), write_bytes)


def _file_dtype(problem: AttentionProblem) -> str:
    """Return the type of an output in a file, of which no kind has bfloat16."""
    return problem.accumulator_dtype if problem.dtype == "bfloat16" else problem.dtype


def _refuse_to_open() -> Sink:
    raise AssertionError("nothing is written")


def _check_library(source: InputSource) -> None:
    like = like_of(source.q)
    if not isinstance(like, np.ndarray):
        got = f"{type(like).__module__}.{type(like).__name__}"
        remedy = "leave `out` out and write what comes back, or give NumPy arrays"
        raise BackendError.of("out", "be an array of the inputs' library, as files take NumPy arrays", got, remedy)
