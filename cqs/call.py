"""One call made ready: everything is checked, inputs are open, the plan is made; nothing is computed or allocated."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from cqs.backend import namespace_of, refuse_gradients
from cqs.engines import Engine, as_engine, concurrency
from cqs.kernels import Kernel, choose_kernel
from cqs.masks import Mask
from cqs.problem import AttentionProblem
from cqs.schedule import Plan, Scheduler, Setting
from cqs.scores import ALiBi, Scores, checked_sink_logits
from cqs.sources import InputSource, Sink, Target, like_of, open_inputs, open_output
from cqs.types import Array

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
    """

    plan: Plan
    source: InputSource
    target: Target
    kernel: Kernel
    engine: Engine
    scores: Scores | None
    sink_logits: Array | None


@contextmanager
def ready(
    q: Any,
    k: Any,
    v: Any,
    *,
    workers: int | None,
    memory: int | str | None,
    mask: Mask | None,
    is_causal: bool,
    scale: float | None,
    softcap: float | None,
    bias: Array | ALiBi | None,
    score_mod: Callable[..., Array] | None,
    sink_logits: Array | None,
    kernel: str,
    engine: Engine | Executor | None,
    strategy: str,
    return_lse: bool,
    out: Any,
) -> Iterator[Call]:
    """Check the arguments of `cqs.attention`, which see, and give them as a `Call`; close files at the end."""
    refuse_gradients(q=q, k=k, v=v)
    with closing(open_inputs(q, k, v)) as source:
        problem = AttentionProblem.of(source.q, source.k, source.v, mask=mask, is_causal=is_causal, scale=scale)
        like = like_of(source.q)
        scores = Scores.of(problem, like, softcap, bias, score_mod)
        logits = None if sink_logits is None else checked_sink_logits(sink_logits, problem, like=like)
        chosen = choose_kernel(kernel, namespace_of(q=like))
        runner = as_engine(engine)
        target = open_output(out, problem, source)
        threads, in_flight = concurrency(runner, needs_little=memory is not None or source.is_staged)
        setting = Setting(
            kernel=chosen.name,
            threads=threads,
            in_flight=in_flight,
            is_staged=source.is_staged,
            output=target.kind,
            output_dtype=target.dtype,
            keeps_lse=return_lse,
            has_scores=scores is not None,
            read_bytes=source.read_bytes + target.write_bytes,
        )
        plan = Scheduler(workers, strategy, memory, setting).plan(problem)
        yield Call(plan, source, target, chosen, runner, scores, logits)


@contextmanager
def finishing(sink: Sink) -> Iterator[Sink]:
    """Leave nothing that looks finished if anything fails inside."""
    try:
        yield sink
    except BaseException:
        sink.abandon()
        raise
