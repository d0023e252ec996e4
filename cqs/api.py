"""The library's two calls: `attention`, and `plan`, which says what `attention` would do."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Literal, Never, TypeAlias, Unpack, overload

from cqs.backend import Device
from cqs.call import finishing, ready
from cqs.checks import check_listener, true_or_false
from cqs.engines import Engine
from cqs.errors import BackendError, refuse_unknown
from cqs.events import Emit
from cqs.masks import Mask
from cqs.options import Options
from cqs.progress import Progress, reporting
from cqs.schedule import Plan
from cqs.scores import ALiBi
from cqs.sources import ShapeInput, Sink
from cqs.tiler import Tiler
from cqs.types import Array
from cqs.worker import TaskResult

__all__ = ["Input", "JobPath", "attention", "check_given", "plan"]

Input: TypeAlias = Array | str | os.PathLike[str]
Output: TypeAlias = Array | str | os.PathLike[str] | Sink | None
JobPath: TypeAlias = str | os.PathLike[str]


class _Options(Options, total=False):
    score_mod: Callable[..., Array] | None
    sink_logits: Array | None
    backend: Literal["numpy", "cupy"] | None
    devices: Sequence[int | Device] | None
    out: Output
    job: JobPath | None
    progress: Progress


@overload
def attention(
    q: Input, k: Input, v: Input, *, return_lse: Literal[False] = ..., **options: Unpack[_Options]
) -> Array: ...
@overload
def attention(
    q: Input, k: Input, v: Input, *, return_lse: Literal[True], **options: Unpack[_Options]
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: Input, k: Input, v: Input, *, return_lse: bool, **options: Unpack[_Options]
) -> Array | tuple[Array, Array]: ...
def attention(
    q: Input,
    k: Input,
    v: Input,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    score_mod: Callable[..., Array] | None = None,
    sink_logits: Array | None = None,
    backend: Literal["numpy", "cupy"] | None = None,
    devices: Sequence[int | Device] | None = None,
    kernel: str = "auto",
    engine: Engine | Executor | None = None,
    strategy: str = "auto",
    return_lse: bool = False,
    out: Output = None,
    job: JobPath | None = None,
    progress: Progress = None,
    on_event: Emit = None,
    **unknown: Never,
) -> Array | tuple[Array, Array]:
    r"""Exact softmax attention, :math:`\mathrm{softmax}(\mathrm{scale} \cdot q k^\top)\, v`, in independent tasks.

    Parameters
    ----------
    q : array or path, `(*B, H, T, D)`
        Queries: float16, bfloat16, float32 or float64, of NumPy, torch, or another array-API library; or the path of a
        `.npy` file or a Zarr array; or an array on disk, as of Zarr or h5py. NumPy arrays may have any strides and be
        read-only.
    k, v : array or path, `(*B, G, S, D)` and `(*B, G, S, E)`
        Keys and values, of the library, device and type of q. H is a multiple of G: heads h*H/G to (h+1)*H/G - 1
        share key head h (grouped-query attention). E may differ from D, and S from T.
    workers : int, optional
        W, the number of tasks. By default the smallest perfect modulus (1, 3, 7, 13, 21, 31, ...) with a task for
        each CPU, less for short sequences, see `cqs.default_workers`; for few queries of few heads against many keys,
        which are then cut, one for each CPU; for arrays on a GPU 1, and with `devices` what suits them. The result is
        the same to rounding for every W, which may exceed T; but beyond about T / 256 tasks are so small that more of
        them cost time.
    memory : int or str, optional
        The most bytes to hold beyond the caller's arrays, as in "256 MiB": inputs that are read from disk, partial
        results, kernels' blocks, the output if it is not given. Workers, blocks and threads are chosen to fit.
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
        bias, score_mod, mask. What differs between heads is computed head by head. It gets arrays of the library that
        computes: with `backend="cupy"` CuPy's, of torch tensors, too.
    sink_logits : array, optional
        Of a shape that broadcasts to `(*B, H)`: a score that takes its share of each query's softmax and gives
        nothing, as in GPT-OSS. It counts in lse.
    backend : {"numpy", "cupy"}, optional
        What computes; by default the inputs' own library. With "cupy", NumPy arrays and files are copied to a GPU part
        by part while it computes, and the result comes back; CuPy arrays stay where they are, and so do torch tensors
        on a CUDA device, which it takes and gives without a copy.
    devices : sequence of int or Device, optional
        Numbers of the GPUs for NumPy arrays and files, by default the first; each draws tasks and talks to no other.
        `memory` is then that of each, by default nine tenths of what is free.
    kernel : {"auto", "numba", "numpy", "cudnn", "gemm", "blockwise", "reference"}
        "auto" takes the first of these that can do what is asked: for NumPy arrays "numba", if Numba is installed,
        which is compiled and faster where sums are in float32 and no `score_mod` changes scores, and leaves the rest to
        "numpy"; without it "numpy"; the same for torch tensors in main memory, where they are, without a `score_mod`,
        which is given tensors; on GPUs "cudnn" for float16 and bfloat16, and "gemm"; else "blockwise". Printing a plan
        says which, and why not the others. The first call by "numba" takes half a second longer, and once, where it
        compiles for a processor, 15 to 20 seconds.
    engine : Engine or Executor, optional
        What runs the tasks; by default this machine's threads, `cqs.engines.LocalEngine()`.
    strategy : {"auto", "cqs", "tiles", "ring", "tree"}
        How scores are cut into tasks: by a cyclic quorum set (T = S only), or by a grid, which under a budget streams
        keys past queries that stay. "auto" takes "cqs" if T = S, and under a budget, if `workers` is free, what is
        predicted to be faster. "ring" and "tree" are there to compare with.
    return_lse : bool
        Whether to return the log-sum-exp as well.
    out : array or path, `(*B, H, T, E)`, optional
        Where to write the output, of q's type, or float32 for float16 and bfloat16 inputs, which then saves
        the accumulator. The contents of an array are undefined if the call fails. A path names a `.npy` or
        `.zarr` file, which appears when it is complete, in float32 for bfloat16 inputs, and **replaces one that is
        there already** without a question, unless an input is read from it; an array on disk, as of Zarr or
        h5py, gets each row once, and `attrs["cqs"]` says whether it is complete.
    job : path, optional
        A directory that keeps the result of each task as soon as there is one; made if it is not there. The same call
        with it, after this one was interrupted, takes what is kept and computes the rest, to the same output bit for
        bit; `workers`, `strategy` and `kernel` may be left out, and are then what they were. By default there are 31
        tasks or more. It takes about sqrt(W) times an output in float32 on disk, is left where it is at the end, and
        refused where it was begun by a call with other numbers or options. Tasks may be shared out by `cqs.work`. Not
        with functions (`score_mod`, `Predicate`), nor with arrays that are not NumPy's or torch's on the CPU.
    progress : bool or callable, optional
        True for a bar in the terminal, with rate and remaining time, or a function called with (tasks done, tasks in
        all).
    on_event : callable, optional
        Told of every `cqs.events.Event`, from any thread: reads, kernel calls, merges, retries.

    Returns
    -------
    out : array, `(*B, H, T, E)`
        In q's type, or `out` itself; for a path a read-only memory map. A query that sees no key gets 0.
    lse : array, `(*B, H, T)`
        Only with `return_lse=True`: natural log of the sum of exponentials of the scores, in float32, or
        float64 for float64 inputs; -inf for a query that sees no key.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, BudgetError, QuorumError
        All of them `CQSError`, before anything is allocated: which argument, which rule, what it was, what to do. Only
        what a `score_mod` or a `Predicate` returns is checked when it is called.
    SourceError, SinkError
        A file is damaged or changes meanwhile, or cannot be written. No output that looks finished is left.

    Notes
    -----
    *Cost.* 2 T S (D + E) operations a head, half if causal. Beyond the output, each thread holds the results of two
    tasks, about T E / sqrt(W) a head each, and at most 16 MiB (more where scores are changed); float16 and bfloat16
    output takes an accumulator in float32. `cqs.plan` says how much it comes to. With `memory` all of it stays within
    that, or the call is refused.
    *Numerics.* Scores and sums are kept in float32, float64 for float64. NaN and infinity in the inputs come out as in
    PyTorch: a NaN in a query spoils its row, one in a key every row that sees it; a score of +inf gives NaN.
    What a row does not see never reaches it.
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
    check_given(q, k, v, return_lse)
    check_listener("on_event", on_event)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if str(getattr(x, "device", "")) == "meta":
            rule, got = "hold numbers", "a tensor on torch's device 'meta'"
            raise BackendError.of(name, rule, got, "plan it by `cqs.plan`, which needs none, or move real numbers here")
    prepared = ready(
        q, k, v, workers=workers, memory=memory, mask=mask, is_causal=is_causal, scale=scale, softcap=softcap,
        bias=bias, score_mod=score_mod, sink_logits=sink_logits, backend=backend, devices=devices, kernel=kernel,
        engine=engine, strategy=strategy, return_lse=return_lse, out=out, job=job, begins=True,
    )  # fmt: skip
    with prepared as call, reporting(progress, on_event) as report:
        planned = call.plan
        report.start(planned)
        worker = call.worker(report.emit)
        with finishing(call.target.open()) as sink:
            tiler = Tiler(planned, sink, call.sink_logits, report.emit)

            def accept(result: TaskResult) -> None:
                tiler.add(result)
                report(tiler.n_added, len(planned))

            call.engine.run(planned, worker, accept)
            partial = tiler.result()
        result = call.hand_out(partial.out)
        return (result, call.hand_out(partial.lse)) if return_lse else result


def plan(
    q: Input | tuple[int, ...],
    k: Input | tuple[int, ...],
    v: Input | tuple[int, ...],
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    score_mod: Callable[..., Array] | None = None,
    sink_logits: Array | None = None,
    backend: Literal["numpy", "cupy"] | None = None,
    devices: Sequence[int | Device] | None = None,
    kernel: str = "auto",
    engine: Engine | Executor | None = None,
    strategy: str = "auto",
    return_lse: bool = False,
    out: Output = None,
    job: JobPath | None = None,
    dtype: str = "float32",
    **unknown: Never,
) -> Plan:
    """Return the plan that `attention` would run, without running it, or reading anything but a mask's booleans.

    Parameters
    ----------
    q, k, v : array, path, or tuple of int
        As for `attention`, anything else with `shape` and `dtype`, or bare shapes, which stand for arrays in memory.
    workers, memory, mask, is_causal, scale, softcap, bias, score_mod, sink_logits
        As in `attention`.
    backend, devices, kernel, engine, strategy, return_lse, out, job
        As in `attention`.
    dtype : str
        The type of the elements, for bare shapes.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, BudgetError, QuorumError, SourceError
        As `attention` would.

    Examples
    --------
    >>> import cqs
    >>> plan = cqs.plan(*[(8, 10_000, 64)] * 3, workers=7)
    >>> len(plan), plan.base, sum(plan.loads()) == 10_000**2
    (7, (0, 1, 3), True)
    >>> cqs.plan(*[(8, 100_000, 64)] * 3, memory="256 MiB").projected_bytes < 2**28
    True
    """
    refuse_unknown(plan, unknown)
    check_given(q, k, v, return_lse)
    q, k, v = (ShapeInput(x, dtype) if isinstance(x, tuple) else x for x in (q, k, v))
    prepared = ready(
        q, k, v, workers=workers, memory=memory, mask=mask, is_causal=is_causal, scale=scale, softcap=softcap,
        bias=bias, score_mod=score_mod, sink_logits=sink_logits, backend=backend, devices=devices, kernel=kernel,
        engine=engine, strategy=strategy, return_lse=return_lse, out=out, job=job,
    )  # fmt: skip
    with prepared as call:
        return call.plan


def check_given(q: object, k: object, v: object, return_lse: object) -> None:
    """Refuse inputs that are None, and what is neither True nor False."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x is None:
            raise BackendError.of(name, "be an array, or the path of one", None, "was it loaded?")
    true_or_false("return_lse", return_lse, "True returns `(out, lse)`")
