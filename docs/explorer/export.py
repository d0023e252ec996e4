"""Write what the explorer shows as a script beside it: `python docs/explorer/export.py`, about three minutes.

The page computes owners of full and causal attention by the closed form of `CyclicQuorumSet`. For the other masks
owners are found by a search, and some tiles are cut by their keys, which is exported; the tests compare both with
`cqs.plan`.
"""

import json
from collections import defaultdict
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cqs
from cqs.masks import Causal, Documents, Mask, NoMask, SlidingWindow
from cqs.plot.style import worker_colours

DATA = Path(__file__).parent / "data.js"
MOST_WORKERS = 133
# one problem for every W, so that figures of different W can be compared
N_TOKENS, N_HEADS, WIDTH, DTYPE = 16384, 8, 64, np.float16

# what each mask is made of; the page evaluates the same parts
MASKS: dict[str, dict[str, Any]] = {
    "full": {"label": "full"},
    "causal": {"label": "causal", "causal": True},
    "window": {"label": "causal window of 2,048 keys", "causal": True, "left": 2047},
    "documents": {"label": "three documents", "documents": [9000, 5384, 2000]},
    "packed": {
        "label": "eight documents, causal",
        "causal": True,
        "documents": [4096, 3072, 2560, 2048, 1792, 1280, 1024, 512],
    },
}
SEARCHED = ("window", "documents", "packed")  # their owners are balanced by search


class Part(NamedTuple):
    """The keys `start` to `stop - 1` of a tile, and the worker that computes them."""

    start: int
    stop: int
    owner: int


Parts = dict[tuple[int, int], list[Part]]  # of each tile (query group, key group) with work, in the order of keys


def mask_of(name: str) -> Mask:
    """Return the mask with that name in `MASKS`."""
    parts = MASKS[name]
    masks: list[Mask] = [Documents(parts["documents"])] if "documents" in parts else []
    if "left" in parts:
        masks.append(SlidingWindow(parts["left"]))
    elif "causal" in parts:
        masks.append(Causal())
    return reduce(and_, masks) if masks else NoMask()


def plan_of(W: int, name: str, strategy: str = "cqs") -> cqs.Plan:
    """Return the plan that the page pictures."""
    tokens = np.broadcast_to(DTYPE(0), (N_HEADS, N_TOKENS, WIDTH))
    return cqs.plan(tokens, tokens, tokens, workers=W, mask=mask_of(name), strategy=strategy)


def parts_of(W: int, name: str) -> Parts:
    """Return who computes what of each tile in that plan; neighbouring parts of one owner are one."""
    tiles = sorted(
        (tile.query.index, tile.key.index, Part(tile.key.start, tile.key.stop, task.index))
        for task in plan_of(W, name).tasks()
        for tile in task.tiles
    )
    parts: Parts = defaultdict(list)
    for g, h, part in tiles:
        own = parts[g, h]
        if own and (own[-1].stop, own[-1].owner) == (part.start, part.owner):
            part = Part(own.pop().start, part.stop, part.owner)
        own.append(part)
    return parts


def keys_of(W: int, h: int) -> tuple[int, int]:
    """Return where key group h begins and where it ends."""
    return h * N_TOKENS // W, (h + 1) * N_TOKENS // W


def is_whole(W: int, h: int, own: list[Part]) -> bool:
    """Return whether a tile of key group h is in one part with all its keys."""
    return (own[0].start, own[0].stop) == keys_of(W, h)


def letter(holders: tuple[int, ...], owner: int) -> str:
    """Return which of the holders, in order, is the owner."""
    return chr(ord("a") + holders.index(owner))


def choices(quorums: cqs.CyclicQuorumSet, parts: Parts) -> str:
    """Return the letter of the owner for each tile with work and several holders, row by row.

    "." stands for the owner by the closed form, which most tiles keep, and for tiles that are in `cuts`.
    """
    letters = []
    for (g, h), own in sorted(parts.items()):
        holders = quorums.holders(g, h)
        if len(holders) > 1:
            is_default = own[0].owner == quorums.owner(g, h) or not is_whole(quorums.modulus, h, own)
            letters.append("." if is_default else letter(holders, own[0].owner))
    return "".join(letters)


def cuts(quorums: cqs.CyclicQuorumSet, parts: Parts) -> str:
    """Return a word for each tile that is not whole: how many tiles after the one before it, then its parts.

    A part is the letter of its owner, or "_" for keys that nobody needs, and the number of the key in its group before
    which it stops, which is left out at the end of the group.
    """
    W, words, before = quorums.modulus, [], 0
    for (g, h), own in sorted(parts.items()):
        if is_whole(W, h, own):
            continue
        holders, (first, last) = quorums.holders(g, h), keys_of(W, h)
        word, at = f"{g * W + h - before}", first
        for part in own:
            word += f"_{part.start - first}" if part.start > at else ""
            word += letter(holders, part.owner) + (f"{part.stop - first}" if part.stop < last else "")
            at = part.stop
        words.append(word)
        before = g * W + h
    return " ".join(words)


def entry(W: int) -> dict[str, Any]:
    """Return what the page knows of W workers."""
    quorums, found = cqs.CyclicQuorumSet(W), {name: parts_of(W, name) for name in SEARCHED}
    return {
        "base": quorums.base,
        "choices": {name: choices(quorums, parts) for name, parts in found.items()},
        "cuts": {name: cuts(quorums, parts) for name, parts in found.items()},
    }


def common() -> dict[str, Any]:
    """Return what does not depend on W."""
    colours = [[round(255 * part) for part in colour[:3]] for colour in worker_colours(32).tolist()]
    problem = {"tokens": N_TOKENS, "heads": N_HEADS, "width": WIDTH, "itemBytes": np.dtype(DTYPE).itemsize}
    return {"problem": problem, "masks": MASKS, "colours": colours}


def script(common: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """Return the data as a script, a line for each W: pages that are opened from a file cannot read JSON."""
    head = "// Written by docs/explorer/export.py; not to be edited.\n"
    rows = ",\n".join(json.dumps(each, separators=(",", ":")) for each in entries)
    return f'{head}window.EXPLORER_DATA = {json.dumps(common)[:-1]}, "workers": [\n{rows}\n]}};\n'


def main() -> None:
    """Write `data.js`."""
    DATA.write_text(script(common(), [entry(W) for W in range(1, MOST_WORKERS + 1)]))


if __name__ == "__main__":
    main()
