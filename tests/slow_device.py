"""A device made of NumPy arrays whose copies take their time, come late, and fail where they are told to.

What a device may do at any time between what orders it, this one does as late as it may, after a random delay, in
threads; what it finds out of order, it reports.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cqs.backend import slot_bytes
from cqs.backend.host import HostDevice, HostSession, HostSlot


@dataclass(eq=False)
class SlowDevice:
    """A device to test with.

    Parameters
    ----------
    seed : int
        Of the delays.
    delay : float
        The longest of them, in seconds.
    memory : int
        Bytes that it says are free, and that slots and copies may take.
    fails : function
        Of ("slot" | "fill" | "upload" | "download", how many there were before), whether it is to run out of memory.
    """

    seed: int = 0
    delay: float = 2e-3
    memory: int = 1 << 26
    fails: Callable[[str, int], bool] = lambda what, n: False
    n_open: int = 0
    peak: int = 0  # bytes of slots, at most
    faults: list[str] = field(default_factory=list)

    xp = np

    @property
    def name(self) -> str:
        return f"slow {self.seed}"

    def free_bytes(self) -> int:
        return self.memory

    @contextmanager
    def opened(self, memory: int | None = None) -> Iterator["SlowSession"]:
        self.n_open += 1
        with ThreadPoolExecutor(2) as copying:  # one for each way
            try:
                yield SlowSession(self, copying)
            finally:
                self.n_open -= 1


class SlowSession:
    xp = np

    def __init__(self, device: SlowDevice, copying: ThreadPoolExecutor) -> None:
        self.slow, self.copying = device, copying
        self.random = random.Random(device.seed)
        self.counts = {"slot": 0, "fill": 0, "upload": 0, "download": 0}
        self.slot_bytes = 0
        self.host = HostSession(np, None, device.name)  # which takes times

    def late(self, what: str, n_bytes: int, work: Callable[[], Any]) -> Future[Any]:
        """Copy something after a while, of which copying is taken to be all."""
        seconds = self.random.uniform(0, self.slow.delay)

        def copy() -> Any:
            with self.host.spent(what, n_bytes):
                time.sleep(seconds)
                return work()

        return self.copying.submit(copy)

    def listen(self, emit: Callable[[Any], object]) -> None:
        self.host.listen(emit)

    def timed(self, task: int) -> Any:
        return self.host.timed(task)

    def may_fail(self, what: str) -> None:
        n = self.counts[what]
        self.counts[what] += 1
        if self.slow.fails(what, n):
            raise MemoryError(f"{what} {n} of {self.slow.name}")

    def upload(self, array: np.ndarray) -> np.ndarray:
        self.may_fail("upload")
        return np.array(array)

    def synchronise(self) -> None:
        """Copies are waited for one by one."""

    def slot(self, size: int) -> "SlowSlot":
        self.may_fail("slot")
        return SlowSlot(self, size)

    def download(self, array: np.ndarray) -> "LateDownload":
        self.may_fail("download")
        return LateDownload(self.late("copy out", array.nbytes, lambda: np.array(array)))


class SlowSlot(HostSlot):
    """Is NaN until what it is filled with is there, and again from when it is free."""

    def __init__(self, session: SlowSession, size: int) -> None:
        super().__init__(HostSession(np, None), size)
        self.session = session
        self.filling: Future[Any] | None = None
        self.is_in_use = False
        session.slot_bytes += size
        session.slow.peak = max(session.slow.peak, session.slot_bytes)

    def __del__(self) -> None:
        self.session.slot_bytes -= self.size

    def fill(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        self.session.may_fail("fill")
        if self.is_in_use:
            self.session.slow.faults.append("a slot was filled that was in use")
        if slot_bytes(arrays) > self.size:
            self.session.slow.faults.append("a slot was filled with more than it holds")
        self.is_in_use = True
        copies = [np.array(array) for array in arrays]
        places = super().fill(arrays)
        for place in places:
            place[...] = np.nan

        def copy() -> None:
            for place, array in zip(places, copies, strict=True):
                place[...] = array

        self.filling = self.session.late("copy in", sum(array.nbytes for array in arrays), copy)
        return places

    def wait(self) -> None:
        self.filling.result()

    def free(self) -> None:
        self.filling.result()
        self._bytes[...] = 255  # NaN in every type
        self.is_in_use = False

    def is_free(self) -> bool:
        return self.session.random.random() < 0.5


@dataclass
class LateDownload:
    coming: Future[np.ndarray]

    def result(self) -> np.ndarray:
        return self.coming.result()


def on_host(n: int) -> list[HostDevice]:
    """Several devices without delays."""
    return [HostDevice() for _ in range(n)]


def threads_of_devices() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cqs-")]
