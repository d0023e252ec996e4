"""`cupy.cuda.memory`: device memory that is counted, limited and freed as CuPy's pools do."""

import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fake_cupy.devices import Device
from fake_cupy.machine import UNIT, CUDARuntimeError, now
from fake_cupy.ordering import Access, Block


class OutOfMemoryError(MemoryError):
    """A pool's limit, or a device's memory, is reached."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        self._size, self._total, self._limit = size, total, limit
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(text + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class BaseMemory:
    """Memory of a device."""

    ptr = 0
    size = 0
    device_id = 0
    _block: Block | None = None

    def __int__(self) -> int:
        return self.ptr

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def _own(self, block: Block, when_freed: Callable[[], None]) -> None:
        self._block, self.ptr, self.size = block, block.base, block.size
        weakref.finalize(self, _free, now(), block, when_freed).atexit = False


class Memory(BaseMemory):
    """Memory straight from cudaMalloc."""

    def __init__(self, size: int) -> None:
        machine = now()
        self.device_id = device = machine.device
        if size:
            size = -(-size // UNIT) * UNIT
            machine.reserve(device, size)
            self._own(machine.add_block(size, device), lambda: machine.unreserve(device, size))


class UnownedMemory(BaseMemory):
    """Memory that somebody else keeps alive."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        self._block = now().find_on_device(ptr, size)
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, self._block.device


class PooledMemory(BaseMemory):
    """Memory that goes back to its pool."""

    def __init__(self, chunk: "Chunk", pool: "_Arenas", stream: int) -> None:
        machine, self.device_id = now(), chunk.segment.device
        block = machine.add_block(chunk.size, self.device_id, chunk.history)
        self._own(block, lambda: pool.take_back(chunk, block, stream))


class MemoryPointer:
    """A place in memory of a device; keeps the memory alive."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id

    def __int__(self) -> int:
        return self.ptr

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    __radd__ = __add__

    def __sub__(self, offset: int) -> "MemoryPointer":
        return self + -offset

    def _copy(self, target: Any, source: Any, size: int, kind: int, stream: Any, waits: bool) -> None:
        machine = now()
        lane = machine.lane(machine.device, 0 if waits else 0 if stream is None else stream.ptr)
        if stream is None and not waits:
            lane = machine.current_lane()
        machine.copy(*(_address(x) for x in (target, source)), size, kind, lane, waits)

    def copy_from_device(self, src: "MemoryPointer", size: int) -> None:
        self._copy(self, src, size, 4, None, True)

    def copy_from_device_async(self, src: "MemoryPointer", size: int, stream: Any = None) -> None:
        self._copy(self, src, size, 4, stream, False)

    def copy_from_host(self, mem: Any, size: int) -> None:
        self._copy(self, mem, size, 1, None, True)

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        self._copy(self, mem, size, 1, stream, False)

    def copy_from(self, mem: Any, size: int) -> None:
        self._copy(self, mem, size, 4, None, True)

    def copy_from_async(self, mem: Any, size: int, stream: Any = None) -> None:
        self._copy(self, mem, size, 4, stream, False)

    def copy_to_host(self, mem: Any, size: int) -> None:
        self._copy(mem, self, size, 2, None, True)

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        self._copy(mem, self, size, 2, stream, False)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        machine = now()
        lane = machine.current_lane() if stream is None else machine.lane(machine.device, stream.ptr)
        memset(self.ptr, value, size, lane)

    def memset(self, value: int, size: int) -> None:
        memset(self.ptr, value, size, now().lane(self.device_id, 0))


def memset(address: int, value: int, size: int, lane: Any) -> None:
    machine = now()
    block = machine.find_on_device(address, size)
    view = block.buffer[address - block.base :][:size]
    machine.submit(lane, "memset", [(block, view, True)], lambda: view.fill(value), later=True)


def _address(place: Any) -> int:
    if isinstance(place, int):
        return place
    return place.ptr if isinstance(place, MemoryPointer) else place.value


def _free(machine: Any, block: Block, then: Callable[[], None]) -> None:
    machine.drop_block(block)
    then()


class Segment:
    """What a pool took from a device at one time; it goes back when no chunk of it is left."""

    def __init__(self, device: int, size: int) -> None:
        machine = now()
        machine.reserve(device, size)
        self.device, self.size = device, size
        weakref.finalize(self, machine.unreserve, device, size).atexit = False


class Chunk:
    """A part of a segment, and what its former owners did with it."""

    def __init__(self, segment: Segment, offset: int, size: int, history: list[Access]) -> None:
        self.segment, self.offset, self.size, self.history = segment, offset, size, history


class _Arenas:
    """The pool of one device: free chunks for each stream, since only that stream may use them at once."""

    def __init__(self) -> None:
        self.free: dict[int, list[Chunk]] = {}
        self.used = self.total = self.limit = 0
        self._returned: deque[tuple[Chunk, Block, int]] = deque()

    def malloc(self, size: int) -> MemoryPointer:
        machine = now()
        if size == 0:
            return MemoryPointer(Memory(0), 0)
        size, stream = -(-size // UNIT) * UNIT, machine.current_lane().ptr
        with machine.lock:
            self._settle()
            chunks = self.free.setdefault(stream, [])
            fitting = [chunk for chunk in chunks if chunk.size >= size]
            if fitting:
                chunk = min(fitting, key=lambda c: c.size)
                chunks.remove(chunk)
                if chunk.size > size:
                    rest = Chunk(chunk.segment, chunk.offset + size, chunk.size - size, list(chunk.history))
                    chunks.append(rest)
                    chunk.size = size
            else:
                chunk = Chunk(self._new_segment(size), 0, size, [])
            self.used += size
            return MemoryPointer(PooledMemory(chunk, self, stream), 0)

    def _new_segment(self, size: int) -> Segment:
        for attempt in range(3):
            if attempt:  # CuPy frees what is unused, then collects garbage, then gives up
                gc.collect()
                self.free_all_blocks()
            if self.limit and size > self.limit:
                break
            if not self.limit or self.total + size <= self.limit:
                try:
                    segment = Segment(now().device, size)
                except CUDARuntimeError:
                    continue
                self.total += size
                return segment
        raise OutOfMemoryError(size, self.total, self.limit)

    def take_back(self, chunk: Chunk, block: Block, stream: int) -> None:
        """Be given a chunk by a finalizer, which may come while the lists of free chunks are being changed."""
        self.used -= chunk.size
        self._returned.append((chunk, block, stream))

    def _settle(self) -> None:
        """Put what came back among the free chunks of its stream, merged with its neighbours."""
        while self._returned:
            chunk, block, stream = self._returned.popleft()
            chunk.history = _latest([Access(a.lane, a.tick, None, a.writes, a.what) for a in block.history])
            chunks = self.free.setdefault(stream, [])
            for other in [c for c in chunks if c.segment is chunk.segment]:
                if other.offset + other.size == chunk.offset or chunk.offset + chunk.size == other.offset:
                    chunks.remove(other)
                    start, history = min(chunk.offset, other.offset), _latest(chunk.history + other.history)
                    chunk = Chunk(chunk.segment, start, chunk.size + other.size, history)
            chunks.append(chunk)

    def n_free_blocks(self) -> int:
        self._settle()
        return sum(map(len, self.free.values()))

    def free_all_blocks(self) -> None:
        """Give whole segments back; one of which a part is in use stays, as in CuPy."""
        self._settle()
        for stream, chunks in self.free.items():
            self.total -= sum(c.size for c in chunks if c.size == c.segment.size)
            self.free[stream] = [c for c in chunks if c.size != c.segment.size]


def _latest(history: list[Access]) -> list[Access]:
    """Keep the last read and the last write of each stream: what waits for them has waited for those before them."""
    last: dict[tuple[int, bool], Access] = {}
    for access in history:
        key = id(access.lane), access.writes
        if key not in last or last[key].tick < access.tick:
            last[key] = access
    return list(last.values())


class MemoryPool:
    """CuPy's pool: one for each device, with a limit for each."""

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        assert allocator in (None, _malloc), "a pool over another allocator is not faked"
        self._pools = [_Arenas() for _ in range(now().n_devices)]

    def malloc(self, size: int) -> MemoryPointer:
        return self._pools[now().device].malloc(size)

    def free_all_blocks(self, stream: Any = None) -> None:
        with now().lock:
            self._pools[now().device].free_all_blocks()

    def n_free_blocks(self) -> int:
        return self._pools[now().device].n_free_blocks()

    def used_bytes(self) -> int:
        return self._pools[now().device].used

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def total_bytes(self) -> int:
        return self._pools[now().device].total

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if size is not None and fraction is not None:
            raise ValueError("size and fraction cannot be specified at one time")
        if (size or 0) < 0:
            raise ValueError(f"memory limit size out of range: {size}")
        self._pools[now().device].limit = int(size or (fraction or 0) * now().memory)

    def get_limit(self) -> int:
        return self._pools[now().device].limit


def _malloc(size: int) -> MemoryPointer:
    return MemoryPointer(Memory(size), 0)


class Allocators:
    """The allocator of the process, and the one of each thread that is inside `using_allocator`."""

    def __init__(self) -> None:
        self.pool = MemoryPool()
        self.of_all: Callable[[int], MemoryPointer] = self.pool.malloc
        self.of_thread = threading.local()

    def get(self) -> Callable[[int], MemoryPointer]:
        return getattr(self.of_thread, "allocator", None) or self.of_all

    def set(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        if getattr(self.of_thread, "allocator", None) is not None:
            raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
        self.of_all = allocator or _malloc

    @contextmanager
    def using(self, allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
        before = getattr(self.of_thread, "allocator", None)
        self.of_thread.allocator = allocator or _malloc
        try:
            yield
        finally:
            self.of_thread.allocator = before


def alloc(size: int) -> MemoryPointer:
    """Call the current allocator."""
    return now().allocators.get()(size)
