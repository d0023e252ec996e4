"""`cqs run`: attention from files to a file."""

from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import cqs
from cqs.cli.files import check_output, read_inputs, writing
from cqs.cli.interrupts import ending_at_once
from cqs.cli.options import Arguments, Parsers, add_command, add_common
from cqs.cli.summary import plan_json, plan_rows, summarize
from cqs.cli.terminal import print_json, print_table
from cqs.engines import LocalEngine
from cqs.errors import OptionError
from cqs.kernels import choose_kernel
from cqs.progress import progress_bar
from cqs.schedule import Plan
from cqs.units import format_bytes, format_count, format_seconds

__all__ = ["add_parser", "command"]

_USAGE = "[options] (Q.npy K.npy V.npy | INPUTS.npz) -o OUT.npy"
_EPILOG = """\
Arrays are (..., heads, tokens, width), of float16, float32 or float64; keys may
have fewer heads than queries. Inputs in .npy files are mapped, not loaded. The
output appears under its name only when it is complete.

examples:
  cqs run q.npy k.npy v.npy -o out.npy --causal
  cqs run inputs.npz -o out.npy --lse lse.npy --workers 31
"""


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "run", _USAGE, "compute attention over arrays in files", _EPILOG)
    parser.add_argument("files", nargs="+", metavar="FILE", help="q, k and v, or one .npz that holds them")
    parser.add_argument("-o", "--out", required=True, metavar="OUT.npy", help="where the output is written")
    parser.add_argument("--lse", metavar="LSE.npy", help="where the log-sum-exp of each query is written")
    add_common(parser, "workers", "causal", "scale", "strategy")
    parser.add_argument("--kernel", default="auto", metavar="NAME", help="auto (default), numpy, blockwise, reference")
    add_common(parser, "threads")
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_common(parser, "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    targets = _targets(args)
    q, k, v = read_inputs(args.files)
    choice = {"workers": args.workers, "is_causal": args.causal, "scale": args.scale, "strategy": args.strategy}
    plan = cqs.plan(q, k, v, **choice)
    choose_kernel(args.kernel, np)
    engine = LocalEngine() if args.threads is None else LocalEngine(args.threads)
    p = plan.problem
    with ending_at_once(), ExitStack() as files:
        out = files.enter_context(writing(targets[0], p.out_shape, p.dtype))
        lse = files.enter_context(writing(targets[1], p.lse_shape, p.accumulator_dtype)) if args.lse else None
        with progress_bar("computing tasks", len(plan), is_quiet=args.quiet) as report:
            started = perf_counter()
            _, found = cqs.attention(
                q, k, v, **choice, kernel=args.kernel, engine=engine, return_lse=True, out=out, progress=report
            )
            seconds = perf_counter() - started
        if lse is not None:
            lse[...] = found
    _print(args, plan, targets, seconds)
    return 0


def _targets(args: Arguments) -> list[Path]:
    targets = [check_output("-o", args.out, args.files, args.force)]
    if args.lse is not None:
        targets.append(check_output("--lse", args.lse, args.files, args.force))
        if targets[0] == targets[1]:
            raise OptionError.of("--lse", "be another file than -o", args.lse, "write to another file")
    return targets


def _print(args: Arguments, plan: Plan, targets: list[Path], seconds: float) -> None:
    p, summary = plan.problem, summarize(plan)
    flops = p.flops(p.n_pairs)
    if args.json:
        written: dict[str, Any] = {"out": args.out, "lse": args.lse, "shape": p.out_shape, "dtype": p.dtype}
        speed = {"seconds": seconds, "flop": flops, "flop_per_second": flops / seconds}
        print_json({**written, **speed, "plan": plan_json(plan, summary)})
    elif not args.quiet:
        names = [args.out] if args.lse is None else [args.out, args.lse]
        sizes = [f"{n} ({format_bytes(t.stat().st_size)})" for n, t in zip(names, targets, strict=True)]
        rate = f"{format_seconds(seconds)}, {format_count(flops / seconds)}FLOP/s"
        print_table("cqs run", [*plan_rows(plan, summary), ("time", rate), ("written", ", ".join(sizes))])
