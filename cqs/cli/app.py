"""The entry point: one parser for each command, and what becomes of errors."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Never

import cqs
from cqs.cli import demo, doctor, job, plan, quorum, run, verify
from cqs.cli.options import Arguments
from cqs.cli.wording import in_options, near
from cqs.errors import CQSError, OptionError

__all__ = ["main"]

_EXAMPLES = """\
examples:
  cqs demo                                   try it on real data
  cqs run q.npy k.npy v.npy -o out.npy       arrays are (heads, tokens, width)
  cqs job run.job                            see how far `cqs run --job run.job` has come
  cqs verify q.npy k.npy v.npy out.npy       check it in float64
  cqs plan --tokens 1e6 --heads 8 --dim 64   see what a run would do
  cqs quorum 13                              see who holds and who owns what

`cqs COMMAND --help` says more.
Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 interrupted.
"""
_COMMANDS = (demo, run, job, plan, verify, quorum, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        0 when done, 1 when a check failed, 2 for wrong input, 130 after Ctrl-C, 141 when the reader of a
        pipe has gone, as a shell reports it.
    """
    name = ""
    try:
        parser, parsers = _parser()
        args = _parsed(parser, parsers, sys.argv[1:] if argv is None else argv)
        if args.name is None:
            parser.print_help()
            return 0
        name = args.name
        code: int = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except CQSError as error:
        message = _one_line(error)
        return _fail(f"error: {in_options(message, name) if name else message}", 2)
    except (OSError, MemoryError) as error:
        return _fail(f"error: {_one_line(error)}", 2)
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> Never:
        message = re.sub(r"^argument (\S+): ", r"`\1` ", message)
        raise OptionError(f"{message}; see `{self.prog} --help`")


def _parsed(parser: _Parser, parsers: dict[str, _Parser], argv: Sequence[str]) -> Arguments:
    """Read a command line; what it has that is unknown is refused by name, with what was probably meant."""
    if argv and not argv[0].startswith("-") and argv[0] not in parsers:
        meant = near(argv[0], parsers) or f"; there are {', '.join(parsers)}"
        raise OptionError(f"`{argv[0]}` is no command{meant}")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        command = parsers.get(args.name or "", parser)
        options = re.findall(r"--[a-z][\w-]*", command.format_help())
        meant = near(unknown[0].partition("=")[0], options)
        raise OptionError(f"`{unknown[0]}` is not for `{command.prog}`{meant or ';'} see `{command.prog} --help`")
    return args


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser of the whole, and that of each command."""
    parser = _Parser(
        prog="cqs",
        description="Exact softmax attention over long sequences, in equal and independent tasks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cqs {cqs.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="name")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser, commands.choices


def _fail(message: str, code: int) -> int:
    print(f"cqs: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}".removesuffix(": ")
    return " ".join(str(error).split())


def _discard_stdout() -> None:
    """Point stdout elsewhere, so that flushing it at exit does not fail once more."""
    with contextlib.suppress(OSError, ValueError):  # it is no file, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
