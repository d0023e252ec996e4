"""What decides the results of a job: the options of a call, and the numbers in its inputs, which stand as hashes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs import masks
from cqs.errors import OptionError
from cqs.masks import Mask
from cqs.problem import AttentionProblem
from cqs.scores import ALiBi, Scores
from cqs.sources import Input, NpyInput, ZarrInput, byte_parts, steps

__all__ = ["contents_of", "differences", "file_of", "identity_of", "words_of"]

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
    return [(name, words_of(ours.get(name)), words_of(theirs.get(name))) for name in names]


def words_of(value: Any) -> str:
    """Write a value of an identity as one would in Python.

    >>> words_of({"kind": "Causal", "offset": 0}), words_of(None)
    ('Causal(offset=0)', 'none')
    """
    if isinstance(value, dict):
        own = ", ".join(f"{name}={words_of(part)}" for name, part in value.items() if name != "kind")
        return f"{value.get('kind', 'array')}({own})"
    return "none" if value is None else str(value)


def contents_of(x: Input) -> str:
    """Return a SHA-256 of an input's numbers, each of which is read once, a little at a time. O(N D), about 1 GB/s.

    It is that of the hashes of all heads, so that these may be read in any order, as the file has them.
    """
    heads = x.shape[:-2]
    found = {place: hashlib.sha256() for place in np.ndindex(*heads)}
    for lead, start, stop in _walk(x):
        block = x.read(lead, start, stop)
        first = tuple(i.start for i in lead)
        for place in np.ndindex(*block.shape[:-2]):
            _add(found[tuple(a + b for a, b in zip(first, place, strict=True))], block[place])
    return hashlib.sha256(b"".join(own.digest() for own in found.values())).hexdigest()


def file_of(x: Input) -> dict[str, Any] | None:
    """Return by what a file, or the files of a Zarr array, are known without reading them; None if it is neither."""
    if isinstance(x, NpyInput):
        return {"path": os.path.realpath(x.path), "size": x.stamp.size, "mtime_ns": x.stamp.mtime_ns}
    return x.files() if isinstance(x, ZarrInput) else None


def _walk(x: Input) -> Iterator[tuple[tuple[slice, ...], int, int]]:
    """Yield blocks of an input, tokens in order for each head: whole chunks of a Zarr array, else heads one by one."""
    *heads, n_tokens, width = x.shape
    box = x.layout.files[:-1] if isinstance(x, ZarrInput) else (*(1 for _ in heads), 0)
    counts = [-(-n // size) for n, size in zip(heads, box[:-1], strict=True)]
    for place in np.ndindex(*counts):
        lead = tuple(slice(i * n, min((i + 1) * n, most)) for i, n, most in zip(place, box[:-1], heads, strict=True))
        if box[-1]:
            yield from ((lead, i, min(i + box[-1], n_tokens)) for i in range(0, n_tokens, box[-1]))
        else:
            yield from ((lead, start, stop) for start, stop in steps(0, n_tokens, width))


def _value(name: str, value: Any) -> Any:
    """Return a value as JSON has it; of what is long, a hash."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": _array_hash(value)}
    kind = type(value)
    if kind is ALiBi or (isinstance(value, Mask) and getattr(masks, kind.__name__, None) is kind):
        own = {field.name: _value(name, getattr(value, field.name)) for field in fields(value)}
        return {"kind": kind.__name__} | own
    if isinstance(value, Iterable):
        listed = [_value(name, part) for part in value]
        if len(listed) <= _MOST_NUMBERS:
            return listed
        return {"length": len(listed), "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}
    rule = "be made of numbers where results are kept: of a function nobody can tell that it is the same the next time"
    raise OptionError.of(name, rule, repr(value), "take masks of `cqs.masks`, or a bias, or leave `job` out")


def _array_hash(array: npt.NDArray[Any]) -> str:
    """Hash an array's numbers, each once, also where axes only seem to be there."""
    once = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
    found = hashlib.sha256()
    for place in np.ndindex(*once.shape[:-2]):
        _add(found, np.atleast_2d(once[place]))
    return found.hexdigest()


def _add(found: Any, rows: npt.NDArray[Any]) -> None:
    for part in byte_parts(rows):
        found.update(part)
