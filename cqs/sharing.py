"""`cqs.work`: a share of a call, for machines that have nothing but a file system in common."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from itertools import count
from typing import Literal, Never

from cqs.api import Input, JobPath, check_given
from cqs.backend import Device
from cqs.call import ready
from cqs.checks import check_listener
from cqs.engines import Engine
from cqs.errors import OptionError, refuse_unknown
from cqs.events import Emit
from cqs.masks import Mask
from cqs.progress import Progress, reporting
from cqs.scores import ALiBi
from cqs.sources import NOWHERE
from cqs.types import Array

__all__ = ["work"]


def work(
    q: Input,
    k: Input,
    v: Input,
    *,
    job: JobPath,
    tasks: slice | Iterable[int] | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    backend: Literal["numpy", "cupy"] | None = None,
    devices: Sequence[int | Device] | None = None,
    kernel: str = "auto",
    engine: Engine | Executor | None = None,
    strategy: str = "auto",
    progress: Progress = None,
    on_event: Emit = None,
    **unknown: Never,
) -> int:
    """Compute some tasks of a job, and keep their results for the `attention` call that puts them together.

    So machines that share nothing but a file system share a call: each works on tasks of its own, in whatever order
    and as often as it likes, and in the end one calls `cqs.attention` with the same arguments and `job`, which finds
    their results and computes what is still missing.

    Parameters
    ----------
    q, k, v : array or path
        As for `attention`; paths where there are several machines.
    job : path
        The directory that keeps results.
    tasks : slice or iterable of int, optional
        Which of the plan's tasks, counted from 0: `slice(i, None, n)` for the i-th of n machines; by default all. Those
        whose results are kept already are not computed again.
    workers, memory, mask, is_causal, scale, softcap, bias
        As in `attention`.
    backend, devices, kernel, engine, strategy, progress, on_event
        As in `attention`.

    Returns
    -------
    int
        How many of the job's tasks have no result yet.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, BudgetError, QuorumError
        As `attention` would, before anything is computed.
    SourceError, SinkError
        A file is damaged or changes meanwhile, or a result cannot be written. What was kept before is safe.

    Examples
    --------
    >>> import numpy as np, cqs
    >>> from tempfile import TemporaryDirectory
    >>> x = np.random.default_rng(0).standard_normal((2, 700, 8), dtype=np.float32)
    >>> with TemporaryDirectory() as folder:
    ...     job = f"{folder}/run.job"
    ...     print(cqs.work(x, x, x, workers=7, job=job, tasks=slice(0, None, 2)))  # tasks 0, 2, 4, 6
    ...     print(cqs.work(x, x, x, job=job, tasks=[1]))
    ...     out = cqs.attention(x, x, x, job=job)  # computes tasks 3 and 5, and merges all
    3
    2
    >>> np.array_equal(out, cqs.attention(x, x, x, workers=7))
    True
    """
    refuse_unknown(work, unknown)
    check_given(q, k, v, return_lse=False)
    check_listener("on_event", on_event)
    if job is None:
        raise OptionError.of("job", "be a path", None, "as in `job='run.job'`, a directory")
    prepared = ready(
        q, k, v, workers=workers, memory=memory, mask=mask, is_causal=is_causal, scale=scale, softcap=softcap,
        bias=bias, score_mod=None, sink_logits=None, backend=backend, devices=devices, kernel=kernel,
        engine=engine, strategy=strategy, return_lse=False, out=NOWHERE, job=job, tasks=tasks, begins=True,
    )  # fmt: skip
    with prepared as call, reporting(progress, on_event) as report:
        assert call.job is not None
        missing, done = call.job.missing(call.tasks), count(1)
        report.start(call.plan, len(missing))
        call.engine.run(call.plan, call.worker(report.emit), lambda _: report(next(done), len(missing)), missing)
        return len(call.job.missing(range(len(call.plan))))
