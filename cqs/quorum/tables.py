"""What is shipped as data: covers, rulers to lift by, and lifts that a search has completed."""

import json
from functools import cache
from typing import Any

from cqs.quorum.construction import Construction
from cqs.quorum.constructions import Lift, Reduced, Repaired, move, singer
from cqs.quorum.cover import DifferenceCover

__all__ = ["completed_lift", "completed_moduli", "known_moduli", "listed_cover", "listed_rulers"]


@cache
def _read(name: str) -> Any:
    from importlib import resources  # slow to import, and not needed to import cqs

    return json.loads(resources.files("cqs.quorum").joinpath("data", name).read_text())


def known_moduli() -> tuple[int, ...]:
    """Return every W with a shipped cover, in increasing order."""
    return tuple(sorted(map(int, _read("difference_covers.json"))))


def listed_cover(W: int) -> DifferenceCover | None:
    """Return the shipped cover of Z_W, if there is one."""
    base = _read("difference_covers.json").get(str(W))
    return DifferenceCover(W, tuple(base)) if base else None


def listed_rulers() -> tuple[tuple[int, ...], ...]:
    """Return the shipped rulers, which measure much around a circle, though some lengths may be left out."""
    return tuple(map(tuple, _read("rulers.json")))


def completed_moduli() -> tuple[int, ...]:
    """Return every W with a shipped lift, in increasing order."""
    return tuple(sorted(map(int, _read("completed_lifts.json"))))


def completed_lift(W: int) -> DifferenceCover | None:
    """Return the shipped cover of Z_W that is a lift of one of Singer's sets with some elements exchanged, if any.

    The data say which set, how it is moved, the ruler, what is dropped and what is added. They were found by a search
    that swaps one element at a time, beginning at what `partial_lift` begins with.
    """
    recipe = _read("completed_lifts.json").get(str(W))
    if recipe is None:
        return None
    q, factor, shift, ruler, dropped, added = recipe
    construction: Construction = Lift(move(singer(q), factor, shift).construction, tuple(ruler), W)
    if dropped:
        construction = Reduced(construction, tuple(dropped))
    return DifferenceCover.by(Repaired(construction, tuple(added)))
