"""How long a plan would take, from what it computes and what it moves. A model for choosing, not a promise."""

from dataclasses import dataclass

from cqs.schedule.call_shape import SHARED_FLOPS
from cqs.schedule.grain import Setting
from cqs.schedule.traffic import TaskReads, Traffic

__all__ = ["Rates", "Run"]

_HOST_MERGING, _DEVICE_MERGING = 4e9, 1e12  # bytes of partial results a second; the latter also of inputs there
_DEVICE_FLOPS = {"cudnn": 5e14, "gemm": 3e13}  # of recent data-centre GPUs, or that of other kernels:
_OTHER_DEVICE_FLOPS, _DEVICE_BYTES = 5e12, 1e10
_TASK_SECONDS, _CALL_SECONDS = 2e-4, 1e-4  # for each task and kernel call, whatever its size
_TILE_SECONDS = 4e-6  # for each tile of a task, of which large quorums have many
_MERGE_SECONDS = 5e-5  # for each on a device: a launch or a few
_SLICE_SECONDS, _CHUNKED_SECONDS = 1e-5, 8e-4  # for each slice that is read, or of arrays that are kept in chunks
_BESIDES = 0.3  # of the shorter of computing and reading adds to the longer: they overlap, but share the cores


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second.

    Parameters
    ----------
    flops : float
        Floating-point operations of matrix products in attention, on all threads; `cqs plan --measure` finds it out.
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

        Of a GPU, those of a recent one in a data centre: 500 TFLOP/s by cuDNN, 30 in float32, and 10 GB/s to it, or
        1 TB/s where arrays are on it.
        """
        if setting.devices:
            flops = _DEVICE_FLOPS.get(setting.kernel, _OTHER_DEVICE_FLOPS)
            merged = _DEVICE_MERGING if setting.sums_on_device else _HOST_MERGING
            return cls(flops * len(setting.devices), _DEVICE_BYTES, merged)
        if setting.is_for_gpu:  # of arrays that are on it
            return cls(_DEVICE_FLOPS[setting.kernel], _DEVICE_MERGING, _DEVICE_MERGING)
        return cls(50e9 * max(setting.threads, setting.in_flight), 1.5e9 if setting.is_staged else 10e9)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run computes and moves, and in how many pieces.

    Parameters
    ----------
    flops : int
        Floating-point operations of its matrix products.
    moved : Traffic
        Bytes.
    workers, blocks : int
        Tasks for each block of heads, and blocks of heads.
    reads : TaskReads
        Kernel calls and slices for each block of heads.
    setting : Setting
        What it runs on.
    is_streamed : bool
        Whether a task begins before all of its keys are read.
    is_summed : bool
        Whether results are added to each other.
    heaviest : float
        What the heaviest task computes, as a multiple of the mean.
    n_tiles : int
        Of a task, before the mask.
    """

    flops: int
    moved: Traffic
    workers: int
    blocks: int
    reads: TaskReads
    setting: Setting
    is_streamed: bool
    is_summed: bool
    heaviest: float
    n_tiles: int

    def seconds(self, rates: Rates) -> float:
        """Predict the time of a run that computes while it reads."""
        return self._on_devices(rates) if self.setting.devices else self._here(rates)

    @property
    def _n_tasks(self) -> int:
        return self.workers * self.blocks

    @property
    def _making(self) -> float:
        """Seconds that it takes to make a task and hand it on, whatever is computed."""
        return _TASK_SECONDS + self.n_tiles * _TILE_SECONDS

    def _here(self, rates: Rates) -> float:
        """Predict it where tasks share one processor, and write in between."""
        computing, reading = self._computing(rates), self._reading(rates)
        longer, shorter = max(computing, reading), min(computing, reading)
        writing = (self.moved.spilled + self.moved.written) / rates.bytes
        merging = self.moved.results / rates.merged
        return longer + _BESIDES * shorter + writing + merging + self._n_tasks * self._making

    def _on_devices(self, rates: Rates) -> float:
        """Predict it for devices that draw tasks, each with a thread that copies for it while it computes.

        Nothing is computed while the first task is copied in, or the last result back, and nothing by the devices that
        have no task left: so tasks are to be several for each, and small beside the whole. The heaviest is taken to be
        the last, as under a causal mask.
        """
        n_devices, n_tasks = len(self.setting.devices), max(self._n_tasks, 1)
        computing = self.flops / n_tasks / (rates.flops / n_devices)
        reading = self.moved.read / n_tasks / rates.bytes
        first = reading * min(1.0, 3 * self.workers / max(self.reads.slices, 1)) if self.is_streamed else reading
        returning, at_the_end = (self.moved.results + self.moved.written) / rates.bytes, 0.0
        if self.is_summed:
            is_there = self.setting.sums_on_device
            returning = 0.0 if is_there else self.moved.results / rates.bytes
            at_the_end = self.moved.results / rates.merged + (1 + is_there) * self.moved.written / rates.bytes
        returning /= n_tasks
        a_call = _CALL_SECONDS + _MERGE_SECONDS * (self.is_streamed or self.is_summed)
        thread = reading + returning + self._making + self.reads.calls / self.workers * a_call
        n_before = -(-n_tasks // n_devices) - 1  # the last of one device
        last = max(computing, thread - first - returning) + returning
        uneven = n_tasks / n_devices + (self.heaviest - 1) * (1 - 1 / n_devices) - (n_before + 1)
        return first + n_before * max(computing, thread) + last + max(uneven, 0) * computing + at_the_end

    def _computing(self, rates: Rates) -> float:
        setting, calls = self.setting, self.reads.calls * self.blocks
        seconds = self.flops / rates.flops
        is_alone = setting.has_own_threads and setting.in_flight == 1 and self.flops <= SHARED_FLOPS * calls
        return seconds * (setting.threads if is_alone else 1) + calls * _CALL_SECONDS

    def _reading(self, rates: Rates) -> float:
        each = _CHUNKED_SECONDS if self.setting.read_bytes else _SLICE_SECONDS
        slices = self.reads.slices * self.blocks if self.setting.is_staged else 0
        return self.moved.read / rates.bytes + slices * each
