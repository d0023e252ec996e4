"""Checking a result after the fact: some of its rows are computed again in float64, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from array_api_compat import is_array_api_obj

from cqs.adversarial import border_rows, edge_rows
from cqs.checks import whole_number
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.masks import Mask
from cqs.oracle import EVALUATIONS, Deviation, Floats, Judgement, Rows, as_numpy, judge_out
from cqs.problem import AttentionProblem, dtype_name
from cqs.schedule import Plan
from cqs.scores import ALiBi, Scores, checked_sink_logits
from cqs.sources import Input, InputSource, open_inputs
from cqs.types import Array

__all__ = ["Verification", "verify_rows"]

_MOST_ROWS = 512  # of one head at a time
_FEW = 4096  # numbers, from which on fewer evaluations of the plain formula do: it is not exact in all by luck
_EVALUATIONS_OF_MANY = 4

Index = tuple[int, ...]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Verification(Judgement):
    """What `verify_rows` found; see `cqs.oracle.Judgement` for the rest.

    Parameters
    ----------
    n_rows : int
        Rows computed again, over all heads.
    """

    n_rows: int = 0

    @property
    def ulps(self) -> float | None:
        """The largest error in units in the last place of the largest element; None if that is 0."""
        return self.absolute.error / self.ulp if self.ulp else None


def verify_rows(
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    bias: Floats | ALiBi | None = None,
    score_mod: Callable[..., Floats] | None = None,
    sink_logits: Floats | None = None,
    n_rows: int | None = 64,
    seed: int = 0,
    workers: int | None = None,
    plan: Plan | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Compute some rows of every head again, in float64 straight from the inputs, in about 100 MiB, and compare.

    Parameters
    ----------
    out : array or path, `(*B, H, T, E)`
        What is to be checked, of the inputs' type or that of their accumulators.
    q, k, v : array or path
        What it was computed from: as for `cqs.attention`. What is on disk is read block by block; arrays of other
        libraries than NumPy are read by NumPy, so tensors are to be on the CPU.
    scale, mask, is_causal, softcap, bias, score_mod, sink_logits
        As for `cqs.attention`; `score_mod` is called with NumPy arrays.
    n_rows : int or None
        Rows of each head: the first, the last, and others by the random `seed`, different in each head. None: all.
    seed : int
        Of the random rows.
    workers : int, optional
        W: the rows on both sides of the borders of W groups are checked, too; of 64 of them if there are more.
    plan : Plan, optional
        In place of `workers`: the borders are those of its tasks and kernel calls.
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
    ShapeError, DTypeError, OptionError, BackendError
        If the arrays do not fit each other, `n_rows` is less than 1, or an array is none that NumPy can read.
    SourceError
        If a file is damaged or not complete.

    Notes
    -----
    Rows around which what a mask shows begins or ends, such as the borders of documents, are always checked: up to 64
    of such places. Errors of a tile scheme are there and at the borders of groups: a tile missing, doubled, or cut one
    token off.
    """
    if n_rows is not None:
        n_rows = whole_number("n_rows", n_rows, 1, "64 rows find what is wrong throughout")
    if workers is not None:
        workers = whole_number("workers", workers, 1, "leave it out if the output was not made of tasks")
    if not isinstance(plan, Plan | None):
        raise OptionError.of("plan", "be a `Plan`", type(plan).__name__, "make one by `cqs.plan`")
    seed = whole_number("seed", seed, 0, "the rows that are drawn follow from it")
    if not callable(report):
        raise OptionError.of("report", "be a function of (heads done, heads in all)", repr(report), "leave it out")
    out, q, k, v = (_readable(name, x) for name, x in (("out", out), ("q", q), ("k", k), ("v", v)))
    bias = bias if bias is None or isinstance(bias, ALiBi) else _readable("bias", bias)
    sink_logits = None if sink_logits is None else _readable("sink_logits", sink_logits)
    with closing(open_inputs(q, k, v)) as source, closing(open_inputs(out, out, out)) as results:
        problem = AttentionProblem.of(source.q, source.k, source.v, mask=mask, is_causal=is_causal, scale=scale)
        _check(results.q, problem)
        like = np.empty(0)
        Scores.of(problem, like, softcap, bias, score_mod)  # which refuses what is wrong with them
        logits = None if sink_logits is None else checked_sink_logits(sink_logits, problem, like)
        check = _Check(problem, source, results.q, softcap, bias, score_mod, logits)
        borders = border_rows(problem.n_queries, workers, plan)
        rng = np.random.default_rng(seed)
        heads = list(np.ndindex(*problem.batch, problem.n_heads))
        found: list[Judgement] = []
        n_found = 0
        for n, head in enumerate(heads):
            special = np.union1d(borders, edge_rows(problem.mask.at(head), problem.n_queries, problem.n_keys))
            for rows in _chosen(problem.n_queries, n_rows, rng, special):
                found.append(check.judged(head, rows))
                n_found += len(rows)
            report(n + 1, len(heads))
    return _together(n_found, found)


def _readable(name: str, x: Any) -> Any:
    """Return an array as NumPy's, and what is on disk as it is; refuse plain numbers and lists of them."""
    is_plain = x is None or isinstance(x, bool | int | float | list | tuple)
    return as_numpy(name, x) if is_plain or is_array_api_obj(x) else x


def _check(out: Input, problem: AttentionProblem) -> None:
    allowed, remedy = sorted({problem.dtype, problem.accumulator_dtype}), "is it the output of these inputs?"
    if tuple(out.shape) != problem.out_shape:
        raise ShapeError.of("out", f"have the result's shape {problem.out_shape}", tuple(out.shape), remedy)
    if dtype_name(out) not in allowed:
        raise DTypeError.of("out", f"be of type {' or '.join(allowed)}", dtype_name(out), remedy)


def _chosen(T: int, n_rows: int | None, rng: "np.random.Generator", special: Numbers) -> Iterator[Numbers]:
    """Choose rows, in order, and yield them a few hundred at a time."""
    if n_rows is None or n_rows >= T:
        rows = np.arange(T)
    else:
        ends = [0, T - 1][:n_rows]
        drawn = 1 + rng.choice(T - 2, n_rows - len(ends), replace=False)
        rows = np.unique(np.concatenate([ends, drawn, special])).astype(np.int64)
    return (rows[first : first + _MOST_ROWS] for first in range(0, len(rows), _MOST_ROWS))


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """What is to be checked against what."""

    problem: AttentionProblem
    source: InputSource
    out: Input
    softcap: float | None
    bias: Floats | ALiBi | None
    score_mod: Callable[..., Floats] | None
    sink_logits: Floats | None  # (*B, H, 1)

    def judged(self, head: Index, numbers: Numbers) -> Judgement:
        """Judge some rows of one head; the worst element is given as an index of the whole output."""
        p, src = self.problem, self.source
        kv_head = (*head[:-1], head[-1] * p.n_kv_heads // p.n_heads)
        k, v = (cast(Floats, _Matrix(x, kv_head)) for x in (src.k, src.v))
        is_changed = self.softcap is not None or self.bias is not None or self.score_mod is not None
        rows = Rows(
            _read_rows(src.q, head, numbers),
            k,
            v,
            numbers,
            p.scale,
            p.mask.at(head),
            change=partial(self._changed, head, numbers) if is_changed else None,
            sink_logits=None if self.sink_logits is None else self.sink_logits[head][None],
        )
        return _judge(_read_rows(self.out, head, numbers), rows, (*head, numbers))

    def _changed(self, head: Index, numbers: Numbers, scores: Floats, keys: slice) -> Floats:
        """Apply softcap, bias and function as their formulas say."""
        p, dtype = self.problem, scores.dtype.type
        q_idx, k_idx = numbers[:, None], np.arange(keys.start, keys.stop)
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if isinstance(self.bias, ALiBi):
            scores = scores - dtype(self.bias.slopes[head[-1]]) * abs(q_idx + self.bias.offset - k_idx).astype(dtype)
        elif self.bias is not None:
            full = np.broadcast_to(self.bias, (*p.batch, p.n_heads, p.n_queries, p.n_keys))
            scores = scores + full[head][q_idx, k_idx].astype(dtype)
        if self.score_mod is not None:
            b = int(np.ravel_multi_index(head[:-1], p.batch)) if p.batch else 0
            scores = self.score_mod(scores, b, head[-1], q_idx, k_idx)
        return scores


@dataclass(frozen=True, slots=True, eq=False)
class _Matrix:
    """One head of keys or values, `(S, width)`, of which runs of rows are read when asked for."""

    whole: Input
    head: Index

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.whole.shape[-2:])

    def __getitem__(self, index: tuple[Any, ...]) -> Floats:
        _, rows, _ = index
        part: Floats = self.whole.read(self.head, rows.start, rows.stop)
        return part


def _read_rows(x: Input, head: Index, numbers: Numbers) -> Floats:
    """Read some rows of one head, `(len(numbers), width)`, as few runs."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = np.split(numbers, cuts)
    return np.concatenate([x.read(head, int(run[0]), int(run[-1]) + 1) for run in runs])


def _judge(out: Floats, rows: Rows, index: tuple[Any, ...]) -> Judgement:
    """Judge rows of the output, whose worst elements are given as indices of the whole."""
    exact, _, magnitudes = rows.exact()
    plain = rows.plain(EVALUATIONS if out.size < _FEW else _EVALUATIONS_OF_MANY)
    found = judge_out(out, exact, [formula for formula, _ in plain], magnitudes)

    def placed(measure: Deviation) -> Deviation:
        assert measure.worst is not None
        row, column = measure.worst
        return replace(measure, worst=(*index[:-1], int(index[-1][row]), column))

    n_unlike = found.n_unlike if rows.mask.hides_nothing else 0
    return replace(found, n_unlike=n_unlike, absolute=placed(found.absolute), relative=placed(found.relative))


def _together(n_rows: int, found: Sequence[Judgement]) -> Verification:
    return Verification(
        absolute=_largest([one.absolute for one in found]),
        relative=_largest([one.relative for one in found]),
        ulp=max((one.ulp for one in found), default=0.0),
        n_lost=sum(one.n_lost for one in found),
        n_unlike=sum(one.n_unlike for one in found),
        n_rows=n_rows,
    )


def _largest(found: Sequence[Deviation]) -> Deviation:
    if not found:  # there are no queries
        return Deviation(0.0, 0.0, 0.0, None)
    worst = max(found, key=lambda one: one.error)
    plain_error, granted = max(one.plain_error for one in found), max(one.granted for one in found)
    return replace(worst, plain_error=plain_error, granted=granted)
