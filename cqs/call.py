"""One call made ready: everything is checked, inputs are open, the plan is made; nothing is computed or allocated."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from cqs.backend import (
    Device,
    arrays_device,
    chosen_devices,
    cuda_tensor_as_cupy,
    cupy_as_tensor,
    is_cuda_tensor,
    is_cupy,
    namespace_of,
    refuse_gradients,
)
from cqs.engines import DeviceEngine, Engine, as_engine, concurrency
from cqs.errors import OptionError
from cqs.kernels import Kernel, Request, choose_kernel
from cqs.masks import Mask
from cqs.problem import AttentionProblem
from cqs.schedule import Plan, Scheduler, Setting
from cqs.scores import ALiBi, Scores, checked_sink_logits
from cqs.sources import InputSource, Sink, Target, like_of, open_inputs, open_output
from cqs.types import Array
from cqs.units import parse_bytes

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
    """

    plan: Plan
    source: InputSource
    target: Target
    kernel: Kernel
    engine: Engine
    scores: Scores | None
    sink_logits: Array | None
    hand_out: Callable[[Array], Array]


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
    backend: str | None,
    devices: Sequence[int | Device] | None,
    kernel: str,
    engine: Engine | Executor | None,
    strategy: str,
    return_lse: bool,
    out: Any,
) -> Iterator[Call]:
    """Check the arguments of `cqs.attention`, which see, and give them as a `Call`; close files at the end."""
    refuse_gradients(q=q, k=k, v=v)
    is_tensor = backend == "cupy" and is_cuda_tensor(q)
    if is_tensor:
        q, k, v, bias, sink_logits, out = map(_as_cupy, (q, k, v, bias, sink_logits, out))
    with ExitStack() as held:
        source = held.enter_context(closing(open_inputs(q, k, v)))
        problem = AttentionProblem.of(source.q, source.k, source.v, mask=mask, is_causal=is_causal, scale=scale)
        like = like_of(source.q)
        held.enter_context(arrays_device(like, None if memory is None else parse_bytes("memory", memory)))
        scores = Scores.of(problem, like, softcap, bias, score_mod)
        logits = None if sink_logits is None else checked_sink_logits(sink_logits, problem, like=like)
        chosen_on = chosen_devices(backend, devices, namespace_of(q=like))
        xp = chosen_on[0].xp if chosen_on else namespace_of(q=like)
        chosen, passed_over = choose_kernel(kernel, Request(xp, problem, scores is not None))
        target = open_output(out, problem, source)
        if chosen_on and engine is not None:
            raise OptionError.of("engine", "be left out with `devices`, which run the tasks", repr(engine), "drop one")
        runner = DeviceEngine(chosen_on, reads_ahead=source.is_staged) if chosen_on else as_engine(engine)
        setting = Setting(
            kernel=chosen.name,
            output=target.kind,
            output_dtype=target.dtype,
            keeps_lse=return_lse,
            has_scores=scores is not None,
            passed_over=passed_over,
            **_held_where(runner, chosen_on, source, target, is_cupy(xp), memory is not None),
        )
        if chosen_on and memory is None:
            memory = min(device.free_bytes() for device in chosen_on) * 9 // 10
        plan = Scheduler(workers, strategy, memory, setting).plan(problem)
        yield Call(plan, source, target, chosen, runner, scores, logits, cupy_as_tensor if is_tensor else _same)


def _held_where(
    runner: Engine, devices: Sequence[Device], source: InputSource, target: Target, is_on_gpu: bool, is_bounded: bool
) -> dict[str, Any]:
    """Return what of a `Setting` follows from where tasks are computed."""
    if devices:
        names = tuple(device.name for device in devices)
        return {"threads": 1, "in_flight": 1, "is_staged": True, "devices": names}
    threads, in_flight = (1, 1) if is_on_gpu else concurrency(runner, needs_little=is_bounded or source.is_staged)
    read_bytes = source.read_bytes + target.write_bytes
    return {"threads": threads, "in_flight": in_flight, "is_staged": source.is_staged, "read_bytes": read_bytes}


def _as_cupy(x: Any) -> Any:
    return cuda_tensor_as_cupy(x) if is_cuda_tensor(x) else x


def _same(array: Array) -> Array:
    return array


@contextmanager
def finishing(sink: Sink) -> Iterator[Sink]:
    """Leave nothing that looks finished if anything fails inside."""
    try:
        yield sink
    except BaseException:
        sink.abandon()
        raise
