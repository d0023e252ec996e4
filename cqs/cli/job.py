"""`cqs job`: how far a job has come."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cqs.cli.options import Arguments, Parsers, add_command, add_common, path
from cqs.cli.terminal import print_json, print_table
from cqs.errors import OptionError
from cqs.jobs import JobDirectory, Manifest, words_of
from cqs.units import format_bytes, plural

__all__ = ["JobProgress", "add_parser", "command", "progress_of", "ranges"]

_EPILOG = """\
A job is a directory that `cqs run --job DIR` keeps the results of tasks in.
When the output is written it may be removed.

examples:
  cqs job run.job
  cqs job run.job --json
"""
_MOST_RANGES = 8


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "job", "[options] DIR", "show how far a job has come", _EPILOG)
    parser.add_argument("job", type=path, metavar="DIR", help="the directory of the job")
    add_common(parser, "json")
    parser.set_defaults(command=command)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job has come.

    Parameters
    ----------
    path : str
        The directory.
    n_tasks, n_done : int
        Tasks in all, and those whose results are there.
    n_bytes : int
        Size of the results.
    missing : str
        Tasks whose results are not there, as ranges such as "3, 7-12".
    """

    path: str
    n_tasks: int
    n_done: int
    n_bytes: int
    missing: str

    def __str__(self) -> str:
        left = f"{plural(self.n_tasks - self.n_done, 'task')} missing: {self.missing}" if self.missing else "complete"
        return f"{self.n_done} of {self.n_tasks} results in {self.path} ({format_bytes(self.n_bytes)}), {left}"


def progress_of(job: str) -> JobProgress:
    """Look at the directory of a job.

    Raises
    ------
    OptionError
        If there is none.
    """
    directory, begun = _opened(job)
    done = directory.done(begun)
    missing = [i for i in range(begun.n_tasks) if not done[i]]
    return JobProgress(job, begun.n_tasks, sum(done), directory.n_bytes(), ranges(missing))


def _opened(job: str) -> tuple[JobDirectory, Manifest]:
    directory = JobDirectory(Path(job))
    begun = directory.manifest()
    if begun is None:
        raise OptionError.of("DIR", "be the directory of a job", job, "give what --job was given")
    return directory, begun


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers in increasing order as ranges, of which the first few.

    >>> ranges([3, 7, 8, 9, 12])
    '3, 7-9, 12'
    """
    cuts = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    parts = [numbers[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(numbers)], strict=True) if start < stop]
    words = [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]
    return ", ".join(words[:_MOST_RANGES]) + (", ..." if len(words) > _MOST_RANGES else "")


def command(args: Arguments) -> int:
    """Run the command."""
    found, (_, begun) = progress_of(args.job), _opened(args.job)
    if args.json:
        print_json(asdict(found) | {"manifest": json.loads(begun.to_json())})
        return 0
    cut, places = begun.cut, (begun.inputs[name]["file"] for name in ("q", "k", "v"))
    rows = [(name, words_of(value)) for name, value in begun.identity.items()]
    rows += [("read from", ", ".join(place["path"] for place in places if place) or "memory")]
    rows += [("cut", f"{plural(begun.n_tasks, 'task')}: {cut.strategy}, {cut.workers} workers, kernel {begun.kernel}")]
    print_table("cqs job", [*rows, ("results", str(found))])
    return 0
