"""When the streams of a CUDA device were busy, by events on them: by the device's clock, in the time of the machine."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

from cqs.events import DeviceBusy, Event

__all__ = ["CudaTimes"]


class _Span(NamedTuple):
    """Two events on a stream, of which the second may not have come yet."""

    first: Any
    last: Any
    what: str
    n_bytes: int
    task: int


class CudaTimes:
    """Puts events around what is put on streams, and tells of it once the device has done it. Waits only to begin with.

    Parameters
    ----------
    cupy : module
        CuPy; the device is current.
    device : str
        What it is called.
    stream : Stream
        One of its streams.
    emit : function
        Told of each span.
    """

    def __init__(self, cupy: Any, device: str, stream: Any, emit: Callable[[Event], object]) -> None:
        self._cuda = cupy.cuda
        self._device = device
        self._emit = emit
        self._spans: defaultdict[int, deque[_Span]] = defaultdict(deque)  # by stream, in whose order they end
        self._zero = self._recorded(stream)
        self._zero.synchronize()
        self._zero_seconds = perf_counter()

    @contextmanager
    def span(self, stream: Any, what: str, n_bytes: int = 0, task: int = -1) -> Iterator[None]:
        """Take the time of what is put on a stream inside, unless that fails."""
        first = self._recorded(stream)
        yield
        self._spans[stream.ptr].append(_Span(first, self._recorded(stream), what, n_bytes, task))

    def tell(self) -> None:
        """Tell of what has been done so far."""
        for spans in self._spans.values():
            while spans and spans[0].last.done:
                self._tell(spans.popleft())

    def _recorded(self, stream: Any) -> Any:
        event = self._cuda.Event()
        event.record(stream)
        return event

    def _tell(self, span: _Span) -> None:
        start, stop = (
            self._zero_seconds + self._cuda.get_elapsed_time(self._zero, event) / 1e3
            for event in (span.first, span.last)
        )
        own: dict[str, Any] = {"device": self._device, "what": span.what, "lane": f"{self._device} {span.what}"}
        self._emit(DeviceBusy(task=span.task, start=start, stop=stop, n_bytes=span.n_bytes, **own))
