"""Streams, events and the order that they promise: which copy may still be waiting, and which two operations race.

Every stream (a `Lane`) has a vector clock: for each lane, the tick of its last operation that is certain to have ended
before the next operation of this one starts. Waiting for an event joins clocks. Two operations that touch the same
bytes, one of them writing, race unless the clock of the later one has the tick of the earlier one.

Time is made up: an operation begins when its stream and what that waits for are done, and takes as long as it has
bytes; the host takes a moment for each that it submits, and waits as long as it waits. So what overlaps on a GPU does
here.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Clock = dict[int, int]
SUBMIT_SECONDS, BYTES_A_SECOND = 1e-6, 1e9


class RaceError(AssertionError):
    """Two operations on the same memory, one of them writing, that nothing orders."""


def join(clock: Clock, other: Clock) -> None:
    for lane, tick in other.items():
        if clock.get(lane, 0) < tick:
            clock[lane] = tick


@dataclass(slots=True)
class Access:
    """One use of a part of a block by one operation; `view` None is the whole block."""

    lane: int
    tick: int
    view: np.ndarray | None
    writes: bool
    what: str
    low: int = 0
    high: int = 1 << 63

    def __post_init__(self) -> None:
        if self.view is not None:
            self.low, self.high = np.lib.array_utils.byte_bounds(self.view)

    def is_before(self, clock: Clock) -> bool:
        return clock.get(self.lane, 0) >= self.tick

    @property
    def is_solid(self) -> bool:
        return self.view is None or self.view.flags.c_contiguous

    def overlaps(self, other: "Access") -> bool:
        if self.high <= other.low or other.high <= self.low:
            return False
        if (self.is_solid and other.is_solid) or self.view is None or other.view is None:
            return True
        try:
            return np.shares_memory(self.view, other.view, max_work=100_000)
        except np.exceptions.TooHardError:
            return True

    def replaces(self, old: "Access") -> bool:
        """Whether whoever races with `old`, which comes before this, also races with this."""
        covers = self.low <= old.low and old.high <= self.high and self.is_solid
        return covers and (self.writes or (self.lane == old.lane and not old.writes))


@dataclass(slots=True, eq=False)
class Block:
    """Memory that is allocated as one: on a device (`device` is its number) or pinned on the host (None)."""

    buffer: np.ndarray
    device: int | None
    lane: "Lane | None"  # the stream that was current when it was allocated
    history: list[Access] = field(default_factory=list)

    @property
    def base(self) -> int:
        return self.buffer.ctypes.data

    @property
    def size(self) -> int:
        return self.buffer.nbytes

    def poison(self) -> None:
        """Overwrite with bytes that are NaN in every floating-point type."""
        self.buffer.fill(0xFF)


@dataclass(slots=True, eq=False)
class Lane:
    """What the machine knows of one stream."""

    index: int
    device: int
    ptr: int
    is_blocking: bool
    clock: Clock = field(default_factory=dict)
    queue: deque[tuple[int, Callable[[], Any]]] = field(default_factory=deque)
    seconds: float = 0.0  # when what was submitted so far has ended

    @property
    def tick(self) -> int:
        return self.clock.get(self.index, 0)

    def next_tick(self) -> int:
        self.clock[self.index] = self.tick + 1
        return self.tick

    def __str__(self) -> str:
        return f"stream {self.ptr or 'null'} of device {self.device}"


@dataclass(slots=True, frozen=True)
class Mark:
    """A point of a lane that an event recorded."""

    lane: Lane
    tick: int
    clock: Clock
    seconds: float


class Timeline:
    """All lanes, and the host, which is taken as one: what one thread waited for, the others know."""

    def __init__(self, eager: bool) -> None:
        self.eager = eager
        self.lock = threading.RLock()
        self.host: Clock = {}
        self.seconds = 0.0  # of the host
        self.lanes: dict[tuple[int, int], Lane] = {}
        self.problems: list[str] = []

    def lane(self, device: int, ptr: int) -> Lane:
        """Return a stream by its handle; each device has a null stream, of handle 0."""
        with self.lock:
            if ptr == 0 and (device, 0) not in self.lanes:
                self.lanes[device, 0] = Lane(len(self.lanes), device, 0, is_blocking=True)
            found = self.lanes.get((device, ptr)) or next(
                (x for x in self.lanes.values() if x.ptr == ptr and ptr), None
            )
            if found is None:
                raise ValueError(f"{ptr:#x} is no stream")
            return found

    def new_lane(self, device: int, is_blocking: bool) -> Lane:
        with self.lock:
            ptr = 0x1000 + 0x10 * len(self.lanes)
            return self.lanes.setdefault((device, ptr), Lane(len(self.lanes), device, ptr, is_blocking))

    def submit(
        self,
        lane: Lane,
        what: str,
        accesses: Iterable[tuple[Block, np.ndarray, bool]],
        work: Callable[[], Any],
        later: bool = False,
    ) -> Any:
        """Put an operation on a stream: run it and all it waits for now, or leave it until it must run (`later`)."""
        with self.lock:
            self._obey_null_stream(lane)
            join(lane.clock, self.host)
            tick, accesses = lane.next_tick(), list(accesses)
            self.seconds += SUBMIT_SECONDS
            lane.seconds = max(lane.seconds, self.seconds) + sum(x.nbytes for _, x, _ in accesses) / BYTES_A_SECOND
            self.note(lane, what, accesses)
            if later and not self.eager:
                lane.queue.append((tick, work))
                return None
            self.run(lane)
            return work()

    def note(self, lane: Lane, what: str, accesses: Iterable[tuple[Block, np.ndarray, bool]]) -> None:
        """Remember what the operation last submitted to a stream touches; raise if another may touch it meanwhile."""
        with self.lock:
            new = [(block, self._checked(lane, what, block, view, w)) for block, view, w in accesses if view.size]
            for block, access in new:
                old = [a for a in block.history if not a.is_before(self.host)]
                kept = [a for a in old if not (a.is_before(lane.clock) and access.replaces(a))]
                block.history[:] = [*kept, access]

    def _checked(self, lane: Lane, what: str, block: Block, view: np.ndarray, writes: bool) -> Access:
        new = Access(lane.index, lane.tick, view, writes, f"{what} on {lane}")
        for old in block.history:
            is_ordered = old.is_before(lane.clock) or old.is_before(self.host)
            if not is_ordered and (old.writes or writes) and old.overlaps(new):
                verbs = ["writes" if a.writes else "reads" for a in (new, old)]
                raise RaceError(f"race: {new.what} {verbs[0]} what {old.what} {verbs[1]}, and did not wait for it")
        return new

    def run(self, lane: Lane, until: int | None = None) -> None:
        """Run what waits on a stream, to its end or to a tick, in its order."""
        while lane.queue and (until is None or lane.queue[0][0] <= until):
            lane.queue.popleft()[1]()

    def record(self, lane: Lane) -> Mark:
        with self.lock:
            self._obey_null_stream(lane)
            return Mark(lane, lane.tick, dict(lane.clock), max(lane.seconds, self.seconds))

    def wait(self, lane: Lane, mark: Mark) -> None:
        """Make all later work of a stream come after a mark."""
        with self.lock:
            join(lane.clock, mark.clock)
            lane.seconds = max(lane.seconds, mark.seconds)
            if mark.lane.queue and mark.lane is not lane:
                lane.queue.append((lane.next_tick(), lambda: self.run(mark.lane, mark.tick)))

    def reach(self, mark: Mark) -> None:
        """Make the host wait for a mark."""
        with self.lock:
            self.run(mark.lane, mark.tick)
            join(self.host, mark.clock)
            self.seconds = max(self.seconds, mark.seconds)
            self.check()

    def is_reached(self, mark: Mark) -> bool:
        """Answer a poll: when lazy, the first one finds the work not done yet; when eager, it is a matter of time."""
        with self.lock:
            known = all(self.host.get(lane, 0) >= tick for lane, tick in mark.clock.items())
            self.seconds += SUBMIT_SECONDS
            before, is_over = self.seconds, mark.seconds <= self.seconds
            if is_over or not self.eager:
                self.reach(mark)
                self.seconds = before  # who asks does not wait
            return known or (self.eager and is_over)

    def synchronize(self, lanes: Iterable[Lane]) -> None:
        with self.lock:
            for lane in lanes:
                self.reach(self.record(lane))

    def free(self, block: Block) -> None:
        """Overwrite a block that nobody refers to any more, after what its stream still has to do with it.

        A pool hands the block out again to the same stream at once, so only that stream, or one that it waited for,
        may have used it last. Pinned memory may be handed to anyone. A finalizer cannot raise: the problem is kept.
        """
        with self.lock:
            clock = dict(self.host)
            if block.lane is not None:
                self._obey_null_stream(block.lane)
                join(clock, block.lane.clock)
            for user in block.history:
                if not user.is_before(clock):
                    kind = "pinned memory" if block.device is None else f"memory of {block.lane}"
                    self.problems.append(f"race: {kind} is freed while {user.what} may still use it")
                    break
            else:
                if block.lane is not None and block.lane.queue:
                    block.lane.queue.append((block.lane.tick, block.poison))
                    return
            block.poison()

    def check(self) -> None:
        """Raise what could not be raised where it happened."""
        with self.lock:
            problems, self.problems = self.problems, []
        if problems:
            raise RaceError("; ".join(problems))

    def _obey_null_stream(self, lane: Lane) -> None:
        """Order a null stream after all blocking streams of its device, and these after it."""
        if not lane.is_blocking:
            return
        for other in list(self.lanes.values()):
            if other is not lane and other.device == lane.device and other.is_blocking and 0 in (lane.ptr, other.ptr):
                self.wait(lane, Mark(other, other.tick, dict(other.clock), other.seconds))
