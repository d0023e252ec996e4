"""A device: what computes with a memory of its own, to which inputs are copied, and from which results come back.

A `Device` is only named until it is opened for one run; what is open is a `Session`. It has three streams, of copies
in, of computing and of copies out, which run at the same time; what orders them is said here, by events, and nowhere
else: a `Slot` is filled when nobody reads it any more, and read when it is full; a `Download` begins when what it
copies is computed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from cqs.events import Event
from cqs.types import Array, Namespace

__all__ = ["ALIGNED_BYTES", "Device", "Download", "Session", "Slot", "TimedSession", "row_parts", "slot_bytes"]

ALIGNED_BYTES = 256  # where arrays in a slot begin

HostArray = npt.NDArray[Any]


class Slot(Protocol):
    """A piece of a device's memory that inputs pass through, again and again."""

    @property
    def size(self) -> int:
        """Its bytes."""

    def fill(self, arrays: Sequence[HostArray]) -> tuple[Array, ...]:
        """Begin to copy arrays, for which `slot_bytes` is at most `size`, into it as soon as it is free.

        Returns
        -------
        tuple of array
            On the device, of the same shapes and types, to be used after `wait` and before `free`.
        """

    def wait(self) -> None:
        """Have whatever is computed from now on wait until it is full."""

    def free(self) -> None:
        """Say that what has been told to compute so far is the last to read it."""

    def is_free(self) -> bool:
        """Whether that has been computed; if not, filling it has to wait."""


class Download(Protocol):
    """An array on its way back from a device. The device keeps it meanwhile."""

    def result(self) -> HostArray:
        """Return it, once it is there."""


class Session(Protocol):
    """A device that is open, for one run, in one thread, in which it is current."""

    @property
    def xp(self) -> Namespace:
        """The namespace of its arrays."""

    def upload(self, array: HostArray) -> Array:
        """Return a copy on the device, in memory of its own."""

    def slot(self, size: int) -> Slot:
        """Allocate a slot.

        Raises
        ------
        MemoryError, or an error of that kind
            If the device's memory, or what the run may have of it, is used up.
        """

    def download(self, array: Array) -> Download:
        """Begin to copy an array back, as soon as it is computed."""

    def synchronise(self) -> None:
        """Wait until everything is computed and copied."""


@runtime_checkable
class TimedSession(Session, Protocol):
    """A session that also says when its device copied and computed; one that does not is not asked."""

    def listen(self, emit: Callable[[Event], object]) -> None:
        """Tell somebody from now on of all that is copied, and of what is `timed`: `cqs.events.DeviceBusy`.

        It is told when the device has done it, by the end of the run, and never waited for.
        """

    def timed(self, task: int) -> AbstractContextManager[None]:
        """Take what is put on the device inside for computing a task; nothing if nobody listens."""


@runtime_checkable
class Device(Protocol):
    """Something that tasks can be computed on. `cqs.attention` takes such objects for `devices`."""

    @property
    def name(self) -> str:
        """What it is called, as in errors and plans."""

    @property
    def xp(self) -> Namespace:
        """The namespace of its arrays."""

    def free_bytes(self) -> int:
        """Return how much of its memory is free."""

    def opened(self, memory: int | None = None) -> AbstractContextManager[Session]:
        """Open it in this thread; at the end everything is complete, and its memory is given back.

        Parameters
        ----------
        memory : int, optional
            The most bytes that may be allocated on it.
        """


def slot_bytes(arrays: Sequence[HostArray]) -> int:
    """Return the size of a slot that holds some arrays."""
    return sum(-(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES for array in arrays)


def row_parts(array: HostArray, most: int) -> list[HostArray]:
    """Cut an array into parts of at most `most` bytes, or single numbers, in the order of its elements.

    >>> import numpy as np
    >>> [part.tolist() for part in row_parts(np.arange(6, dtype=np.int8).reshape(2, 3), 2)]
    [[[0]], [[1, 2]], [[3]], [[4, 5]]]
    """
    if array.nbytes <= most or array.size <= 1:
        return [array] if array.size else []
    axis = next(axis for axis, n in enumerate(array.shape) if n > 1)  # what comes before it has length 1
    middle = array.shape[axis] // 2
    before = (slice(None),) * axis
    halves = array[(*before, slice(None, middle))], array[(*before, slice(middle, None))]
    return [part for half in halves for part in row_parts(half, most)]
