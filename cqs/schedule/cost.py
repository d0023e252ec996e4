"""How long a plan would take, from what it computes and what it moves. A model for choosing, not a promise."""

from dataclasses import dataclass

from cqs.schedule.traffic import Traffic

__all__ = ["Rates", "predicted_seconds"]

_MERGED_PER_SECOND = 4e9  # bytes of partial results
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
    """

    flops: float
    bytes: float

    @classmethod
    def typical(cls, threads: int, is_staged: bool) -> "Rates":
        """Return rates of a common machine: 50 GFLOP/s a thread, and 1.5 GB/s from a disk or 10 GB/s from memory."""
        return cls(50e9 * threads, 1.5e9 if is_staged else 10e9)


def predicted_seconds(flops: int, moved: Traffic, n_tasks: int, rates: Rates) -> float:
    """Return the time of a run that computes while it reads, and writes in between."""
    computing, reading = flops / rates.flops, moved.read / rates.bytes
    longer, shorter = max(computing, reading), min(computing, reading)
    writing = (moved.spilled + moved.written) / rates.bytes
    return longer + _BESIDES * shorter + writing + moved.results / _MERGED_PER_SECOND + n_tasks * _TASK_SECONDS
