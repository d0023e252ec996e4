"""What decides the results of a job: the options of a call, and the numbers in its inputs, which stand as hashes."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import OptionError
from cqs.masks import Mask
from cqs.problem import AttentionProblem
from cqs.scores import ALiBi, Scores
from cqs.sources import Input, NpyInput, steps

__all__ = ["contents_of", "differences", "file_of", "identity_of"]

_MOST_NUMBERS = 64  # that are written out one by one


def identity_of(problem: AttentionProblem, scores: Scores | None) -> dict[str, Any]:
    """Return what decides the results of tasks beside the numbers in q, k and v, as values that JSON has.

    Sink logits and the type of the output are not among it: they come in when results are complete.

    Raises
    ------
    OptionError
        If a function takes part, of which nobody can tell whether it is the same the next time.
    """
    shapes = {name: f"{shape} of {problem.dtype}" for name, shape in problem.input_shapes.items()}
    changes = {} if scores is None else {name: getattr(scores, name) for name in ("softcap", "bias", "score_mod")}
    options = {"scale": problem.scale, "mask": problem.mask, "softcap": None, "bias": None} | changes
    return shapes | {name: _value(name, value) for name, value in options.items() if value is not None}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the name of each entry that differs, and both values, in words."""
    names = (name for name in dict.fromkeys((*theirs, *ours)) if ours.get(name) != theirs.get(name))
    return [(name, json.dumps(ours.get(name)), json.dumps(theirs.get(name))) for name in names]


def contents_of(x: Input) -> str:
    """Return the SHA-256 of an input's numbers, which are read once, block by block. O(N D), about 1 GB/s."""
    *heads, n_tokens, width = x.shape
    found = hashlib.sha256()
    for start, stop in steps(0, n_tokens, int(np.prod(heads, dtype=int)) * width):
        _add(found, x.read(None, start, stop))
    return found.hexdigest()


def file_of(x: Input) -> dict[str, Any] | None:
    """Return by what a file is known without reading it: where it is, how large, and when it was last written to."""
    if not isinstance(x, NpyInput):
        return None
    return {"path": os.path.realpath(x.path), "size": x.stamp.size, "mtime_ns": x.stamp.mtime_ns}


def _value(name: str, value: Any) -> Any:
    """Return a value as JSON has it; of what is long, a hash."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": _array_hash(value)}
    if isinstance(value, Mask | ALiBi) and is_dataclass(value):
        own = {field.name: _value(name, getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__qualname__} | own
    if isinstance(value, Iterable):
        listed = [_value(name, part) for part in value]
        if len(listed) <= _MOST_NUMBERS:
            return listed
        return {"length": len(listed), "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}
    rule = "be made of numbers where results are kept: of a function nobody can tell that it is the same the next time"
    remedy = "take other masks, or a bias, or leave `job` out"
    raise OptionError.of("mask" if name == "mask" else name, rule, repr(value), remedy)


def _array_hash(array: npt.NDArray[Any]) -> str:
    """Hash an array's numbers, each once, also where axes only seem to be there."""
    once = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
    found = hashlib.sha256()
    for place in np.ndindex(*once.shape[:-2]):
        matrix = np.atleast_2d(once[place])
        for start, stop in steps(0, len(matrix), matrix.shape[-1]):
            _add(found, matrix[start:stop])
    return found.hexdigest()


def _add(found: Any, block: npt.NDArray[Any]) -> None:
    if block.size:  # an empty one has no bytes that could be viewed
        found.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
