"""`cqs.attention_map`: how much queries attend to keys, at any resolution."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from typing import Any, Never, TypeAlias

import cqs.api
from cqs.backend import borrowed, dtype_of, is_cupy, namespace_of, refuse_gradients
from cqs.checks import check_listener
from cqs.engines import Engine, as_engine, concurrency
from cqs.errors import BackendError, DTypeError, ShapeError, refuse_unknown
from cqs.events import Emit
from cqs.maps.adder import MapAdder
from cqs.maps.bins import Bins
from cqs.maps.worker import MapWorker
from cqs.masks import Mask
from cqs.problem import AttentionProblem, dtype_name
from cqs.schedule import Scheduler, Setting, planned
from cqs.scores import ALiBi, Scores, checked_sink_logits
from cqs.sources import ArrayInput, like_of, open_input
from cqs.types import Array, Namespace

__all__ = ["attention_map"]

Given: TypeAlias = Array | str | os.PathLike[str]


def attention_map(
    q: Given,
    k: Given,
    lse: Array | None = None,
    *,
    rows: int | Sequence[int] = 256,
    columns: int | Sequence[int] = 256,
    workers: int | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    score_mod: Callable[..., Array] | None = None,
    sink_logits: Array | None = None,
    engine: Engine | Executor | None = None,
    strategy: str = "auto",
    on_event: Emit = None,
    **unknown: Never,
) -> Array:
    r"""Return how much the queries of each bin attend to the keys of each bin: the weights, at a resolution of choice.

    Queries and keys are cut into bins of consecutive tokens. Of each two bins the map has the weight that a query of
    the one gives to the keys of the other, all together, on average. Exact, in the same independent tasks as attention;
    no T x S array is ever held, but for a map that is one.

    Parameters
    ----------
    q, k : array or path, `(*B, H, T, D)` and `(*B, G, S, D)`
        Queries and keys, as for `cqs.attention`.
    lse : array, `(*B, H, T)`, optional
        The log-sum-exp that `cqs.attention` returned for them with `return_lse=True`; computed here, by attention
        without values, if it is left out.
    rows, columns : int or sequence of int
        How many bins queries and keys are cut into, of sizes that differ by at most 1, or where each begins, such as
        sentences, from 0 on. With T and S, or more, a map has every single weight.
    workers : int, optional
        W, the number of tasks; by default as for `cqs.attention`.
    mask, is_causal, scale, softcap, bias, score_mod, sink_logits
        As for `cqs.attention`. Sink logits are in lse, and matter only where that is computed here; what they take of a
        row is missing in its sum.
    engine : Engine or Executor, optional
        What runs the tasks; by default this machine's threads.
    strategy : {"auto", "cqs", "tiles", "ring", "tree"}
        How scores are cut into tasks.
    on_event : callable, optional
        Told of every `cqs.events.Event`.

    Returns
    -------
    array, `(*B, H, rows, columns)`
        float32, or float64 for float64, of the library of q and k. Each row sums to 1, but for what sinks take, and
        queries that see no key. Its mean over the rows, weighted by their sizes, is the attention that keys receive.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, QuorumError
        Before anything is computed.

    Notes
    -----
    *Cost.* 2 T S D operations and T S exponentials a head, half if causal; by array code, whose blocks of scores take
    some MiB a thread. Sums are kept in float64: 8 bytes for each number of the map, and for each task under way those
    of its bins.
    *Determinism.* One plan gives the same map bit for bit, for any number of threads and order of tasks.

    Examples
    --------
    >>> import numpy as np, cqs
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 1000, 16), dtype=np.float32)
    >>> found = cqs.attention_map(q, k, rows=10, columns=10, is_causal=True)
    >>> found.shape, bool(np.allclose(found.sum(axis=-1), 1)), float(found[0, 3, 4])
    ((4, 10, 10), True, 0.0)
    """
    refuse_unknown(attention_map, unknown)
    check_listener("on_event", on_event)
    refuse_gradients(q=q, k=k, lse=lse, bias=bias, sink_logits=sink_logits)
    rule: dict[str, Any] = {"mask": mask, "is_causal": is_causal, "scale": scale}
    (q, k, lse, bias, sink_logits, _), hand_out = borrowed(  # a function of the caller's is to be called with tensors
        by_cupy=False, by_numpy=score_mod is None, q=q, k=k, lse=lse, bias=bias, sink_logits=sink_logits, out=None
    )
    with ExitStack() as held:
        inputs = {name: held.enter_context(closing(open_input(name, x))) for name, x in (("q", q), ("k", k))}
        problem = AttentionProblem.of(inputs["q"], inputs["k"], inputs["k"], **rule)
        like, xp = like_of(inputs["q"]), namespace_of(**{name: like_of(x) for name, x in inputs.items()})
        bins = Bins.of("rows", rows, problem.n_queries), Bins.of("columns", columns, problem.n_keys)
        scores = Scores.of(problem, like, softcap, bias, score_mod)
        if sink_logits is not None:
            checked_sink_logits(sink_logits, problem, like)
        how: dict[str, Any] = {"workers": workers, "engine": engine, "strategy": strategy}
        if lse is None:
            v = _no_values(problem, xp, like)
            changes = {"softcap": softcap, "bias": bias, "score_mod": score_mod, "sink_logits": sink_logits}
            _, lse = cqs.api.attention(q, k, v, return_lse=True, **rule, **changes, **how)
        _check_lse(problem, like, lse)
        runner = as_engine(engine)
        scheduler = Scheduler(workers, strategy, setting=_setting(runner, xp, scores is not None))
        plan = planned(scheduler, problem)
        adder = MapAdder(plan, bins)
        of_rows = ArrayInput(lse[..., None])
        worker = MapWorker(problem, inputs["q"], inputs["k"], of_rows, bins, scores, plan.grain, on_event)
        run: Any = runner.run  # an engine passes on whatever its worker gives
        run(plan, worker, adder.add)
        dtype = dtype_of(xp, problem.accumulator_dtype)
        return hand_out(xp.asarray(adder.result(), dtype=dtype, device=like.device))


def _no_values(problem: AttentionProblem, xp: Namespace, like: Array) -> Array:
    """Return values that cost little, to compute attention without."""
    shape, dtype = (*problem.input_shapes["k"][:-1], 1), dtype_of(xp, problem.dtype)
    zeros = xp.zeros((1,) * len(shape), dtype=dtype, device=like.device)
    return xp.broadcast_to(zeros, shape)


def _setting(engine: Engine, xp: Namespace, has_scores: bool) -> Setting:
    """Return what the plan is to run on."""
    threads, in_flight = (1, 1) if is_cupy(xp) else concurrency(engine, needs_little=False)  # a GPU is one thread's
    return Setting(kernel="blockwise", threads=threads, in_flight=in_flight, has_scores=has_scores)


def _check_lse(problem: AttentionProblem, like: Array, lse: Array) -> None:
    if not hasattr(lse, "shape") or not hasattr(lse, "dtype"):
        rule, remedy = "be an array", "take it from `cqs.attention(..., return_lse=True)`, or leave it out"
        raise BackendError.of("lse", rule, type(lse).__name__, remedy)
    if tuple(lse.shape) != problem.lse_shape:
        remedy = "give what `cqs.attention` returned"
        raise ShapeError.of("lse", f"have shape {problem.lse_shape}", tuple(lse.shape), remedy)
    if dtype_name(lse) != problem.accumulator_dtype:
        raise DTypeError.of("lse", f"be of type {problem.accumulator_dtype}", dtype_name(lse), "convert it first")
    namespace_of(q=like, lse=lse)
