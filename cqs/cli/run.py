"""`cqs run`: attention from files to a file."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import cqs
from cqs.cli.choices import add_choices, mask_of, scores_of
from cqs.cli.files import FileInput, check_output, inputs_of, refuse_missing
from cqs.cli.interrupts import ending_at_once
from cqs.cli.job import progress_of
from cqs.cli.loading import load_kernel
from cqs.cli.options import Arguments, Parsers, add_command, add_common, engine_of, path, tasks
from cqs.cli.summary import moved, plan_json, plan_rows, summarize
from cqs.cli.terminal import print_json, print_table
from cqs.errors import OptionError
from cqs.events import Event
from cqs.kernels import KERNELS
from cqs.progress import run_bar
from cqs.schedule import Plan
from cqs.sources import NOWHERE, NpySink
from cqs.trace import Counters, Recorder, TraceFile
from cqs.units import format_bytes, format_count, format_seconds, plural

__all__ = ["add_parser", "command"]

_USAGE = "[options] (Q K V | INPUTS.npz) (-o OUT | --job DIR --tasks TASKS)"
_EPILOG = """\
Arrays are (..., heads, tokens, width), of float16, float32 or float64; keys may
have fewer heads than queries. Inputs are .npy files or Zarr arrays, of which
only what a task needs is read, or one .npz, which is loaded. The output, .npy
or .zarr, appears under its name only when it is complete: until then, and
after Ctrl-C, it is OUT.unfinished, which is of no use and may be deleted.
With --job the same command resumes where it was interrupted; with --tasks as
well it computes only those, as one of several machines, and writes no output:
that does the run without --tasks. `cqs job DIR` says how far a job has come.

examples:
  cqs run q.npy k.npy v.npy -o out.npy --causal --memory 256MiB
  cqs run q.zarr k.zarr v.zarr -o out.zarr --window 1024 --trace trace.json
  cqs run inputs.npz -o out.npy --lse lse.npy --workers 31
  cqs run q.npy k.npy v.npy -o out.npy --workers 57 --job run.job
  cqs run q.npy k.npy v.npy --workers 57 --job run.job --tasks 3::8   (of 8: 0 to 7)
"""


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "run", _USAGE, "compute attention over arrays in files", _EPILOG)
    parser.add_argument("files", nargs="+", type=path, metavar="FILE", help="q, k and v, or one .npz that holds them")
    parser.add_argument("-o", "--out", type=path, metavar="OUT", help="where the output goes: .npy or .zarr")
    parser.add_argument("--lse", type=path, metavar="LSE.npy", help="where the log-sum-exp of each query is written")
    add_common(parser, "memory", "workers", "strategy")
    parser.add_argument("--kernel", default="auto", metavar="NAME", help=f"auto (default), {', '.join(KERNELS)}")
    add_common(parser, "threads", "backend", "devices", "job")
    parser.add_argument(
        "--tasks", type=tasks, metavar="TASKS", help="compute only these, for --job: 0,5 or as a slice, 3::8"
    )
    parser.add_argument(
        "--trace", type=path, metavar="TRACE.json", help="write what happens when; https://ui.perfetto.dev opens it"
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_common(parser, "json")
    add_choices(parser)
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    _check_what_is_written(args)
    refuse_missing(args.files)
    targets = _targets(args)
    inputs = inputs_of(args.files)
    options = _options(args, inputs)
    plan = cqs.plan(*inputs, **options)
    counts, outputs = Recorder(most=0), [targets[name] for name in ("out", "lse") if name in targets]
    with ending_at_once(outputs, args.job), ExitStack() as files:
        write_lse = files.enter_context(_lse_file(plan, targets["lse"])) if "lse" in targets else None
        trace = files.enter_context(TraceFile(targets["trace"])) if "trace" in targets else None

        def tell(event: Event) -> None:
            counts(event)
            if trace is not None:
                trace(event)

        load_kernel(plan, args.quiet)
        with run_bar(is_quiet=args.quiet) as bar:
            started = perf_counter()
            if args.tasks is None:
                found = cqs.attention(*inputs, **options, progress=bar, on_event=tell)
            else:
                cqs.work(*inputs, **_of_tasks(options), tasks=args.tasks, progress=bar, on_event=tell)
            seconds = perf_counter() - started
        if write_lse is not None:
            write_lse(found[1])
    _print(args, plan, targets, seconds, counts.counters)
    return 0


def _check_what_is_written(args: Arguments) -> None:
    """Refuse a run that would write nothing, or should write what only a whole run has."""
    if args.tasks is None:
        if args.out is None:
            raise OptionError("the following arguments are required: -o/--out; see `cqs run --help`")
        return
    if args.job is None:
        raise OptionError.of("--tasks", "be given with --job", "no --job", "it keeps the results of these tasks")
    for option, given in (("-o", args.out), ("--lse", args.lse)):
        if given is not None:
            remedy = "give it to the run without --tasks, which puts results together"
            raise OptionError.of(option, "be left out with --tasks", given, remedy)


def _of_tasks(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that `cqs.work` has; the others are for complete rows."""
    return {name: value for name, value in options.items() if name not in ("out", "return_lse", "sink_logits")}


def _options(args: Arguments, inputs: tuple[FileInput, ...]) -> dict[str, Any]:
    """Return the arguments of `cqs.attention`, and of `cqs.plan`, that the options describe."""
    bare = cqs.plan(*inputs, workers=1).problem  # which refuses inputs that do not fit each other
    engine = engine_of(args)
    names = ("workers", "memory", "strategy", "backend", "devices", "kernel", "out", "job")
    options = {name: getattr(args, name) for name in names} | {"engine": engine, "return_lse": args.lse is not None}
    if args.tasks is not None:
        options["out"] = NOWHERE
    return options | {"mask": mask_of(args)} | scores_of(args, bare.n_heads)


def _targets(args: Arguments) -> dict[str, Path]:
    kinds = {"out": (".npy", ".zarr"), "lse": (".npy",), "trace": (".json",)}
    targets: dict[str, Path] = {}
    for name, allowed in kinds.items():
        given, option = getattr(args, name), "-o" if name == "out" else f"--{name}"
        if given is not None:
            target = check_output(option, given, args.files, args.force, allowed)
            if target in targets.values():
                raise OptionError.of(option, "be another file than -o", given, "write to another file")
            if args.job is not None and Path(os.path.realpath(args.job)) in (target, *target.parents):
                raise OptionError.of(option, "not be in --job", given, "give the job a directory of its own")
            targets[name] = target
    return targets


@contextmanager
def _lse_file(plan: Plan, target: Path) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Give a function that writes the log-sum-exp; before it has, there is no file of that name."""
    p = plan.problem
    sink = NpySink.create(target, p.lse_shape, np.dtype(p.accumulator_dtype))

    def write(lse: npt.NDArray[Any]) -> None:
        sink.write(None, 0, p.n_heads, lse)
        sink.finish()

    try:
        yield write
    except BaseException:
        sink.abandon()
        raise


def _print(args: Arguments, plan: Plan, targets: dict[str, Path], seconds: float, counters: Counters) -> None:
    p, summary = plan.problem, summarize(plan)
    flops = p.flops(p.n_pairs) * counters.n_tasks // max(len(plan), 1)  # of what was not kept before
    kept = None if args.job is None else progress_of(args.job)
    if args.json:
        written: dict[str, Any] = {"out": args.out, "lse": args.lse, "shape": p.out_shape, "dtype": p.dtype}
        speed = {"seconds": seconds, "flop": flops, "flop_per_second": flops / seconds}
        of_job = {} if kept is None else {"job": asdict(kept)}
        print_json({**written, **speed, **of_job, "counters": asdict(counters), "plan": plan_json(plan, summary)})
    elif not args.quiet:
        sizes = [f"{getattr(args, name)} ({format_bytes(_size(path))})" for name, path in targets.items()]
        rate = f"{format_seconds(seconds)}, {format_count(flops / seconds)}FLOP/s"
        rows = [("moved", moved(counters)), ("time", rate)]
        rows += [] if kept is None else [("job", f"computed {plural(counters.n_tasks, 'task')}; {kept}")]
        rows += [("written", ", ".join(sizes))] if sizes else []
        print_table("cqs run", [*plan_rows(plan, summary), *rows])


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())
