"""The library's two calls: `attention`, and `plan`, which says what `attention` would do."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, Never, overload

from cqs.backend import namespace_of, refuse_gradients
from cqs.engines import Engine, as_engine
from cqs.errors import refuse_unknown
from cqs.kernels import choose_kernel
from cqs.masks import Mask
from cqs.problem import AttentionProblem
from cqs.progress import Progress, reporting
from cqs.schedule import Plan, Scheduler
from cqs.scores import ALiBi, Scores, checked_sink_logits
from cqs.sources import ArraySource, allocate_out, check_out
from cqs.tiler import Tiler
from cqs.types import Array
from cqs.worker import TaskResult, Worker

__all__ = ["attention", "plan"]


@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    workers: int | None = ...,
    mask: Mask | None = ...,
    is_causal: bool = ...,
    scale: float | None = ...,
    softcap: float | None = ...,
    bias: Array | ALiBi | None = ...,
    score_mod: Callable[..., Array] | None = ...,
    sink_logits: Array | None = ...,
    kernel: str = ...,
    engine: Engine | Executor | None = ...,
    strategy: str = ...,
    return_lse: Literal[False] = ...,
    out: Array | None = ...,
    progress: Progress = ...,
) -> Array: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    workers: int | None = ...,
    mask: Mask | None = ...,
    is_causal: bool = ...,
    scale: float | None = ...,
    softcap: float | None = ...,
    bias: Array | ALiBi | None = ...,
    score_mod: Callable[..., Array] | None = ...,
    sink_logits: Array | None = ...,
    kernel: str = ...,
    engine: Engine | Executor | None = ...,
    strategy: str = ...,
    return_lse: Literal[True],
    out: Array | None = ...,
    progress: Progress = ...,
) -> tuple[Array, Array]: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    workers: int | None = None,
    mask: Mask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    score_mod: Callable[..., Array] | None = None,
    sink_logits: Array | None = None,
    kernel: str = "auto",
    engine: Engine | Executor | None = None,
    strategy: str = "auto",
    return_lse: bool = False,
    out: Array | None = None,
    progress: Progress = None,
    **unknown: Never,
) -> Array | tuple[Array, Array]:
    r"""Exact softmax attention, :math:`\mathrm{softmax}(\mathrm{scale} \cdot q k^\top)\, v`, in independent tasks.

    Parameters
    ----------
    q : array, `(*B, H, T, D)`
        Queries: float16, bfloat16, float32 or float64, of NumPy, torch, or another array-API library. NumPy arrays may
        have any strides and be read-only.
    k, v : array, `(*B, G, S, D)` and `(*B, G, S, E)`
        Keys and values, of the library, device and type of q. H is a multiple of G: heads h*H/G to (h+1)*H/G - 1
        share key head h (grouped-query attention). E may differ from D, and S from T.
    workers : int, optional
        W, the number of tasks. By default the smallest perfect modulus (1, 3, 7, 13, 21, 31, ...) with a task for
        each CPU, less for short sequences; see `cqs.default_workers`. May exceed T. The result is the same
        to rounding for every W.
    mask : Mask or array of bool, optional
        What each query sees: a rule such as `cqs.masks.SlidingWindow(1024)`, or an array that broadcasts to
        `(*B, H, T, S)`, True where the query sees the key. By default everything.
    is_causal : bool
        Query i sees keys j <= i, aligned at the top left as in PyTorch.
    scale : float, optional
        What scores are multiplied by; by default `1 / sqrt(D)`.
    softcap : float, optional
        c > 0: scores become `c * tanh(score / c)`.
    bias : array or ALiBi, optional
        What is added to scores: numbers that broadcast to `(*B, H, T, S)`, or `cqs.scores.ALiBi(slopes)`.
    score_mod : function, optional
        Of (scores, b, h, q_idx, k_idx), returns new scores, as in PyTorch's FlexAttention. The order is scale, softcap,
        bias, score_mod, mask. What differs between heads is computed head by head.
    sink_logits : array, optional
        Of a shape that broadcasts to `(*B, H)`: a score that takes its share of each query's softmax and gives
        nothing, as in GPT-OSS. It counts in lse.
    kernel : {"auto", "numpy", "blockwise", "reference"}
        "auto" takes the fastest that takes the arrays: "numpy" for NumPy, else "blockwise".
    engine : Engine or Executor, optional
        What runs the tasks; by default this machine's threads, `cqs.engines.LocalEngine()`.
    strategy : {"auto", "cqs", "tiles"}
        How scores are cut into tasks: by a cyclic quorum set (T = S only), or by a grid. "auto" takes "cqs" if T = S.
    return_lse : bool
        Whether to return the log-sum-exp as well.
    out : array, `(*B, H, T, E)`, optional
        Where to write the output, of q's type, or float32 for float16 and bfloat16 inputs, which then saves
        the accumulator. Its contents are undefined if the call fails.
    progress : bool or callable, optional
        True for a bar in the terminal, or a function called with (tasks done, tasks in all).

    Returns
    -------
    out : array, `(*B, H, T, E)`
        In q's type, or `out` itself. A query that sees no key gets 0.
    lse : array, `(*B, H, T)`
        Only with `return_lse=True`: natural log of the sum of exponentials of the scores, in float32, or
        float64 for float64 inputs; -inf for a query that sees no key.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, QuorumError
        All of them `CQSError`, before anything is allocated: which argument, which rule, what it was, what to do.

    Notes
    -----
    *Cost.* 2 T S (D + E) operations a head, half if causal. Beyond the output, each thread holds the result of one
    task, about T E / sqrt(W) a head, and at most 16 MiB; float16 and bfloat16 output takes an accumulator in float32.
    *Numerics.* Scores and sums are kept in float32, float64 for float64. NaN and infinity in the inputs come out as in
    PyTorch: a NaN in a query spoils its row, one in a key every row that sees it; a score of +inf gives NaN. As
    there, NaN and infinity in a value may also reach rows that do not see its key, since 0 times infinity is NaN.
    *Determinism.* One plan gives the same output bit for bit, for any number of threads and order of tasks.

    Examples
    --------
    >>> import numpy as np, cqs
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((8, 1000, 64), dtype=np.float32) for _ in range(3))
    >>> cqs.attention(q, k, v, workers=7, is_causal=True).shape
    (8, 1000, 64)
    """
    refuse_unknown(attention, unknown)
    xp = namespace_of(q=q, k=k, v=v)
    refuse_gradients(q=q, k=k, v=v)
    problem = AttentionProblem.of(q, k, v, mask=mask, is_causal=is_causal, scale=scale)
    planned = Scheduler(workers=workers, strategy=strategy).plan(problem)
    scores = Scores.of(problem, q, softcap, bias, score_mod)
    logits = None if sink_logits is None else checked_sink_logits(sink_logits, problem, like=q)
    attend = choose_kernel(kernel, xp).attend
    runner = as_engine(engine)
    if out is None:
        out = allocate_out(problem, like=q)
    else:
        check_out(out, problem, q=q, k=k, v=v)

    worker = Worker(problem, ArraySource(q, k, v), attend, scores)
    tiler = Tiler(planned, out, logits)
    with reporting(progress) as report:

        def accept(result: TaskResult) -> None:
            tiler.add(result)
            report(tiler.n_added, len(planned))

        runner.run(planned, worker, accept)
    partial = tiler.result()
    return (partial.out, partial.lse) if return_lse else partial.out


@dataclass(frozen=True, slots=True)
class _Shaped:
    """The two facts of an array that planning needs."""

    shape: tuple[int, ...]
    dtype: str


def plan(
    q: Array | tuple[int, ...],
    k: Array | tuple[int, ...],
    v: Array | tuple[int, ...],
    *,
    workers: int | None = None,
    mask: Mask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    strategy: str = "auto",
    dtype: str = "float32",
    **unknown: Never,
) -> Plan:
    """Return the plan that `attention` would run, without running it or touching any data.

    Parameters
    ----------
    q, k, v : array or tuple of int
        Arrays, anything else with `shape` and `dtype`, or bare shapes.
    dtype : str
        The type of the elements, for bare shapes.
    workers, mask, is_causal, scale, strategy
        As in `attention`.

    Raises
    ------
    ShapeError, DTypeError, OptionError, QuorumError
        As `attention` would.

    Examples
    --------
    >>> import cqs
    >>> plan = cqs.plan(*[(8, 10_000, 64)] * 3, workers=7)
    >>> len(plan), plan.base, sum(plan.loads()) == 10_000**2
    (7, (0, 1, 3), True)
    """
    refuse_unknown(plan, unknown)
    shaped = [_Shaped(x, dtype) if isinstance(x, tuple) else x for x in (q, k, v)]
    problem = AttentionProblem.of(*shaped, mask=mask, is_causal=is_causal, scale=scale)
    return Scheduler(workers=workers, strategy=strategy).plan(problem)
