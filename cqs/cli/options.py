"""What several commands have in common: types of arguments, options, and the parser of one command."""

import argparse
from typing import Any

__all__ = ["Arguments", "Parsers", "add_command", "add_common", "whole"]

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


def add_common(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options that mean the same in every command that has them, by name."""
    for name in names:
        parser.add_argument(f"--{name}", **_COMMON[name])


_COMMON: dict[str, dict[str, Any]] = {
    "workers": {"type": int, "metavar": "W", "help": "number of tasks; by default what suits this machine"},
    "causal": {"action": "store_true", "help": "query i sees keys j <= i only"},
    "scale": {"type": float, "metavar": "X", "help": "what scores are multiplied by; by default 1/sqrt(width)"},
    "strategy": {"default": "auto", "metavar": "NAME", "help": "how the scores are cut: auto (default), cqs or tiles"},
    "threads": {"type": int, "metavar": "N", "help": "threads to compute on; by default one a CPU"},
    "json": {"action": "store_true", "help": "print one JSON object in place of the table"},
}


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
