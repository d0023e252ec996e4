"""What several commands have in common: types of arguments, options, and the parser of one command."""

import argparse
import os.path
import re
from typing import Any

from cqs.engines import LocalEngine
from cqs.errors import OptionError

__all__ = [
    "Arguments", "Parsers", "add_command", "add_common", "engine_of", "numbers", "path", "rate", "real", "tasks",
    "whole",
]  # fmt: skip

Arguments = argparse.Namespace
Parsers = Any  # what `add_subparsers` returns has no public name


def add_command(parsers: Parsers, name: str, usage: str, summary: str, epilog: str = "") -> argparse.ArgumentParser:
    """Add the parser of one command."""
    parser: argparse.ArgumentParser = parsers.add_parser(
        name,
        usage=f"cqs {name} {usage}",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_common(parser: argparse._ActionsContainer, *names: str) -> None:
    """Add options that mean the same in every command that has them, by name."""
    for name in names:
        parser.add_argument(f"--{name}", **_COMMON[name])


def engine_of(args: Arguments) -> LocalEngine | None:
    """Return the engine that `--threads` means, if it was given; GPUs take none."""
    if args.threads is None:
        return None
    if args.backend == "cupy" or args.devices:
        raise OptionError.of("--threads", "be left out where GPUs compute", args.threads, "drop one")
    return LocalEngine(args.threads)


def numbers(text: str) -> list[int]:
    """Read numbers with commas between them.

    >>> numbers("0,1")
    [0, 1]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 0,1, got {text!r}") from None


def tasks(text: str) -> slice | list[int]:
    """Read which tasks are meant: numbers, or a slice as Python has it.

    >>> tasks("4,7"), tasks("3::64")
    ([4, 7], slice(3, None, 64))
    """
    parts = text.split(":")
    try:
        if len(parts) == 1:
            return numbers(text)
        chosen = slice(*(int(part) if part else None for part in parts))
        range(1)[chosen]  # of steps of 0, and of more than three parts, there is nothing
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"must be numbers such as 4,7 or a slice such as 3::64, got {text!r}"
        ) from None
    return chosen


def whole(text: str) -> int:
    """Read a whole number, which may be written like 1e6.

    >>> whole("4096"), whole("1e6")
    (4096, 1000000)
    """
    try:
        number = int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        number = -1
    if number < 0 or number != number // 1:
        raise argparse.ArgumentTypeError(f"must be a whole number such as 4096 or 1e6, got {text!r}")
    return int(number)


def real(text: str) -> float:
    """Read a number.

    >>> real("0.125")
    0.125
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number such as 0.125, got {text!r}") from None


def path(text: str) -> str:
    """Read a path; `~` is a home directory also where a shell has left it, as in `--mask=~/m.npy`."""
    return os.path.expanduser(text)


_COMMON: dict[str, dict[str, Any]] = {
    "workers": {"type": whole, "metavar": "W", "help": "number of tasks; by default what suits this machine"},
    "causal": {"action": "store_true", "help": "query i sees keys j <= i only"},
    "scale": {"type": real, "metavar": "X", "help": "what scores are multiplied by; by default 1/sqrt(width)"},
    "strategy": {
        "default": "auto",
        "metavar": "NAME",
        "help": "how scores are cut: auto (default), cqs, tiles, ring, tree",
    },
    "memory": {
        "metavar": "BYTES",
        "help": "the most to hold beyond inputs in memory, such as 256MiB; by default no limit",
    },
    "backend": {"metavar": "NAME", "help": "numpy (default), or cupy, which computes on a GPU"},
    "devices": {"type": numbers, "metavar": "N,N...", "help": "which GPUs, such as 0,1; by default the first"},
    "threads": {"type": whole, "metavar": "N", "help": "threads to compute on; by default one a CPU"},
    "job": {"type": path, "metavar": "DIR", "help": "keep the results of tasks there, and resume from those it has"},
    "json": {"action": "store_true", "help": "print one JSON object in place of the table"},
}


def rate(text: str) -> float:
    """Read a rate of operations, which may have a decimal unit.

    >>> rate("2e9"), rate("150G"), rate("1.5 TFLOP/s")
    (2000000000.0, 150000000000.0, 1500000000000.0)
    """
    found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)\s*([kmgtp]?)(?:flops?(?:/s)?)?", text.strip().lower())
    try:
        number = float(found.group(1)) * 1000 ** " kmgtp".index(found.group(2) or " ") if found else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be operations a second such as 150G or 2.5e12, got {text!r}")
    return number
