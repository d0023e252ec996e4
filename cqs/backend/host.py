"""The CPU as a device: the same steps without a GPU, for tests and lessons; any library of the array API."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.backend.arrays import is_numpy, on_host
from cqs.backend.device import ALIGNED_BYTES
from cqs.events import DeviceBusy, Emit
from cqs.types import Array, Namespace

__all__ = ["HostDevice"]

HostArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class HostDevice:
    """The memory of this machine, or a device of an array library, taken for a device of its own.

    Everything is copied as if it were far away, and at once: nothing overlaps.

    Parameters
    ----------
    xp : namespace
        Of its arrays; by default NumPy.
    device : object, optional
        One of the library's devices.
    memory : int
        Bytes that it says are free. Only the plan keeps to it.
    """

    xp: Namespace = np
    device: object = None
    memory: int = 1 << 30

    @property
    def name(self) -> str:
        """The library and its device."""
        library = self.xp.__name__.removeprefix("array_api_compat.")
        return library if self.device is None else f"{library} on {self.device}"

    def free_bytes(self) -> int:
        """Return what it was said to have."""
        return self.memory

    @contextmanager
    def opened(self, memory: int | None = None) -> Iterator["HostSession"]:
        """Open it; see `cqs.backend.Device`."""
        yield HostSession(self.xp, self.device, self.name)


@dataclass(slots=True, eq=False)
class HostSession:
    """Copies that are complete when they return."""

    xp: Namespace
    device: object
    name: str = ""
    emit: Emit = None

    def upload(self, array: HostArray) -> Array:
        """Return a copy."""
        with self.spent("copy in", array.nbytes):
            return self.xp.asarray(np.array(array), device=self.device)

    def slot(self, size: int) -> "HostSlot":
        """Allocate a slot."""
        return HostSlot(self, size)

    def download(self, array: Array) -> "HostDownload":
        """Copy an array."""
        there = on_host(array)
        with self.spent("copy out", there.nbytes):
            return HostDownload(np.array(there))

    def synchronise(self) -> None:
        """Do nothing: everything is complete."""

    def listen(self, emit: Emit) -> None:
        """Tell somebody what time is spent on, by the clock of the machine."""
        self.emit = emit

    def timed(self, task: int) -> AbstractContextManager[None]:
        """Take what is done inside for computing."""
        return self.spent("compute", task=task)

    @contextmanager
    def spent(self, what: str, n_bytes: int = 0, task: int = -1) -> Iterator[None]:
        """Tell of what is done inside."""
        start = perf_counter()
        yield
        if self.emit is not None:
            own: dict[str, Any] = {"device": self.name, "what": what, "lane": f"{self.name} {what}"}
            self.emit(DeviceBusy(task=task, start=start, n_bytes=n_bytes, **own))


class HostSlot:
    """Memory that is used again; a library whose arrays cannot be made from bytes gets new ones."""

    def __init__(self, session: HostSession, size: int) -> None:
        self._session = session
        self.size = size
        self._bytes = np.empty(size, np.uint8)

    def fill(self, arrays: Sequence[HostArray]) -> tuple[Array, ...]:
        """Copy arrays."""
        first, filled = 0, []
        for array in arrays:
            place = self._bytes[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
            if is_numpy(self._session.xp):
                with self._session.spent("copy in", array.nbytes):
                    place[...] = array
            else:
                place[...] = array
                place = self._session.upload(place)
            filled.append(place)
            first += -(-array.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
        return tuple(filled)

    def wait(self) -> None:
        """Do nothing: it is full."""

    def free(self) -> None:
        """Do nothing: what was told to compute has been computed."""

    def is_free(self) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True, slots=True, eq=False)
class HostDownload:
    """A copy that is there."""

    array: HostArray

    def result(self) -> HostArray:
        """Return it."""
        return self.array
