"""Where on disk an array is, to see whether an output is also an input."""

import os
from pathlib import Path
from typing import Any

from cqs.errors import OptionError
from cqs.sources.arrays import ArrayInput
from cqs.sources.npy import NpyInput
from cqs.sources.slices import file_of
from cqs.sources.source import InputSource
from cqs.sources.zarrs import directory_of

__all__ = ["refuse_shared"]


def refuse_shared(out: Any, source: InputSource) -> None:
    """Refuse an output that is an input, or has one in it.

    Parameters
    ----------
    out : path, or array on disk or mapped into memory
        What is to be written.
    source : InputSource
        What is read meanwhile.

    Raises
    ------
    OptionError
        Naming the input.
    """
    target = Path(out) if isinstance(out, (str, os.PathLike)) else _place_of(out)
    for name, x in (("q", source.q), ("k", source.k), ("v", source.v)):
        if isinstance(x, ArrayInput) and hasattr(out, "filename"):
            continue  # two memory maps: `check_out` has looked at their memory
        array = getattr(x, "array", x)
        place = Path(x.path) if isinstance(x, NpyInput) else _place_of(array)
        if out is array or (target is not None and place is not None and _is_in(place, target)):
            rule = f"not be an input: `{name}` is still read while it is written"
            raise OptionError.of("out", rule, str(target or out), "write to another file")


def _place_of(array: Any) -> Path | None:
    """Return the file or directory of an array, and for one of several in a file the name that it has there."""
    place = file_of(array)
    if place is not None:
        return Path(place[0], place[1].lstrip("/"))
    mapped = getattr(array, "filename", None)  # of `np.memmap`, and of parts of it
    if isinstance(mapped, (str, os.PathLike)):
        return Path(mapped)
    return directory_of(array) if hasattr(array, "store") else None


def _is_in(place: Path, target: Path) -> bool:
    """Whether a place is the target, or inside it; links of all kinds are followed."""
    for own in (place, *place.parents):
        if own == target or (own.exists() and target.exists() and own.samefile(target)):
            return True
    return Path(os.path.realpath(target)) in Path(os.path.realpath(place)).parents
