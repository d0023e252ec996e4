"""`cqs.attention_backward`: the gradients of attention."""

import os
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from typing import Any, Literal, Never, TypeAlias, Unpack, overload

from cqs.backend import borrowed, is_cupy, is_numpy, namespace_of, refuse_gradients
from cqs.backward.adder import GradientAdder
from cqs.backward.bias import BiasShape
from cqs.backward.budget import plan_within
from cqs.backward.gradients import Gradients, GradientsWithBias
from cqs.backward.heads import Differentiate, differentiate_heads
from cqs.backward.numba import differentiate_compiled
from cqs.backward.source import GradientSource
from cqs.backward.worker import GradientWorker
from cqs.checks import check_listener, true_or_false
from cqs.engines import Engine, as_engine, concurrency
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError, refuse_unknown
from cqs.events import Emit
from cqs.kernels.numba_modules import missing
from cqs.masks import Mask
from cqs.options import Options
from cqs.problem import AttentionProblem, dtype_name
from cqs.schedule import Scheduler, Setting, planned
from cqs.scores import ALiBi, Scores
from cqs.sources import ArrayInput, Input, like_of, open_input, open_inputs
from cqs.types import Array, Namespace

__all__ = ["attention_backward"]

_KERNELS: dict[str, Differentiate] = {"numba": differentiate_compiled, "blockwise": differentiate_heads}
Given: TypeAlias = Array | str | os.PathLike[str]


@overload
def attention_backward(
    dout: Given,
    q: Given,
    k: Given,
    v: Given,
    out: Given,
    lse: Array,
    *,
    return_dbias: Literal[False] = ...,
    **options: Unpack[Options],
) -> Gradients: ...
@overload
def attention_backward(
    dout: Given,
    q: Given,
    k: Given,
    v: Given,
    out: Given,
    lse: Array,
    *,
    return_dbias: Literal[True],
    **options: Unpack[Options],
) -> GradientsWithBias: ...
@overload
def attention_backward(
    dout: Given,
    q: Given,
    k: Given,
    v: Given,
    out: Given,
    lse: Array,
    *,
    return_dbias: bool,
    **options: Unpack[Options],
) -> Gradients | GradientsWithBias: ...
def attention_backward(
    dout: Given,
    q: Given,
    k: Given,
    v: Given,
    out: Given,
    lse: Array,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    kernel: str = "auto",
    engine: Engine | Executor | None = None,
    strategy: str = "auto",
    return_dbias: bool = False,
    on_event: Emit = None,
    **unknown: Never,
) -> Gradients | GradientsWithBias:
    r"""Return the gradients of q, k and v, given that of the output: the backward pass of `cqs.attention`.

    Exact, in the same independent tasks, of which each needs nothing but its own queries, keys, values, and of its
    queries the output, its gradient and the log-sum-exp. No T x S array is ever held.

    Parameters
    ----------
    dout : array or path, `(*B, H, T, E)`
        The gradient of what is minimised with respect to the output, of q's type or the accumulators'.
    q, k, v : array or path, `(*B, H, T, D)`, `(*B, G, S, D)` and `(*B, G, S, E)`
        What `cqs.attention` was given.
    out : array or path, `(*B, H, T, E)`
    lse : array, `(*B, H, T)`
        What it returned with `return_lse=True`. Sink logits are in lse.
    workers : int, optional
        W, the number of tasks; by default as for `cqs.attention`, whose W need not be the same.
    memory : int or str, optional
        The most bytes to hold beyond the caller's arrays, as in "2 GiB": gradients, results of tasks, what is read
        from files, blocks of scores. Workers, heads of a task, blocks and threads are chosen to fit.
    mask, is_causal, scale, softcap, bias
        What `cqs.attention` was given. Functions (`score_mod`) have no gradient that is known here; for that of sink
        logits there is `cqs.backward.sink_logits_backward`.
    kernel : {"auto", "numba", "blockwise"}
        What computes: compiled loops, for arrays of NumPy and tensors in main memory; or array code of any library.
        "auto" picks the former where it can, if Numba is installed.
    engine : Engine or Executor, optional
        What runs the tasks; by default this machine's threads.
    strategy : {"auto", "cqs", "tiles", "ring", "tree"}
        How scores are cut into tasks.
    return_dbias : bool
        Whether to return the gradient of the bias, too, which has to be an array. Heads that share a bias are then one
        thread's in each task.
    on_event : callable, optional
        Told of every `cqs.events.Event`.

    Returns
    -------
    Gradients or GradientsWithBias
        `dq`, `dk`, `dv`, of the shapes and the type of q, k and v, and of their library; with `return_dbias` also
        `dbias`, of the shape and type of the bias: over axes of it that are 1 the sum of what all of its numbers'
        places get.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, BudgetError, QuorumError
        Before anything is allocated. With `return_dbias` a bias that is no array is an OptionError.

    Notes
    -----
    *Cost.* 2 T S (3 D + 2 E) operations a head, half if causal. Gradients are summed up in float32, or float64 for
    float64, and beyond them each thread holds the results of two tasks, about (T + S) D + S E numbers over sqrt(W), and
    some blocks of scores; or what a budget says. The gradient of a bias takes as many numbers as that has, and in each
    task the share of its tiles.
    *Numerics.* What is hidden stays hidden: NaN in a key reaches the gradients of no query that does not see it.
    *Determinism.* One plan gives the same gradients bit for bit, for any number of threads and order of tasks.

    References
    ----------
    Dao et al., *FlashAttention*, arXiv 2205.14135, algorithm 4.

    Examples
    --------
    >>> import numpy as np, cqs
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 300, 8))
    >>> out, lse = cqs.attention(q, k, v, is_causal=True, return_lse=True)
    >>> dq, dk, dv = cqs.attention_backward(dout, q, k, v, out, lse, is_causal=True)
    >>> step = 1e-6 * np.random.default_rng(1).standard_normal(q.shape)
    >>> rise = (dout * (cqs.attention(q + step, k, v, is_causal=True) - out)).sum()
    >>> bool(np.isclose(rise, (dq * step).sum(), rtol=1e-3))
    True
    """
    refuse_unknown(attention_backward, unknown)
    check_listener("on_event", on_event)
    refuse_gradients(dout=dout, q=q, k=k, v=v, out=out, lse=lse, bias=bias)
    is_asked = true_or_false("return_dbias", return_dbias, "True asks for the gradient of `bias`")
    if is_asked and not hasattr(bias, "shape"):
        rule, remedy = "be given with a `bias` that is an array", "leave it out, or give such a bias"
        raise OptionError.of("return_dbias", rule, f"bias={bias!r}", remedy)
    (q, k, v, dout, lse, bias, out), hand_out = borrowed(
        by_cupy=False, by_numpy=kernel in ("auto", "numba"), q=q, k=k, v=v, dout=dout, lse=lse, bias=bias, out=out
    )
    with ExitStack() as held:
        inputs = held.enter_context(closing(open_inputs(q, k, v)))
        opened = {name: held.enter_context(closing(open_input(name, x))) for name, x in (("dout", dout), ("out", out))}
        problem = AttentionProblem.of(inputs.q, inputs.k, inputs.v, mask=mask, is_causal=is_causal, scale=scale)
        like = like_of(inputs.q)
        _check_forward(problem, like, opened, lse)
        scores = Scores.of(problem, like, softcap, bias)
        name = _kernel(kernel, namespace_of(q=like))
        runner = as_engine(engine)
        scheduler = Scheduler(workers, strategy, memory, _setting(runner, like, scores is not None, name))
        read = [inputs.q, inputs.k, inputs.v, *opened.values()]
        shape = BiasShape.of(bias, problem) if is_asked else None
        plan = planned(scheduler, problem) if memory is None else plan_within(problem, scheduler, read, shape)
        source = GradientSource(problem, inputs, **opened, lse=ArrayInput(lse[..., None]))
        worker = GradientWorker(problem, source, _KERNELS[name], scores, plan.grain, on_event, bias=shape)
        adder = GradientAdder(plan, like, bias if is_asked else None)
        run: Any = runner.run  # an engine passes on whatever its worker gives
        run(plan, worker, adder.add)
        found = adder.result()
        return type(found)(*map(hand_out, found))


def _kernel(name: str, xp: Namespace) -> str:
    """Return what computes arrays of a library, where "auto" was asked for or it by name."""
    if name != "auto" and (not isinstance(name, str) or name not in _KERNELS):
        rule, remedy = f"be auto or one of {', '.join(_KERNELS)}", "'auto' picks the fastest"
        raise OptionError.of("kernel", rule, repr(name), remedy)
    lack = missing() if is_numpy(xp) else "it takes arrays of NumPy, and tensors in main memory"
    if name == "numba" and lack is not None:
        raise OptionError.of("kernel", "be able to do what is asked", f"'numba': {lack}", "use kernel='auto'")
    return "blockwise" if name == "blockwise" or lack is not None else "numba"


def _setting(engine: Engine, like: Array, has_scores: bool, kernel: str) -> Setting:
    """Return what the plan is to run on."""
    threads, in_flight = concurrency(engine, needs_little=False)
    if is_cupy(namespace_of(q=like)):
        threads = in_flight = 1  # a GPU is one thread's
    return Setting(kernel=kernel, threads=threads, in_flight=in_flight, has_scores=has_scores)


def _check_forward(problem: AttentionProblem, like: Array, opened: dict[str, Input], lse: Array) -> None:
    """Refuse what cannot be output, gradient and log-sum-exp of a problem."""
    if not hasattr(lse, "shape") or not hasattr(lse, "dtype"):
        rule, remedy = "be an array", "take it from `cqs.attention(..., return_lse=True)`"
        raise BackendError.of("lse", rule, type(lse).__name__, remedy)
    allowed = sorted({problem.dtype, problem.accumulator_dtype})
    for name, x, shape, dtypes in (
        ("dout", opened["dout"], problem.out_shape, allowed),
        ("out", opened["out"], problem.out_shape, allowed),
        ("lse", lse, problem.lse_shape, [problem.accumulator_dtype]),
    ):
        if tuple(x.shape) != shape:
            raise ShapeError.of(name, f"have shape {shape}", tuple(x.shape), "give what `cqs.attention` returned")
        if dtype_name(x) not in dtypes:
            raise DTypeError.of(name, f"be of type {' or '.join(dtypes)}", dtype_name(x), "convert it first")
    namespace_of(q=like, **{name: like_of(x) for name, x in opened.items()}, lse=lse)
