"""`cqs demo`: attention over real data, checked to the last digit."""

from importlib import resources
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import cqs
from cqs.cli.interrupts import ending_at_once
from cqs.cli.loading import load_kernel
from cqs.cli.options import Arguments, Parsers, add_command, add_common, whole
from cqs.cli.summary import plan_json, plan_rows, summarize
from cqs.cli.terminal import print_json, print_table, print_verdict
from cqs.cli.verify import error_rows, verdict, verification_json
from cqs.engines import LocalEngine
from cqs.progress import progress_bar
from cqs.units import format_count, format_seconds
from cqs.verify import verify_rows

__all__ = ["add_parser", "command"]

_EPILOG = """\
The data are queries, keys and values of a small language model that reads a
book: 4 heads, 4096 tokens, width 32. Every number of the output is checked
against float64; exit code 1 says that one of them is wrong.

examples:
  cqs demo
  cqs demo --workers 57 --causal
"""


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "demo", "[options]", "run attention over real data, and check the result", _EPILOG)
    parser.add_argument("--workers", type=whole, default=31, metavar="W", help="number of tasks (default 31)")
    add_common(parser, "causal", "threads", "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    q, k, v = _data()
    choice = {"workers": args.workers, "is_causal": args.causal}
    plan = cqs.plan(q, k, v, **choice)
    engine = LocalEngine() if args.threads is None else LocalEngine(args.threads)
    with ending_at_once():
        load_kernel(plan)
        with progress_bar("computing tasks", len(plan)) as report:
            started = perf_counter()
            out = cqs.attention(q, k, v, **choice, engine=engine, progress=report)
            seconds = perf_counter() - started
        with progress_bar("checking heads", plan.problem.n_heads) as report:
            found = verify_rows(out, q, k, v, is_causal=args.causal, n_rows=None, report=report)
    summary, flops = summarize(plan), plan.problem.flops(plan.problem.n_pairs)
    if args.json:
        speed = {"threads": engine.threads, "seconds": seconds, "flop": flops, "flop_per_second": flops / seconds}
        print_json({"plan": plan_json(plan, summary), **speed, "check": verification_json(found)})
    else:
        threads = f"{engine.threads} thread{'s' if engine.threads > 1 else ''}"
        rate = f"{format_seconds(seconds)} on {threads}, {format_count(flops / seconds)}FLOP/s"
        checked = ("checked", f"all {out.size:,} numbers, in float64")
        data = ("data", "a small language model that reads a book")
        rows = [data, *plan_rows(plan, summary), ("time", rate), checked, *error_rows(found)]
        print_table("cqs demo: exact attention from independent tasks", rows)
        print_verdict(verdict(found), found.passed)
    return 0 if found.passed else 1


def _data() -> tuple[npt.NDArray[Any], ...]:
    with resources.files("cqs").joinpath("data/text_qkv_4096.npz").open("rb") as file, np.load(file) as arrays:
        return tuple(arrays[name].astype(np.float32) for name in ("q", "k", "v"))
