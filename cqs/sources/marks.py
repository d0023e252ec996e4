"""The completion mark: an attribute of an array on disk that says whether all of its rows have been written.

Zarr arrays carry `attrs["cqs"] = {"complete": False}` from before the first row until after the last, h5py datasets the
same as JSON text. What was not marked by this library counts as complete.
"""

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from cqs.errors import SourceError

__all__ = ["mark", "refuse_unfinished"]

NAME = "cqs"


def mark(attributes: object, is_complete: bool, as_text: bool) -> None:
    """Set the mark, among other attributes; do nothing where there can be none."""
    if isinstance(attributes, MutableMapping):
        value = {"complete": is_complete}
        attributes[NAME] = json.dumps(value) if as_text else value


def refuse_unfinished(array: Any, name: str) -> None:
    """Refuse an input that is the output of a run that has not ended, or was broken off.

    Raises
    ------
    SourceError
        If it carries the mark that it is not complete.
    """
    attributes = getattr(array, "attrs", None)
    value: Any = attributes.get(NAME) if isinstance(attributes, Mapping) else None
    try:
        value = json.loads(value) if isinstance(value, (str, bytes)) else value
    except ValueError:
        return
    if isinstance(value, Mapping) and value.get("complete") is False:
        rule = "be complete"
        got = f'attrs["{NAME}"] = {json.dumps(dict(value))}: a run that writes it has not ended, or was broken off'
        raise SourceError.of(name, rule, got, "run it again, or remove the attribute if you know better")
