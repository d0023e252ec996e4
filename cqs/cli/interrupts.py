"""Ctrl-C while tasks are computed."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["ending_at_once"]

_STDERR = 2
_END = "it cannot be resumed, and may be deleted"
_END_BAR = "\r\x1b[2K\x1b[?25h"  # clear the line that a progress bar is in, and show the cursor that it hid


@contextmanager
def ending_at_once(outputs: Sequence[Path] = (), job: str | None = None) -> Iterator[None]:
    """End the process at the first Ctrl-C or SIGTERM while inside, and say which outputs are left unfinished.

    An exception would have to wait for threads in the middle of a kernel call, which may take a minute. Nothing has to
    be cleared up: until an output is complete it has another name.

    Parameters
    ----------
    outputs : sequence of Path
        Those that are being written.
    job : str, optional
        The directory that results of tasks are kept in.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        names = [f"{path.name}.unfinished" for path in outputs]
        left = [name for path, name in zip(outputs, names, strict=True) if path.with_name(name).exists()]
        kept = f"; what there is of the output is kept as {' and '.join(left)}: {_END}" if left else ""
        if job is not None:
            kept = f"; what {job} keeps of it is safe: run the same command again to resume"
        os.write(_STDERR, f"{_END_BAR if os.isatty(_STDERR) else ''}cqs: interrupted{kept}\n".encode())
        os._exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
