"""How finely a plan cuts its work beyond the layout, and what it runs on."""

from dataclasses import dataclass, field
from math import prod
from typing import Literal

from cqs.checks import whole_number
from cqs.machine import available_cpus
from cqs.problem import AttentionProblem
from cqs.schedule.task import HeadBlock

__all__ = ["BLOCK_BYTES", "DEVICE_BLOCK_BYTES", "Grain", "Setting", "head_block", "n_head_blocks"]

BLOCK_BYTES = 2 << 20  # of a kernel's block of scores: fastest by measurement, see docs/decisions
DEVICE_BLOCK_BYTES = 64 << 20  # of a GPU's, which is idle between blocks


@dataclass(frozen=True, slots=True)
class Grain:
    """How finely work is cut. It decides in which order numbers are added, and so the last bits of the result.

    Parameters
    ----------
    kv_heads : int or None
        Key heads that a task computes, of one batch entry, with the query heads that share them. None: all of all.
    row_groups : int or None
        For strategy "tiles": into how many groups the queries are cut; by default as makes tiles nearly square.
    rows, keys : int or None
        Queries of one kernel call, and keys that are read for it. Keys are then streamed: read, used and let go, while
        the queries and their sums stay. None: a task reads its keys once and keeps them to its end.
    block_bytes : int
        Bytes of a kernel's block of scores.
    """

    kv_heads: int | None = None
    row_groups: int | None = None
    rows: int | None = None
    keys: int | None = None
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None:
                whole_number(name, value, 1, "let `Scheduler` choose it")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a plan runs on and with.

    It decides what a call holds. Only the kernel, and whether there is a budget, have a part in the result's last bits.

    Parameters
    ----------
    kernel : str
        Name of the kernel.
    threads : int
        Threads that compute.
    in_flight : int
        Tasks that run at a time. If 1, each of them uses all threads.
    is_staged : bool
        Whether inputs are read into memory, as from a file, and not viewed where they are.
    output : {"new", "given", "sink"}
        Whether the call allocates the output, is given an array for it, or writes rows away as they are complete.
    output_dtype : str or None
        Type of the output; None for that of the inputs.
    keeps_lse : bool
        Whether the log-sum-exp of all queries is wanted.
    is_spilled : bool
        Whether sums that are not complete wait in a scratch file, and not in memory; with devices, in the memory of the
        machine, and not in that of the device.
    keeps_results : bool
        Whether results of tasks are kept in the directory of a job, and may come from there.
    has_scores : bool
        Whether scores are changed (softcap, bias, `score_mod`), which takes temporary blocks of them.
    has_sink_logits : bool
        Whether every softmax has one more term, which complete rows are given where the output is.
    read_bytes : int
        What reading a slice of an input may hold beyond the slice itself, such as a chunk that is decompressed.
    memory : int or None
        The budget, in bytes; with devices, of the memory of each.
    devices : tuple of str
        Names of the devices that inputs are copied to and tasks are computed on; none if they are computed where the
        inputs are.
    passed_over : tuple of (str, str)
        Kernels that would be preferred, and why they cannot do it.
    """

    kernel: str = "numpy"
    threads: int = field(default_factory=available_cpus)
    in_flight: int = field(default_factory=available_cpus)
    is_staged: bool = False
    output: Literal["new", "given", "sink"] = "new"
    output_dtype: str | None = None
    keeps_lse: bool = True
    is_spilled: bool = False
    keeps_results: bool = False
    has_scores: bool = False
    has_sink_logits: bool = False
    read_bytes: int = 0
    memory: int | None = None
    devices: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))  # lists, when they are read from JSON
        object.__setattr__(self, "passed_over", tuple((name, reason) for name, reason in self.passed_over))

    @property
    def is_for_gpu(self) -> bool:
        """Whether the kernel is one of those that only GPUs run."""
        return self.kernel in ("cudnn", "gemm")

    @property
    def n_sums(self) -> int:
        """Numbers that a row of a result has beside the output: a log-sum-exp, and, but on a GPU, its rest."""
        return 1 if self.is_for_gpu else 2

    @property
    def has_own_threads(self) -> bool:
        """Whether the kernel is one of those that compute NumPy arrays on threads of their own."""
        return self.kernel in ("numba", "numpy")

    @property
    def may_spill(self) -> bool:
        """Whether sums may wait in a scratch file, which takes numbers of NumPy: not of other libraries."""
        return self.has_own_threads or len(self.devices) > 0

    @property
    def sums_on_device(self) -> bool:
        """Whether incomplete sums, if there are any, are kept on the device: if no other computes, or keeps results."""
        return len(self.devices) == 1 and not self.is_spilled and not self.keeps_results

    def is_in_place(self, problem: AttentionProblem) -> bool:
        """Whether sums are kept in the output itself: it is an array of their type."""
        if self.devices:  # the output is not on the device
            return False
        return self.output != "sink" and (self.output_dtype or problem.dtype) == problem.accumulator_dtype


def n_head_blocks(problem: AttentionProblem, kv_heads: int | None) -> int:
    """Return into how many blocks of heads tasks are cut."""
    return 1 if kv_heads is None else prod(problem.batch) * -(-problem.n_kv_heads // kv_heads)


def head_block(problem: AttentionProblem, kv_heads: int | None, i: int) -> HeadBlock | None:
    """Return the i-th block of `kv_heads` key heads, or of what is left of a batch entry; None if that is all heads."""
    if kv_heads is None:
        return None
    entry, n = divmod(i, -(-problem.n_kv_heads // kv_heads))
    batch = []
    for size in reversed(problem.batch):
        entry, index = divmod(entry, size)
        batch.append(index)
    keys = range(n * kv_heads, min((n + 1) * kv_heads, problem.n_kv_heads))
    shared = problem.n_heads // problem.n_kv_heads
    return HeadBlock(tuple(reversed(batch)), range(keys.start * shared, keys.stop * shared), keys)
