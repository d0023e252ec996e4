"""Ctrl-C while tasks are computed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cqs.cli.files import unfinished

__all__ = ["ending_at_once"]

_STDERR = 2
_END_BAR = "\r\x1b[2K\x1b[?25h"  # clear the line that a progress bar is in, and show the cursor that it hid


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process at the first Ctrl-C or SIGTERM while inside, with no file left unfinished.

    An exception would not do: it has to wait for threads in the middle of tasks, which may take many minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    for path in list(unfinished):
        path.unlink(missing_ok=True)
    os.write(_STDERR, f"{_END_BAR if os.isatty(_STDERR) else ''}cqs: interrupted\n".encode())
    os._exit(128 + number)
