"""One call made ready: everything is checked, inputs are open, the plan is made; nothing is computed or allocated."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cqs.backend import (
    Device,
    arrays_device,
    borrowed,
    is_of_jax,
    refuse_gradients,
)
from cqs.checks import takes
from cqs.engines import Engine
from cqs.errors import OptionError
from cqs.events import Emit
from cqs.jobs import Job, ResumingEngine, chosen_tasks
from cqs.kernels import Kernel
from cqs.masks import Mask
from cqs.placing import Place, placed
from cqs.problem import AttentionProblem
from cqs.schedule import Plan, Scheduler, planned
from cqs.scores import ALiBi, Scores, checked_sink_logits
from cqs.sources import InputSource, Sink, Target, like_of, open_inputs, open_output, refuse_overlap
from cqs.types import Array
from cqs.units import parse_bytes
from cqs.worker import Worker

__all__ = ["Call", "finishing", "ready"]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What `cqs.attention` needs to run.

    Parameters
    ----------
    plan : Plan
        With the problem.
    source : InputSource
        The open inputs.
    target : Target
        Where the output goes, not opened yet.
    kernel : Kernel
        What computes.
    engine : Engine
        What runs the tasks.
    scores : Scores or None
        What is done to scores before the mask.
    sink_logits : array, `(*B, H, 1)`, or None
        What takes part in every softmax and has no value.
    hand_out : function
        Gives a result the library that the caller has.
    job : Job or None
        What keeps results of tasks.
    tasks : sequence of int
        Which of the plan's tasks are to run.
    """

    plan: Plan
    source: InputSource
    target: Target
    kernel: Kernel
    engine: Engine
    scores: Scores | None
    sink_logits: Array | None
    hand_out: Callable[[Array], Array]
    job: Job | None
    tasks: Sequence[int]

    def worker(self, emit: Emit) -> Worker:
        """Return what runs its tasks."""
        return Worker(self.plan.problem, self.source, self.kernel.attend, self.scores, self.plan.grain, emit)


@contextmanager
def ready(
    q: Any,
    k: Any,
    v: Any,
    *,
    workers: int | None,
    memory: int | str | None,
    mask: Mask | Array | None,
    is_causal: bool,
    scale: float | None,
    softcap: float | None,
    bias: Array | ALiBi | None,
    score_mod: Callable[..., Array] | None,
    sink_logits: Array | None,
    backend: str | None,
    devices: Sequence[int | Device] | None,
    kernel: str,
    engine: Engine | Executor | None,
    strategy: str,
    return_lse: bool,
    out: Any,
    job: Any = None,
    tasks: Any = None,
    begins: bool = False,
) -> Iterator[Call]:
    """Check the arguments of `cqs.attention`, which see, and give them as a `Call`; close files at the end.

    `tasks` are those of `cqs.work`. A job is begun if it `begins`: its directory is made, or its inputs are compared.
    """
    refuse_gradients(q=q, k=k, v=v, bias=bias, sink_logits=sink_logits, out=out)
    if is_of_jax(out):
        rule, remedy = "be something that can be written to", "leave it out, and take what is returned"
        raise OptionError.of("out", rule, "an array of JAX, none of which ever changes", remedy)
    # a function of the caller's is to be called with tensors
    by_numpy = backend != "cupy" and devices is None and kernel in ("auto", "numba", "numpy") and score_mod is None
    (q, k, v, bias, sink_logits, out), hand_out = borrowed(
        by_cupy=backend == "cupy", by_numpy=by_numpy, q=q, k=k, v=v, bias=bias, sink_logits=sink_logits, out=out
    )
    with ExitStack() as held:
        source = held.enter_context(closing(open_inputs(q, k, v)))
        problem = AttentionProblem.of(source.q, source.k, source.v, mask=mask, is_causal=is_causal, scale=scale)
        like = like_of(source.q)
        held.enter_context(arrays_device(like, None if memory is None else parse_bytes("memory", memory)))
        scores = Scores.of(problem, like, softcap, bias, score_mod)
        logits = None if sink_logits is None else checked_sink_logits(sink_logits, problem, like=like)
        target = open_output(out, problem, source)
        if target.kind == "given":
            _refuse_overlaps(out, problem, bias)
        place_of = partial(
            placed, problem, source, backend=backend, devices=devices, engine=engine, memory=memory,
            has_scores=scores is not None, has_sink_logits=logits is not None,
        )  # fmt: skip
        plan_of = partial(_plan, problem, target, return_lse, workers, strategy)
        on_gpu = backend == "cupy" or devices is not None
        kept = None if job is None else Job.of(job, problem, scores, source, is_run=begins)
        place = place_of(kernel=kernel if kept is None else kept.kernel(kernel, on_gpu))
        plan = plan_of(place, kept)
        chosen = chosen_tasks(tasks, len(plan))
        if kept is not None:
            _check_keeping(kept, place.engine, out)
        if kept is not None and begins:
            kept = kept.begin(plan)
            place = place_of(kernel=kept.kernel(kernel, on_gpu))
            plan = plan_of(place, kept)  # which is another plan if another run has begun the job just now
            chosen = chosen_tasks(tasks, len(plan))
        runner = place.engine if kept is None else ResumingEngine(place.engine, kept)
        yield Call(plan, source, target, place.kernel, runner, scores, logits, hand_out, kept, chosen)


def _refuse_overlaps(out: Array, problem: AttentionProblem, bias: Array | ALiBi | None) -> None:
    """Refuse an output in which a mask or a bias lies, which are read while it is written."""
    for array in problem.mask.arrays:
        refuse_overlap(out, mask=array)
    if bias is not None and not isinstance(bias, ALiBi):
        refuse_overlap(out, bias=bias)


def _plan(
    problem: AttentionProblem,
    target: Target,
    keeps_lse: bool,
    workers: int | None,
    strategy: str,
    place: Place,
    kept: Job | None,
) -> Plan:
    setting = replace(
        place.setting,
        output=target.kind,
        output_dtype=target.dtype,
        keeps_lse=keeps_lse,
        keeps_results=kept is not None,
        read_bytes=place.setting.read_bytes + target.write_bytes,
    )
    scheduler = Scheduler(workers, strategy, place.memory, setting)
    if kept is not None:
        return kept.plan(scheduler, problem)
    return planned(scheduler, problem)


def _check_keeping(job: Job, engine: Engine, out: Any) -> None:
    if not takes(engine.run, 4):
        rule, remedy = "run some tasks of a plan, where results are kept", "let `run` take `tasks`, see `cqs.engines`"
        raise OptionError.of("engine", rule, f"{type(engine).__name__}, which only runs all", remedy)
    place = Path(os.path.realpath(out)) if isinstance(out, str | os.PathLike) else None
    if place is not None and job.directory.path in (place, *place.parents):
        raise OptionError.of("job", "not be `out`, or have it inside", os.fspath(out), "give a directory of its own")


@contextmanager
def finishing(sink: Sink) -> Iterator[Sink]:
    """Leave nothing that looks finished if anything fails inside."""
    try:
        yield sink
    except BaseException:
        sink.abandon()
        raise
