"""Write what the explorer shows as a script beside it: `python docs/explorer/export.py`, about three minutes.

The page computes owners of full and causal attention by the closed form of `CyclicQuorumSet`. For the other masks
owners are found by a search, whose result is exported; the tests compare both with `cqs.plan`.
"""

import json
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

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


def owners_of(W: int, name: str) -> np.ndarray:
    """Return the owner of each tile, `(W, W)`; -1 for tiles that the mask leaves empty."""
    owners = np.full((W, W), -1)
    for task in plan_of(W, name).tasks():
        for tile in task.tiles:
            owners[tile.query.index, tile.key.index] = task.index
    return owners


def choices(W: int, name: str) -> str:
    """Return a letter for each tile with work and several holders, row by row: which of them, in order, is the owner.

    "." stands for the owner by the closed form, which most tiles keep.
    """
    quorums, letters = cqs.CyclicQuorumSet(W), []
    owners = owners_of(W, name)
    for g, h in np.argwhere(owners >= 0).tolist():
        holders, owner = quorums.holders(g, h), int(owners[g, h])
        if len(holders) > 1:
            letters.append("." if owner == quorums.owner(g, h) else chr(ord("a") + holders.index(owner)))
    return "".join(letters)


def entry(W: int) -> dict[str, Any]:
    """Return what the page knows of W workers."""
    return {"base": cqs.CyclicQuorumSet(W).base, "choices": {name: choices(W, name) for name in SEARCHED}}


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
