"""What the compiled kernel is told of changes of scores: numbers, and where a bias is."""

from math import prod
from typing import NamedTuple

import numpy as np

from cqs.kernels.numba_tables import FLOAT64, KINDS
from cqs.kernels.region import Region
from cqs.problem import dtype_name
from cqs.scores import ALiBi, Scores

__all__ = ["Change", "change_of", "is_compiled"]

_KINDS = KINDS | {"float64": FLOAT64}  # types of a bias
_MOST_CAP = 2.0**60  # beyond, a quotient of scores and the cap may leave the range of float32; its inverse likewise


class Change(NamedTuple):
    """What is done to the scores of one call."""

    is_made: bool  # or products are weighed as they are
    factor: np.float32  # what products are multiplied by, to be scores
    cap: np.float32  # 0 for none
    slope: np.float32  # of what is subtracted, by the distance of query and key; 0 for nothing
    offset: int  # how many tokens the first query is after the first key
    bias: int  # address of what is added for the first query and key; 0 for nothing
    bias_row: int  # bytes from query to query, 0 if they are alike
    bias_item: int  # bytes from key to key
    bias_kind: int  # its type


def is_compiled(region: Region | None) -> bool:
    """Return whether compiled loops can do what a call does to scores, which all of its heads have in common.

    Not so are a `score_mod`, soft caps near the ends of float32, what differs between heads, a bias of another library,
    and one that has no number for some of the region, which an address would not notice.
    """
    scores = None if region is None else region.scores
    if region is None or scores is None:
        return True
    if scores.score_mod is not None or prod(scores.lead) != 1:
        return False
    if scores.softcap is not None and not 1 / _MOST_CAP <= scores.softcap <= _MOST_CAP:
        return False
    if scores.bias is None or isinstance(scores.bias, ALiBi):
        return True
    ends = (max(run.stop for run in runs) for runs in (region.queries, region.keys))
    return isinstance(scores.bias, np.ndarray) and all(
        n == 1 or n >= end for n, end in zip(scores.bias.shape[-2:], ends, strict=True)
    )


def change_of(scores: Scores | None, factor: np.float32) -> Change:
    """Return what is done to scores.

    Parameters
    ----------
    scores : Scores or None
        As `is_compiled` allows.
    factor : float32
        What products are multiplied by, to be scores.
    """
    plain = Change(scores is not None, factor, np.float32(0), np.float32(0), 0, 0, 0, 0, 0)
    if scores is None:
        return plain
    bias, capped = scores.bias, plain._replace(cap=np.float32(scores.softcap or 0))
    if bias is None:
        return capped
    if isinstance(bias, ALiBi):
        return capped._replace(slope=np.float32(bias.slopes[0]), offset=bias.offset)
    row, item = (stride if n > 1 else 0 for n, stride in zip(bias.shape[-2:], bias.strides[-2:], strict=True))
    address, kind = bias.__array_interface__["data"][0], _KINDS[dtype_name(bias)]
    return capped._replace(bias=address, bias_row=row, bias_item=item, bias_kind=kind)
