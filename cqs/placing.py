"""Where a call is computed: on the CPU, where its arrays are, or on devices that they are copied to; and by what."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from cqs.backend import Device, chosen_devices, is_cupy, namespace_of, numbered
from cqs.engines import DeviceEngine, Engine, ExecutorEngine, as_engine, concurrency
from cqs.errors import OptionError
from cqs.kernels import Kernel, Request, choose_kernel
from cqs.problem import AttentionProblem
from cqs.schedule import Setting
from cqs.sources import InputSource, like_of
from cqs.units import parse_bytes

__all__ = ["Place", "placed"]

_SHARE_OF_FREE = 0.9  # of a device's memory that a call takes if it is not told


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What computes a call.

    Parameters
    ----------
    kernel : Kernel
        What computes.
    engine : Engine
        What runs the tasks.
    setting : Setting
        For the plan; of the output it knows nothing yet.
    memory : int or None
        The budget, in bytes: what was asked for, or for devices most of what is free.
    """

    kernel: Kernel
    engine: Engine
    setting: Setting
    memory: int | None


def placed(
    problem: AttentionProblem,
    source: InputSource,
    *,
    backend: str | None,
    devices: Sequence[int | Device] | None,
    kernel: str,
    engine: Engine | Executor | None,
    memory: int | str | None,
    has_scores: bool,
    has_sink_logits: bool,
) -> Place:
    """Decide what computes a call; see `cqs.attention` for the arguments.

    Raises
    ------
    BackendError, OptionError
        If a device, library or kernel is missing, or they do not fit each other.
    """
    xp, budget = namespace_of(q=like_of(source.q)), None if memory is None else parse_bytes("memory", memory)
    chosen = chosen_devices(backend, devices, xp)
    if chosen and engine is not None:
        raise OptionError.of("engine", "be left out with devices, which run the tasks", repr(engine), "drop one")
    if chosen:
        xp = chosen[0].xp
    found, passed_over = choose_kernel(kernel, Request(xp, problem, has_scores, tuple(chosen)))
    wanted = {"has_scores": has_scores, "has_sink_logits": has_sink_logits}
    common = {"kernel": found.name, "passed_over": passed_over, **wanted}
    if chosen:
        names = numbered(device.name for device in chosen)
        setting = Setting(threads=1, in_flight=1, is_staged=True, devices=names, **common)  # type: ignore[arg-type]
        if budget is None:
            budget = int(min(device.free_bytes() for device in chosen) * _SHARE_OF_FREE)
        return Place(found, DeviceEngine(chosen, reads_ahead=source.is_staged), setting, budget)
    runner = as_engine(engine)
    threads, in_flight = concurrency(runner, needs_little=budget is not None or source.is_staged)
    if is_cupy(xp):
        if isinstance(runner, ExecutorEngine):  # its threads have another device and another stream current
            remedy = "drop it, or give NumPy arrays or files and devices="
            raise OptionError.of("engine", "be no executor for arrays that are on a GPU", repr(engine), remedy)
        threads = in_flight = 1  # a GPU is one thread's
    setting = Setting(
        threads=threads,
        in_flight=in_flight,
        is_staged=source.is_staged,
        read_bytes=source.read_bytes,
        **common,  # type: ignore[arg-type]
    )
    return Place(found, runner, setting, budget)
