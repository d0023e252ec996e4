"""CUDA devices, through CuPy: three streams, slots with events, and a ring of pinned memory.

CuPy's pool hands memory on in the order of one stream, and does not know that another still reads it. So everything is
allocated for the stream that computes; a slot is never given back while the run lasts, and a download holds what it
copies until it has been copied.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import is_cupy_array

from cqs.backend.cuda_libraries import cuda_devices, import_cupy, load_libraries
from cqs.backend.cuda_times import CudaTimes
from cqs.backend.device import ALIGNED_BYTES, row_parts
from cqs.checks import whole_number
from cqs.errors import BackendError
from cqs.events import Event
from cqs.types import Array, Namespace

__all__ = ["CudaDevice", "arrays_device", "cuda_number"]

HostArray = npt.NDArray[Any]

_PINNED_BYTES, _PINNED = 8 << 20, 4  # bytes of a pinned buffer, and how many there are for each way


def cuda_number(value: object) -> int:
    """Return the number of a device as an int, if it is a whole number."""
    return whole_number("devices", value, 0, "devices count from 0")


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU.

    Parameters
    ----------
    index : int
        Its number, from 0, among those that CUDA shows to this process.

    Raises
    ------
    BackendError
        If CuPy, the driver or the device is missing; it says what to do.
    OptionError
        If the number is no whole number.
    """

    index: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", cuda_number(self.index))
        n_devices = cuda_devices()
        if self.index >= n_devices:
            there = "0" if n_devices == 1 else f"0..{n_devices - 1}"
            remedy = "`cqs doctor` lists them; CUDA_VISIBLE_DEVICES says which of them a process sees"
            raise BackendError.of("devices", f"be numbers of CUDA devices, {there}", self.index, remedy)

    @property
    def name(self) -> str:
        """Its number and model."""
        properties = import_cupy().cuda.runtime.getDeviceProperties(self.index)
        return f"cuda:{self.index} {properties['name'].decode()}"

    @property
    def xp(self) -> Namespace:
        """CuPy, with the names of the array API."""
        import_cupy()
        import array_api_compat.cupy

        return array_api_compat.cupy

    def free_bytes(self) -> int:
        """Return how much of its memory is free, what CuPy keeps for later included."""
        cupy = import_cupy()
        with cupy.cuda.Device(self.index):
            return int(cupy.cuda.Device(self.index).mem_info[0] + cupy.get_default_memory_pool().free_bytes())

    @contextmanager
    def opened(self, memory: int | None = None) -> Iterator["CudaSession"]:
        """Make it current in this thread, with a stream and a pool of memory of its own; see `cqs.backend.Device`."""
        cupy = import_cupy()
        load_libraries()
        with cupy.cuda.Device(self.index):
            cupy.get_default_memory_pool().free_all_blocks()
            pool = cupy.cuda.MemoryPool()
            if memory is not None:
                pool.set_limit(size=memory)
            session = CudaSession(cupy, self.xp, f"cuda:{self.index}")
            with cupy.cuda.using_allocator(pool.malloc), session.computing:
                try:
                    yield session
                finally:
                    session.close()
            pool.free_all_blocks()


@contextmanager
def arrays_device(array: Array, memory: int | None) -> Iterator[None]:
    """Make the device of a CuPy array current, and bound what may be allocated on it; for others do nothing.

    Raises
    ------
    BackendError
        If libraries that computing takes are missing.
    """
    if not is_cupy_array(array):
        yield
        return
    cupy = import_cupy()
    load_libraries()
    with array.device, ExitStack() as bounded:
        if memory is not None:
            pool = cupy.cuda.MemoryPool()
            pool.set_limit(size=memory)
            bounded.enter_context(cupy.cuda.using_allocator(pool.malloc))
        yield


class CudaSession:
    """Streams and pinned memory for one run on one device; made by `CudaDevice.opened`."""

    def __init__(self, cupy: Any, xp: Namespace, name: str) -> None:
        self.cupy = cupy
        self.xp = xp
        self._name = name
        self._times: CudaTimes | None = None
        self.computing, self.copying_in, self.copying_out = (cupy.cuda.Stream(non_blocking=True) for _ in range(3))
        self._in, self._out = _Ring(cupy), _Ring(cupy)
        self._downloads: deque[_Download] = deque()  # begun and not complete, in the order of their copies

    def upload(self, array: HostArray) -> Array:
        """Copy an array in the order of what is computed, so that no event is needed."""
        copy = self.cupy.empty(array.shape, array.dtype)
        with self.span(self.computing, "copy in", array.nbytes):
            copy.set(np.ascontiguousarray(array), stream=self.computing)
        return copy

    def slot(self, size: int) -> "_Slot":
        """Allocate a slot."""
        return _Slot(self, size)

    def download(self, array: Array) -> "_Download":
        """Begin to copy an array back."""
        download = _Download(self, self.cupy.ascontiguousarray(array))
        self._downloads.append(download)
        download.advance()
        return download

    def synchronise(self) -> None:
        """Wait for all three streams."""
        for stream in (self.copying_in, self.computing, self.copying_out):
            stream.synchronize()

    def listen(self, emit: Callable[[Event], object]) -> None:
        """Put events around all that follows."""
        self._times = CudaTimes(self.cupy, self._name, self.computing, emit)

    @contextmanager
    def timed(self, task: int) -> Iterator[None]:
        """Take the time of what is computed inside, and tell of what is done."""
        with self.span(self.computing, "compute", task=task):
            yield
        if self._times is not None:
            self._times.tell()

    def span(self, stream: Any, what: str, n_bytes: int = 0, task: int = -1) -> AbstractContextManager[None]:
        """Take the time of what is put on a stream inside, if somebody listens."""
        return nullcontext() if self._times is None else self._times.span(stream, what, n_bytes, task)

    def close(self) -> None:
        """Wait, so that no memory is given back that is in use, whatever has failed."""
        with suppress(self.cupy.cuda.runtime.CUDARuntimeError):  # it has been raised where it happened
            self.synchronise()
            if self._times is not None:
                self._times.tell()
        self._downloads.clear()

    def copy_in(self, target: int, array: HostArray) -> None:
        """Copy an array to an address on the device, piece by piece through pinned memory."""
        runtime = self.cupy.cuda.runtime
        for part in row_parts(array, _PINNED_BYTES):
            buffer = self._in.taken(may_wait=True)
            assert buffer is not None
            with ExitStack() as afterwards:  # if something fails here, too: the copy may have begun
                afterwards.callback(self._in.give_back, buffer)
                afterwards.callback(buffer.copied.record, self.copying_in)
                buffer.viewed(part.nbytes).view(part.dtype).reshape(part.shape)[...] = part
                kind = runtime.memcpyHostToDevice
                with self.span(self.copying_in, "copy in", part.nbytes):
                    runtime.memcpyAsync(target, buffer.address, part.nbytes, kind, self.copying_in.ptr)
            target += part.nbytes

    def next_out(self) -> "_Buffer | None":
        """Return pinned memory for a piece that is copied back, if any is free."""
        return self._out.taken()

    def copied_out(self, buffer: "_Buffer") -> None:
        """Be given back what `next_out` gave."""
        self._out.give_back(buffer)

    def finish_until(self, last: "_Download") -> None:
        """Complete downloads in their order, up to one of them."""
        while any(download is last for download in self._downloads):
            self._downloads.popleft().complete()
            if self._downloads:
                self._downloads[0].advance()  # before a later one takes all pinned memory


class _Slot:
    """See `cqs.backend.Slot`."""

    def __init__(self, session: CudaSession, size: int) -> None:
        cupy = session.cupy
        self._session = session
        self.size = size
        self._memory = cupy.empty(size, np.uint8)
        self._full, self._free = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        self.free()  # the memory may have been used before by what is still being computed

    def fill(self, arrays: Sequence[HostArray]) -> tuple[Array, ...]:
        session, first, filled = self._session, 0, []
        session.copying_in.wait_event(self._free)
        for array in arrays:
            place = session.cupy.ndarray(array.shape, array.dtype, memptr=self._memory.data + first)
            session.copy_in(place.data.ptr, array)
            filled.append(place)
            first += -(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
        self._full.record(session.copying_in)
        return tuple(filled)

    def wait(self) -> None:
        self._session.computing.wait_event(self._full)

    def free(self) -> None:
        self._free.record(self._session.computing)

    def is_free(self) -> bool:
        return bool(self._free.done)


class _Download:
    """See `cqs.backend.Download`."""

    def __init__(self, session: CudaSession, array: Array) -> None:
        self._session = session
        self._array = array
        self._host = np.empty(array.shape, array.dtype)
        self._bytes = self._host.reshape(-1).view(np.uint8)
        self._next = 0
        self._under_way: deque[tuple[_Buffer, int, int]] = deque()
        computed = session.cupy.cuda.Event(disable_timing=True)
        computed.record(session.computing)
        session.copying_out.wait_event(computed)

    def result(self) -> HostArray:
        self._session.finish_until(self)
        return self._host

    def advance(self) -> None:
        """Begin to copy pieces while there is pinned memory for them."""
        session, runtime = self._session, self._session.cupy.cuda.runtime
        while self._next < self._bytes.size:
            buffer = session.next_out()
            if buffer is None:
                return
            size = min(_PINNED_BYTES, self._bytes.size - self._next)
            source, kind = self._array.data.ptr + self._next, runtime.memcpyDeviceToHost
            try:
                with session.span(session.copying_out, "copy out", size):
                    runtime.memcpyAsync(buffer.address, source, size, kind, session.copying_out.ptr)
                buffer.copied.record(session.copying_out)
            except BaseException:
                session.copied_out(buffer)  # whatever is copied to it later comes after this
                raise
            self._under_way.append((buffer, self._next, size))
            self._next += size

    def complete(self) -> None:
        """Wait for each piece and put it into its place."""
        self.advance()
        while self._under_way:
            buffer, first, size = self._under_way.popleft()
            buffer.copied.synchronize()
            self._bytes[first : first + size] = buffer.viewed(size)
            self._session.copied_out(buffer)
            self.advance()
        assert self._next == self._bytes.size, "whoever waits first has pinned memory"
        self._array = None


class _Buffer:
    """Pinned memory, which the device copies from and to by itself, and the event of its last copy."""

    def __init__(self, cupy: Any) -> None:
        self._memory = cupy.cuda.PinnedMemoryPointer(cupy.cuda.PinnedMemory(_PINNED_BYTES), 0)
        self.address = int(self._memory.ptr)
        self.copied = cupy.cuda.Event(disable_timing=True)

    def viewed(self, size: int) -> HostArray:
        """Return the first bytes of it."""
        return np.frombuffer(self._memory, np.uint8, size)


class _Ring:
    """Pinned buffers, allocated when first needed, and used in turn."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._spare: deque[_Buffer] = deque()
        self._n_made = 0

    def taken(self, may_wait: bool = False) -> _Buffer | None:
        """Return a buffer whose last copy is complete; None if all are taken."""
        if self._n_made < _PINNED:
            buffer = _Buffer(self._cupy)
            self._n_made += 1
            return buffer
        if not self._spare:
            return None
        buffer = self._spare.popleft()
        if may_wait:
            buffer.copied.synchronize()
        return buffer

    def give_back(self, buffer: _Buffer) -> None:
        """Let a buffer be taken again."""
        self._spare.append(buffer)
