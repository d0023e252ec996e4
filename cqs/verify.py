"""Checking a result after the fact: some of its rows are computed again in float64, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.masks import Mask
from cqs.oracle import EVALUATIONS, ULPS, Floats, Judgement, Rows, judge
from cqs.problem import AttentionProblem, dtype_name

__all__ = ["ULPS", "Verification", "verify_rows"]

_MOST_ROWS = 512  # of one head at a time
_FEW = 4096  # numbers, from which on fewer evaluations of the plain formula do: it is not exact in all by luck
_EVALUATIONS_OF_MANY = 4


@dataclass(frozen=True, slots=True)
class Verification(Judgement):
    """What `verify_rows` found; see `cqs.oracle.Judgement` for the rest.

    Parameters
    ----------
    n_rows : int
        Rows computed again, over all heads.
    """

    n_rows: int = 0


def verify_rows(
    out: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: float | None = None,
    mask: Mask | None = None,
    is_causal: bool = False,
    n_rows: int | None = 64,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compute some rows of every head again, in float64 straight from the inputs, in about 100 MiB, and compare.

    Parameters
    ----------
    out : array, `(*B, H, T, E)`
        What is to be checked, of the inputs' type or that of their accumulators.
    q, k, v : array
        What it was computed from; memory maps are read block by block.
    scale, mask, is_causal
        As for `cqs.attention`.
    n_rows : int or None
        Rows of each head: the first, the last, and others by the random `seed`, different in each head. None: all.
    report : function
        Called with (heads done, heads in all).

    Returns
    -------
    Verification
        Whose rule is that of `cqs.testing.assert_exact`, with the plain formula evaluated four times where the rows of
        a head have many numbers. Where float64 is not finite the output has to be the same, unless there is a mask:
        then nothing is asked of it there.

    Raises
    ------
    ShapeError, DTypeError, OptionError
        If the arrays do not fit each other, or `n_rows` is less than 1.
    """
    problem = AttentionProblem.of(q, k, v, mask=mask, is_causal=is_causal, scale=scale)
    _check(out, problem)
    if n_rows is not None and n_rows < 1:
        raise OptionError.of("n_rows", "be at least 1", n_rows, "64 rows find what is wrong throughout")
    rng = np.random.default_rng(seed)
    heads = list(np.ndindex(*problem.batch, problem.n_heads))
    found: list[Judgement] = []
    n_found = 0
    for n, head in enumerate(heads):
        *batch, h = head
        kv_head = (*batch, h * problem.n_kv_heads // problem.n_heads)
        for rows in _chosen(problem.n_queries, n_rows, rng):
            computed = Rows(q[head][rows], k[kv_head], v[kv_head], rows, problem.scale, problem.mask.at(head))
            found.append(_judge(out[head][rows], computed, (*head, rows)))
            n_found += len(rows)
        report(n + 1, len(heads))
    return _together(n_found, found)


def _check(out: Floats, problem: AttentionProblem) -> None:
    allowed, remedy = sorted({problem.dtype, problem.accumulator_dtype}), "is it the output of these inputs?"
    if tuple(out.shape) != problem.out_shape:
        raise ShapeError.of("out", f"have the result's shape {problem.out_shape}", tuple(out.shape), remedy)
    if dtype_name(out) not in allowed:
        raise DTypeError.of("out", f"be of type {' or '.join(allowed)}", dtype_name(out), remedy)


def _chosen(T: int, n_rows: int | None, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Choose rows, in order, and yield them a few hundred at a time."""
    if n_rows is None or n_rows >= T:
        rows = np.arange(T)
    else:
        ends = [0, T - 1][:n_rows]
        rows = np.sort(np.append(ends, 1 + rng.choice(T - 2, n_rows - len(ends), replace=False)))
    return (rows[first : first + _MOST_ROWS] for first in range(0, len(rows), _MOST_ROWS))


def _judge(out: Floats, rows: Rows, index: tuple[Any, ...]) -> Judgement:
    """Judge rows of the output, whose worst element is given as an index of the whole."""
    exact, _, least = rows.exact()
    plain = rows.plain(EVALUATIONS if out.size < _FEW else _EVALUATIONS_OF_MANY)
    found = judge(out, exact, [formula for formula, _ in plain], least)
    assert found.worst is not None
    row, column = found.worst
    n_unlike = found.n_unlike if rows.mask.hides_nothing else 0
    return replace(found, n_unlike=n_unlike, worst=(*index[:-1], int(index[-1][row]), column))


def _together(n_rows: int, found: Sequence[Judgement]) -> Verification:
    if not found:  # there are no queries
        return Verification(0.0, 0.0, 0.0, 0.0, None, 0, 0)
    worst = max(found, key=lambda one: one.error)
    return Verification(
        error=worst.error,
        plain_error=max(one.plain_error for one in found),
        largest=max(one.largest for one in found),
        eps=worst.eps,
        worst=worst.worst,
        n_lost=sum(one.n_lost for one in found),
        n_unlike=sum(one.n_unlike for one in found),
        n_rows=n_rows,
    )
