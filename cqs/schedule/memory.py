"""What a plan holds beyond the caller's arrays: projected by integers, before anything is allocated."""

from dataclasses import dataclass, fields
from math import prod

from cqs.problem import DTYPES, AttentionProblem
from cqs.schedule.call_shape import CallShape
from cqs.schedule.grain import Grain, Setting
from cqs.schedule.scratch import MERGE_BLOCK, scratch_bytes
from cqs.schedule.sizes import TaskSizes
from cqs.units import format_bytes

__all__ = ["CACHED_TASKS", "UNSEEN_BYTES", "WRITE_BYTES", "Footprint", "SlotBytes", "footprint", "slot_bytes"]

CACHED_TASKS = 4  # that are kept because they are soon asked for again
WRITE_BYTES = 1 << 20  # of the output that are converted and written at a time
UNSEEN_BYTES = 128 << 10  # of rows that see no key, made at a time: so little is counted with what never grows
_MERGE_VECTORS = 15  # numbers a row that a merge takes on a CPU
_DEVICE_BASE_BYTES = 2 << 20  # arrays begin at multiples of 512 bytes, and pieces of memory that are kept do not fit
_SHARE_FOR_SLOTS = 0.9  # of memory that nothing else is planned for; slots are rounded up
_BASE_BYTES = 1_000_000  # threads, events, mask classification, and whatever else does not grow


@dataclass(frozen=True, slots=True)
class Footprint:
    """The most bytes that a call holds at a time, by what they are for.

    Parameters
    ----------
    output : int
        Output, if the call allocates it, and log-sum-exp, if it is wanted.
    sums : int
        Accumulators of rows that are not complete.
    inputs : int
        Queries, keys and values that are read into memory, and those that are read ahead.
    results : int
        Results of tasks, those that wait for their turn, and what merging them takes.
    kernel : int
        Blocks of scores and whatever else kernels compute in, for all threads, and small groups put side by side.
    objects : int
        Tasks and other Python objects.
    """

    output: int
    sums: int
    inputs: int
    results: int
    kernel: int
    objects: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.output + self.sums + self.inputs + self.results + self.kernel + self.objects

    def __str__(self) -> str:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)


@dataclass(frozen=True, slots=True)
class SlotBytes:
    """The most bytes of slots on a device that inputs pass through, by what is in them.

    Parameters
    ----------
    keys, queries : int
        Keys with their values, and queries: those of a task, and those that are copied while it is computed.
    """

    keys: int
    queries: int

    @property
    def total(self) -> int:
        """Both."""
        return self.keys + self.queries


def footprint(
    problem: AttentionProblem, sizes: TaskSizes, grain: Grain, setting: Setting, rows_pending: int
) -> Footprint:
    """Return what a call holds; with devices, on each of them.

    Parameters
    ----------
    problem : AttentionProblem
        What is computed.
    sizes : TaskSizes
        Of its tasks.
    grain, setting : Grain, Setting
        As of `Plan`.
    rows_pending : int
        Queries whose sums wait for further tasks at a time: T, those of one group, or 0 if a task completes its own.
    """
    call = _Call.of(problem, sizes, grain, setting)
    if setting.devices:
        slots = slot_bytes(problem, sizes, grain, setting, rows_pending)
        return _on_device(problem, call, sizes, grain, setting, rows_pending, slots)
    threads, in_flight = max(setting.threads, setting.in_flight), setting.in_flight
    sharing = threads if setting.has_own_threads and call.shape.is_shared else 1
    kernel = scratch_bytes(setting.kernel, call.shape, grain.block_bytes, setting.has_scores)
    kernel *= max(in_flight, sharing)  # small calls are not shared by threads, but there may be many
    joined = sizes.bundle_rows * call.query_bytes if sizes.is_bundled else 0  # small strips that share a call
    result = sizes.query_rows * call.row_bytes
    unseen = 0 if problem.mask.hides_nothing else 2 * call.row_bytes  # a row that is made for queries without a key
    everything = problem.input_bytes(problem.n_queries, problem.n_keys)  # more is not read at a time
    return Footprint(
        output=_output_bytes(problem, setting),
        sums=_sums_bytes(problem, setting, call, sizes, rows_pending),
        inputs=in_flight * min(_inputs_bytes(setting, call, sizes, grain), everything),
        results=result * ((1 if in_flight == 1 else 2 * in_flight) + setting.keeps_results)
        + _merging_bytes(setting, call, sizes, grain, rows_pending)
        + unseen,
        kernel=kernel + in_flight * (setting.read_bytes + joined + call.part_bytes(problem, setting)),
        objects=_BASE_BYTES + (CACHED_TASKS + 2 * in_flight) * sizes.object_bytes,
    )


def slot_bytes(
    problem: AttentionProblem, sizes: TaskSizes, grain: Grain, setting: Setting, rows_pending: int
) -> SlotBytes:
    """Return what `Footprint.inputs` of a device is for; see `footprint` for the arguments.

    The least is what a task holds, two groups of keys and one bundle of queries more. If memory is left, there are
    slots for a task's keys beside those of the one before, and for all of its queries: copies then wait for nothing
    but the task before the last. Of what is left in between, both get the same share.
    """
    call = _Call.of(problem, sizes, grain, setting)
    least, most = _fewest_slots(call, sizes, grain), _most_slots(call, sizes, grain)
    missing = most.total - least.total
    if setting.memory is None or missing == 0:
        return least
    left = setting.memory - _on_device(problem, call, sizes, grain, setting, rows_pending, least).total
    more = min(max(int(left * _SHARE_FOR_SLOTS), 0), missing)
    keys = (most.keys - least.keys) * more // missing
    return SlotBytes(least.keys + keys, least.queries + more - keys)


def _fewest_slots(call: "_Call", sizes: TaskSizes, grain: Grain) -> SlotBytes:
    keys = sizes.key_tokens + (1 if grain.keys is not None else 2) * sizes.ahead_keys
    return SlotBytes(keys * call.key_bytes, 2 * sizes.bundle_rows * call.query_bytes)


def _most_slots(call: "_Call", sizes: TaskSizes, grain: Grain) -> SlotBytes:
    least = _fewest_slots(call, sizes, grain)
    if grain.keys is not None:  # a strip needs no more than the part that it computes and the next
        return least
    keys, queries = 2 * sizes.key_tokens * call.key_bytes, sizes.query_rows * call.query_bytes
    return SlotBytes(max(keys, least.keys), max(queries, least.queries))


def _on_device(
    problem: AttentionProblem,
    call: "_Call",
    sizes: TaskSizes,
    grain: Grain,
    setting: Setting,
    rows_pending: int,
    slots: SlotBytes,
) -> Footprint:
    """Return what a call holds on each device: copies of inputs, what is computed, and a result on its way back."""
    result, is_summed = sizes.query_rows * call.row_bytes, setting.sums_on_device and rows_pending > 0
    joined = sizes.bundle_rows * call.query_bytes if sizes.is_bundled else 0
    return Footprint(
        output=0,
        sums=rows_pending * call.row_bytes if is_summed else 0,
        inputs=slots.total,
        results=(1 if is_summed else 2) * result
        + _merging_bytes(setting, call, sizes, grain, rows_pending if is_summed else 0),
        kernel=scratch_bytes(setting.kernel, call.shape, grain.block_bytes, setting.has_scores)
        + joined
        + call.part_bytes(problem, setting),
        objects=_DEVICE_BASE_BYTES,
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """The largest kernel call, bytes of a number in sums, and bytes of a row of what is read and what results."""

    shape: CallShape
    wide: int
    query_bytes: int
    key_bytes: int  # of a key and its value
    row_bytes: int  # of a result: output, log-sum-exp, and its rest

    @classmethod
    def of(cls, p: AttentionProblem, sizes: TaskSizes, grain: Grain, setting: Setting) -> "_Call":
        shape = CallShape.of(p, grain.kv_heads, sizes)
        wide, n_kv = DTYPES[p.accumulator_dtype][0], shape.batch * shape.kv_heads
        query, key = shape.n_heads * p.width * p.itemsize, n_kv * (p.width + p.value_width) * p.itemsize
        return cls(shape, wide, query, key, shape.n_heads * (p.value_width + setting.n_sums) * wide)

    def part_bytes(self, p: AttentionProblem, setting: Setting) -> int:
        """Count what a call that is computed entry by entry, or head by head, holds of one beside its result."""
        if p.mask.is_shared and not setting.has_scores:
            return 0
        n_heads = self.shape.kv_heads * self.shape.shared if self.shape.batch > 1 else 1
        return self.shape.n_queries * n_heads * (p.value_width + setting.n_sums) * self.wide


def _output_bytes(p: AttentionProblem, setting: Setting) -> int:
    rows, wide = prod(p.lse_shape), DTYPES[p.accumulator_dtype][0]
    out = rows * p.value_width * DTYPES[setting.output_dtype or p.dtype][0] if setting.output == "new" else 0
    return out + rows * wide * setting.keeps_lse


def _sums_bytes(p: AttentionProblem, setting: Setting, call: _Call, sizes: TaskSizes, rows_pending: int) -> int:
    if setting.is_in_place(p):  # the output holds the sums, and beside it there are log-sum-exps, and their rest
        n_sums = setting.n_sums - setting.keeps_lse if rows_pending else 0
        return n_sums * prod(p.lse_shape) * call.wide
    # what is not of the output's type is converted to be written
    converted = DTYPES[setting.output_dtype or p.dtype][0] != call.wide
    converted |= setting.output == "sink"  # and what is not contiguous is copied
    written = min(WRITE_BYTES, prod(p.out_shape) * call.wide) * converted
    if setting.is_spilled and rows_pending:  # a group is read, merged and written back
        return written + sizes.bundle_rows * call.row_bytes
    return written + rows_pending * call.row_bytes


def _merging_bytes(setting: Setting, call: _Call, sizes: TaskSizes, grain: Grain, rows_pending: int) -> int:
    """Count what adding results to sums takes: weights of all their rows, and products of some; nothing on a GPU."""
    merged = sizes.bundle_rows if setting.is_spilled else sizes.query_rows  # sums in a file are merged group by group
    rows = sizes.call_rows if grain.keys is not None else merged if rows_pending else 0
    step = sizes.call_rows * call.row_bytes if grain.keys is not None else 0  # a result that is added to its strip's
    if setting.is_for_gpu:
        return step
    products = 2 * min(MERGE_BLOCK * call.wide, rows * call.row_bytes)
    return products + step + _MERGE_VECTORS * rows * call.shape.n_heads * call.wide


def _inputs_bytes(setting: Setting, call: _Call, sizes: TaskSizes, grain: Grain) -> int:
    """Count what is read for a task, and while it is computed ahead of it."""
    if not setting.is_staged:
        return 0
    queries = sizes.bundle_rows * call.query_bytes
    if grain.keys is not None:
        at_once = sizes.key_tokens if setting.in_flight == 1 else sizes.ahead_keys
        return queries + at_once * call.key_bytes
    ahead = max(queries, sizes.ahead_keys * call.key_bytes) if setting.in_flight == 1 else 0
    return sizes.key_tokens * call.key_bytes + queries + ahead
