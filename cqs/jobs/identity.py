"""What decides the results of a job: the options of a call, and the numbers in its inputs, which stand as hashes."""

import hashlib
import json
import os
from collections.abc import Iterator
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
_HASH = "sha256"


def identity_of(problem: AttentionProblem, scores: Scores | None, reads: bool = True) -> dict[str, Any]:
    """Return what decides the results of tasks beside the numbers in q, k and v, as values that JSON has.

    Sink logits and the type of the output are not among it: they come in when results are complete. Arrays of masks and
    biases are not read if it is not to be; what has no hash is not told apart from others of its shape.

    Raises
    ------
    OptionError
        If a function takes part, of which nobody can tell whether it is the same the next time.
    """
    shapes = {name: f"{shape} of {problem.dtype}" for name, shape in problem.input_shapes.items()}
    options: dict[str, Any] = {"scale": problem.scale, "mask": problem.mask}
    if scores is not None:
        softcap = None if scores.softcap is None else float(scores.softcap)
        options |= {"softcap": softcap, "bias": scores.bias, "score_mod": scores.score_mod}
    return shapes | {name: _value(name, x, reads) for name, x in options.items() if x is not None}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the name of each entry that differs, and both values, in words."""
    names = (name for name in dict.fromkeys((*theirs, *ours)) if not _agree(ours.get(name), theirs.get(name)))
    return [(name, words_of(ours.get(name)), words_of(theirs.get(name))) for name in names]


def _agree(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return False
        return all(_agree(x, theirs[name]) or (name == _HASH and None in (x, theirs[name])) for name, x in ours.items())
    return bool(ours == theirs)


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
    if type(x) is NpyInput:  # and no other that reads it in a way of its own
        return {"path": os.path.realpath(x.path)} | x.stamp._asdict()
    return x.files() if type(x) is ZarrInput else None


def _walk(x: Input) -> Iterator[tuple[tuple[slice, ...], int, int]]:
    """Yield blocks of an input, tokens in order for each head: whole chunks, where it has some, or heads one by one."""
    *heads, n_tokens, width = x.shape
    chunks = x.layout.files if isinstance(x, ZarrInput) else getattr(getattr(x, "array", None), "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) != len(x.shape):
        chunks = None
    sizes = [1] * len(heads) if chunks is None else chunks[: len(heads)]
    counts = [-(-n // size) for n, size in zip(heads, sizes, strict=True)]
    for place in np.ndindex(*counts):
        lead = tuple(slice(i * n, min((i + 1) * n, most)) for i, n, most in zip(place, sizes, heads, strict=True))
        if chunks is None:
            yield from ((lead, start, stop) for start, stop in steps(0, n_tokens, width))
        else:
            own = chunks[-2]
            yield from ((lead, i, min(i + own, n_tokens)) for i in range(0, n_tokens, own))


def _value(name: str, value: Any, reads: bool) -> Any:
    """Return a value as JSON has it; of what is long, a hash."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        # an axis that only seems to be there has one number for all, and which axes these are makes the array, too
        once = value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in value.strides)]
        shapes = {"shape": list(value.shape), "numbers": list(once.shape), "dtype": str(value.dtype)}
        return shapes | {_HASH: _array_hash(once) if reads else None}
    kind = type(value)
    if kind is ALiBi or (isinstance(value, Mask) and getattr(masks, kind.__name__, None) is kind):
        own = {field.name: _value(name, getattr(value, field.name), reads) for field in fields(value)}
        return {"kind": kind.__name__} | own
    if isinstance(value, tuple | list):
        listed = [_value(name, part, reads) for part in value]
        if len(listed) <= _MOST_NUMBERS:
            return listed
        return {"length": len(listed), _HASH: hashlib.sha256(json.dumps(listed).encode()).hexdigest()}
    rule = "be made of numbers where results are kept: of a function nobody can tell that it is the same the next time"
    raise OptionError.of(name, rule, repr(value), "take masks of `cqs.masks`, or a bias, or leave `job` out")


def _array_hash(array: npt.NDArray[Any]) -> str:
    """Hash an array's numbers, in C order."""
    found = hashlib.sha256()
    for place in np.ndindex(*array.shape[:-2]):
        _add(found, np.atleast_2d(array[place]))
    return found.hexdigest()


def _add(found: Any, rows: npt.NDArray[Any]) -> None:
    for part in byte_parts(rows):
        found.update(part)
