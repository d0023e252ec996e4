"""Checking a result after the fact: some of its rows are computed again in float64, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.backend import single_threaded_blas
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.kernels.region import Region
from cqs.masks import Mask, NoMask
from cqs.problem import AttentionProblem, dtype_name
from cqs.testing import ULPS

__all__ = ["ULPS", "Verification", "verify_rows"]

_MOST_ROWS = 512  # of one head at a time
_AREA = 2 << 20  # elements of a block of scores, keys or values: 16 MiB in float64
_FEW = 4096  # numbers; on fewer, the plain formula may be nearly exact by luck

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_rows` found.

    Parameters
    ----------
    n_rows : int
        Rows computed again, over all heads.
    error, plain_error : float
        Largest absolute error against float64, and the largest of the plain softmax formula on the same rows.
    ulp : float
        One unit in the last place of the largest element of those rows, in the output's type.
    worst : tuple of int or None
        Where the largest error is: an index of the output.
    n_broken : int
        Elements that are not finite where they should be, or the other way round.
    """

    n_rows: int
    error: float
    plain_error: float
    ulp: float
    worst: tuple[int, ...] | None
    n_broken: int

    @property
    def bound(self) -> float:
        """The largest error that is allowed."""
        return 2 * self.plain_error + ULPS * self.ulp

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound and nothing is broken."""
        return self.error <= self.bound and self.n_broken == 0


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
        Whose rule is that of `cqs.testing`: at most twice the error of the plain formula in the accumulators' type,
        and 8 ulp. That formula is evaluated with the scale in the scores and in the queries, once as it is and once,
        on few numbers six times, with queries and weights that are off by less than rounding. Where float64 is not
        finite the output has to be the same, unless there is a mask: then nothing is asked of it there.

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
    found: list[Verification] = []
    for n, head in enumerate(heads):
        *batch, h = head
        kv_head = (*batch, h * problem.n_kv_heads // problem.n_heads)
        for rows in _chosen(problem.n_queries, n_rows, rng):
            computed = _Rows(q[head][rows], k[kv_head], v[kv_head], rows, problem)
            with single_threaded_blas():  # for such products the threads of BLAS cost more than they save
                found.append(_compare(out[head][rows], computed, (*head, rows), rng))
        report(n + 1, len(heads))
    return _together(found)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Some rows of one head: queries `(R, D)`, all keys `(S, D)` and values `(S, E)`, and which rows they are."""

    q: Floats
    k: Floats
    v: Floats
    rows: npt.NDArray[np.int64]
    problem: AttentionProblem

    def formula(self, sides: Sequence[tuple[Floats, float]], rng: np.random.Generator | None = None) -> list[Floats]:
        """Evaluate softmax(scale q k^T) v for several (q, scale), each in its q's type, with weights jittered by `rng`.

        The keys are read twice, for the rows' maxima and for the sums, so that nothing is ever rescaled.
        """
        tops = [np.full((len(self.rows), 1), -np.inf, q.dtype) for q, _ in sides]
        for _, scores in self._blocks():
            tops = [np.maximum(t, scores(*side).max(-1, keepdims=True)) for t, side in zip(tops, sides, strict=True)]
        tops = [np.where(top == -np.inf, 0, top) for top in tops]  # a row that sees no key: -inf - -inf is NaN
        totals = [np.zeros_like(top) for top in tops]
        sums = [np.zeros((len(self.rows), self.v.shape[-1]), q.dtype) for q, _ in sides]
        for keys, scores in self._blocks():
            for side, top, total, weighted in zip(sides, tops, totals, sums, strict=True):
                weights = np.exp(scores(*side) - top)
                weights = weights if rng is None else _jittered(weights, rng)
                total += weights.sum(-1, keepdims=True)
                weighted += weights @ self.v[keys].astype(top.dtype)
        return [weighted / np.where(total == 0, 1, total) for weighted, total in zip(sums, totals, strict=True)]

    def _blocks(self) -> Iterator[tuple[slice, Callable[[Floats, float], Floats]]]:
        """Yield runs of keys, and for each the function from (q, scale) to its scores."""
        ends = np.flatnonzero(np.diff(self.rows) != 1) + 1  # consecutive rows stay together
        queries = tuple(range(int(run[0]), int(run[-1]) + 1) for run in np.split(self.rows, ends))
        width = max(_AREA // max(len(self.rows), self.k.shape[-1], self.v.shape[-1]), 1)
        for start in range(0, len(self.k), width):
            keys = range(start, min(start + width, len(self.k)))
            yield slice(keys.start, keys.stop), partial(self._scores, Region(queries, (keys,), self.problem.mask))

    def _scores(self, region: Region, q: Floats, scale: float) -> Floats:
        (keys,) = region.keys
        scores: Floats = q.dtype.type(scale) * (q @ self.k[keys.start : keys.stop].astype(q.dtype).T)
        region.hide(np, scores, range(len(q)), [range(len(keys))])
        return scores


def _compare(out: Floats, computed: _Rows, index: tuple[Any, ...], rng: np.random.Generator) -> Verification:
    """Compare rows of the output, and what the plain formula makes of them, with float64."""
    problem, dtype = computed.problem, np.dtype(computed.problem.accumulator_dtype)
    better: Any = np.float64 if dtype == np.float32 else np.longdouble  # which may be float64, and is slow
    q, scale = computed.q.astype(dtype), problem.scale
    with np.errstate(all="ignore"):
        (exact,) = computed.formula([(q.astype(better), scale)])
        sides = [(q, scale), (q * dtype.type(scale), 1.0)]
        plain = computed.formula(sides)
        for _ in range(6 if out.size < _FEW else 1):
            plain += computed.formula([(_jittered(x, rng), factor) for x, factor in sides], rng)
        plain, got = [p.astype(out.dtype).astype(better) for p in plain], out.astype(better)
        finite = np.isfinite(exact) & np.isfinite(plain[0])
        error, *plain_errors = (np.where(finite, abs(x - exact), 0) for x in (got, *plain))
    hopeless = ~np.isfinite(exact) if isinstance(problem.mask, NoMask) else np.zeros_like(finite)
    broken = (finite & ~np.isfinite(got)) | (hopeless & (got != exact) & ~(np.isnan(got) & np.isnan(exact)))
    error = np.where(np.isfinite(error), error, 0)
    eps = 2.0**-7 if out.dtype.name == "bfloat16" else float(np.finfo(out.dtype).eps)
    row, column = np.unravel_index(int(error.argmax()), error.shape)
    return Verification(
        n_rows=len(out),
        error=float(error.max()),
        plain_error=max(float(e.max(initial=0, where=np.isfinite(e))) for e in plain_errors),
        ulp=eps * float(abs(exact).max(initial=0, where=finite)),
        worst=(*index[:-1], int(index[-1][row]), int(column)),
        n_broken=int(broken.sum()),
    )


def _jittered(x: Floats, rng: np.random.Generator) -> Floats:
    """Change every element by half an ulp at most."""
    return x * (1 + np.finfo(x.dtype).eps / 2 * rng.uniform(-1, 1, x.shape)).astype(x.dtype)


def _together(found: Sequence[Verification]) -> Verification:
    if not found:  # there are no queries
        return Verification(0, 0.0, 0.0, 0.0, None, 0)
    worst = max(found, key=lambda one: one.error)
    return replace(
        worst,
        n_rows=sum(one.n_rows for one in found),
        plain_error=max(one.plain_error for one in found),
        ulp=max(one.ulp for one in found),
        n_broken=sum(one.n_broken for one in found),
    )
