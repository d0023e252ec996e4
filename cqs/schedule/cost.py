"""How long a plan would take, from what it computes and what it moves. A model for choosing, not a promise."""

from dataclasses import dataclass

from cqs.schedule.grain import Setting
from cqs.schedule.traffic import Traffic

__all__ = ["Rates", "predicted_seconds"]

_HOST_MERGING, _DEVICE_MERGING = 4e9, 1e12  # bytes of partial results a second
_DEVICE_FLOPS = {"cudnn": 5e14, "gemm": 3e13}  # of recent data-centre GPUs, or that of other kernels:
_OTHER_DEVICE_FLOPS, _DEVICE_BYTES = 5e12, 1e10
_TASK_SECONDS = 2e-4  # for each task, whatever its size
_BESIDES = 0.3  # of the shorter of computing and reading adds to the longer: they overlap, but share the cores


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second.

    Parameters
    ----------
    flops : float
        Floating-point operations of matrix products, on all threads; `cqs plan --measure` finds it out.
    bytes : float
        Bytes read from or written to where the inputs are.
    merged : float
        Bytes of partial results that are merged.
    """

    flops: float
    bytes: float
    merged: float = _HOST_MERGING

    @classmethod
    def typical(cls, setting: Setting) -> "Rates":
        """Return rates of a common machine: 50 GFLOP/s a thread, and 1.5 GB/s from a disk or 10 GB/s from memory.

        Of a GPU, those of a recent one in a data centre: 500 TFLOP/s by cuDNN, 30 in float32, and 10 GB/s to it.
        """
        if setting.devices:
            flops = _DEVICE_FLOPS.get(setting.kernel, _OTHER_DEVICE_FLOPS)
            merged = _DEVICE_MERGING if setting.sums_on_device else _HOST_MERGING
            return cls(flops * len(setting.devices), _DEVICE_BYTES, merged)
        return cls(50e9 * max(setting.threads, setting.in_flight), 1.5e9 if setting.is_staged else 10e9)


def predicted_seconds(flops: int, moved: Traffic, n_tasks: int, rates: Rates) -> float:
    """Return the time of a run that computes while it reads, and writes in between."""
    computing, reading = flops / rates.flops, moved.read / rates.bytes
    longer, shorter = max(computing, reading), min(computing, reading)
    writing = (moved.spilled + moved.written) / rates.bytes
    return longer + _BESIDES * shorter + writing + moved.results / rates.merged + n_tasks * _TASK_SECONDS
