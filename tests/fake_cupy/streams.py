"""`cupy.cuda.stream`: streams and events over the machine's timeline."""

from typing import Any

from fake_cupy.machine import CUDARuntimeError, now
from fake_cupy.ordering import Lane, Mark


class Event:
    """A point of a stream that others wait for; waiting for one that was never recorded does nothing, as in CUDA."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self.ptr = id(self)
        self._has_time = not disable_timing
        self._mark: Mark | None = None

    def record(self, stream: "Stream | None" = None) -> None:
        lane = now().current_lane() if stream is None else stream._lane
        self._mark = now().record(lane)

    def synchronize(self) -> None:
        if self._mark is not None:
            now().reach(self._mark)

    @property
    def done(self) -> bool:
        return self._mark is None or now().is_reached(self._mark)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return milliseconds, of the machine's made-up time, between two events."""
    if not (start_event._has_time and end_event._has_time and start_event._mark and end_event._mark):
        raise CUDARuntimeError(400, "both events must have been recorded, with timing")
    if not (start_event.done and end_event.done):
        raise CUDARuntimeError(600)
    return (end_event._mark.seconds - start_event._mark.seconds) * 1000


class Stream:
    """A stream; `Stream.null` is the null stream of whichever device is current."""

    null: "Stream"

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        if ptds:
            raise NotImplementedError("per-thread default streams are not faked")
        self.is_non_blocking = non_blocking
        self.ptr, self.device_id = 0, -1
        if not null:
            lane = now().new_lane(now().device, is_blocking=not non_blocking)
            self.ptr, self.device_id = lane.ptr, lane.device

    @property
    def _lane(self) -> Lane:
        return now().lane(now().device if self.device_id < 0 else self.device_id, self.ptr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} (device {self.device_id})>"

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def __enter__(self) -> "Stream":
        _stack(self._matching_device()).append(self)
        _entered().append(now().device)
        return self

    def __exit__(self, *args: object) -> None:
        _stack(_entered().pop()).pop()

    def use(self) -> "Stream":
        _stack(self._matching_device())[-1] = self
        return self

    def _matching_device(self) -> int:
        current = now().device
        if self.device_id not in (-1, current):
            text = f"The device that the stream is created on ({self.device_id}) does not match with the current device"
            raise RuntimeError(f"{text} ({current})")
        return current

    @property
    def done(self) -> bool:
        return now().is_reached(now().record(self._lane))

    def synchronize(self) -> None:
        now().synchronize([self._lane])

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event._mark is not None:
            now().wait(self._lane, event._mark)

    def launch_host_func(self, callback: Any, arg: Any) -> None:
        now().submit(self._lane, "host function", [], lambda: callback(arg), later=True)


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    """Return this thread's current stream of a device, the current one by default."""
    return _stack(now().device if device_id == -1 else device_id)[-1]


def _stack(device: int) -> list[Stream]:
    return now().streams.setdefault(device, [Stream.null])


def _entered() -> list[int]:
    local = now()._local
    if not hasattr(local, "entered"):
        local.entered = []
    return local.entered
