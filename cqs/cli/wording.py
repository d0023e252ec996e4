"""The library's messages in the words of the command line."""

import difflib
import re
from collections.abc import Iterable

__all__ = ["in_options", "near"]

# what `cqs.attention` and its like call something -> the option
_OPTIONS = {"is_causal": "--causal", "n_rows": "--rows", "out": "-o", "sink_logits": "--sink-logits"} | {
    name: f"--{name}"
    for name in (
        "backend", "bias", "devices", "dtype", "job", "kernel", "mask", "memory", "scale", "seed", "softcap",
        "strategy", "tasks", "threads", "workers",
    )
}  # fmt: skip
_NAMED = re.compile(r"`(\w+)=?`")
_GIVEN = re.compile(rf"\b({'|'.join(_OPTIONS)})=(?:'(\w*)'|(\w*))")


def in_options(message: str, command: str = "") -> str:
    """Name options where a message names arguments of Python.

    >>> in_options("`n_rows` must be at least 1, got 0")
    '`--rows` must be at least 1, got 0'
    >>> in_options("give `out=` a file, or use kernel='auto'")
    'give `-o` a file, or use --kernel auto'
    """
    options = _OPTIONS | ({} if command == "quorum" else {"W": "--workers"})  # `cqs quorum` takes W by that name
    if command == "verify":
        options["out"] = "OUT"
    named = _NAMED.sub(lambda found: f"`{options[found[1]]}`" if found[1] in options else found[0], message)
    return _GIVEN.sub(lambda found: f"{options[found[1]]} {found[2] or found[3] or ''}".rstrip(), named)


def near(wrong: str, known: Iterable[str]) -> str:
    """Return what was probably meant, as the end of a message; nothing if nothing is near.

    >>> near("--workerz", ["--workers", "--memory"])
    '; did you mean --workers?'
    """
    found = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
