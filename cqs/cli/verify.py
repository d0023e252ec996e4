"""`cqs verify`: whether an output is the attention of its inputs."""

import argparse
import os
import sys
from math import prod
from time import perf_counter
from typing import Any

import cqs
from cqs.cli.choices import add_choices, mask_of, scores_of
from cqs.cli.files import input_of, inputs_of, refuse_missing, refuse_unfinished
from cqs.cli.options import Arguments, Parsers, add_command, add_common, path, whole
from cqs.cli.terminal import print_json, print_table, print_verdict
from cqs.errors import OptionError
from cqs.oracle import Deviation
from cqs.progress import progress_bar
from cqs.schedule import Plan
from cqs.units import format_seconds
from cqs.verify import Verification, verify_rows

__all__ = ["add_parser", "command", "error_rows", "verdict", "verification_json"]

_USAGE = "[options] (Q K V | INPUTS.npz) OUT"
_EPILOG = """\
Some rows of every head are computed again in float64, straight from the files
and a little at a time, whatever wrote the output: the first, the last, those on
both sides of the borders of groups and around the edges of masks, and random
ones. Give the masks, scores, --workers and --memory that it was computed with.
The largest error may be twice that of the plain softmax formula in the inputs'
precision, and 8 units in the last place more, in all, and of each number as a
share of the values that it is made of; exit code 1 says that it is not.

examples:
  cqs verify q.npy k.npy v.npy out.npy --causal
  cqs verify q.zarr k.zarr v.zarr out.zarr --memory 256MiB --window 1024
  cqs verify inputs.npz out.npy --rows 1000
"""


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "verify", _USAGE, "check an output against float64", _EPILOG)
    parser.add_argument(
        "files", nargs="+", type=path, metavar="FILE", help="q, k and v, or one .npz, and then the output"
    )
    parser.add_argument(
        "--rows", type=_rows, default=64, metavar="N", help="random rows of each head (default 64), or all"
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="which rows are drawn (default 0)")
    add_common(parser, "memory", "workers", "strategy", "json")
    add_choices(parser)
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    *paths, output = args.files
    if len(paths) not in (1, 3):
        rule = "be q.npy k.npy v.npy out.npy, or inputs.npz out.npy"
        raise OptionError.of("FILE", rule, f"{len(args.files)} files", "give 2 or 4")
    refuse_unfinished(output)
    refuse_missing(paths, output)
    (q, k, v), out = inputs_of(paths), input_of(output)
    if any(os.path.samefile(output, path) for path in paths):
        raise OptionError.of("OUT", "be another file than the inputs", output, "give what `cqs run` wrote, last")
    plan, choice = _plan(args, (q, k, v), output)
    p = plan.problem
    with progress_bar("checking heads", p.n_batch_heads) as report:
        started = perf_counter()
        options: dict[str, Any] = {"n_rows": args.rows, "seed": args.seed, "plan": plan, "report": report}
        found = verify_rows(out, q, k, v, **choice, **options)
        seconds = perf_counter() - started
    n_rows = prod(p.lse_shape)
    if args.json:
        print_json(verification_json(found) | {"n_rows_in_all": n_rows, "seconds": seconds})
        if not found.passed:
            print(f"cqs: {output}: {verdict(found)}", file=sys.stderr)
    else:
        rows = f"{found.n_rows:,} of {n_rows:,} rows, in float64, {format_seconds(seconds)}"
        print_table(f"cqs verify {output}", [("checked", rows), *error_rows(found)])
        print_verdict(verdict(found), found.passed)
    return 0 if found.passed else 1


def _rows(text: str) -> int | None:
    """Read how many rows; None is all."""
    if text == "all":
        return None
    try:
        return whole(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("must be", "must be all, or", 1)) from None


def _plan(args: Arguments, inputs: Any, output: str) -> tuple[Plan, dict[str, Any]]:
    """Return the plan that a run with these options has, and its masks and scores."""
    q, k, v = inputs
    bare = cqs.plan(q, k, v, workers=1).problem
    choice = {"mask": mask_of(args)} | scores_of(args, bare.n_heads)
    target = output if output.endswith((".npy", ".zarr")) else None
    names: dict[str, Any] = {"workers": args.workers, "memory": args.memory, "strategy": args.strategy, "out": target}
    return cqs.plan(q, k, v, **choice, **names), choice


def verification_json(found: Verification) -> dict[str, object]:
    """Return what was found as JSON values."""
    names = "passed", "n_rows", "n_broken", "error", "bound", "plain_error", "ulp", "ulps", "worst"
    relative = {name: getattr(found.relative, name) for name in ("error", "bound", "plain_error", "worst")}
    return {name: getattr(found, name) for name in names} | {"relative": relative}


def error_rows(found: Verification) -> list[tuple[str, str]]:
    """Return names and values of the errors."""
    ulps = "" if found.ulps is None else f" ({found.ulps:.1f} ulp)"
    return [
        ("largest error", _described(found.absolute, ulps)),
        ("relative to values", _described(found.relative)),
    ]


def _described(measure: Deviation, ulps: str = "") -> str:
    where = "" if measure.worst is None else f" at {measure.worst}"
    allowed = f"{measure.bound:.2e} allowed, of which the plain formula's error {measure.plain_error:.2e} twice"
    return f"{measure.error:.2e}{ulps}{where}; {allowed}"


def verdict(found: Verification) -> str:
    """Return what was found in words."""
    if found.passed:
        return "Passed: as exact as the plain formula."
    what = "this is not the attention of these inputs, masks and scores"
    if found.n_broken:
        return f"FAILED: {found.n_broken:,} numbers are NaN or infinite, or should be; {what}."
    names = (("largest error", found.absolute), ("largest error relative to values", found.relative))
    name, measure = next((name, measure) for name, measure in names if not measure.is_within)
    times = f"{measure.error / measure.bound:.3g} times " if measure.bound else "more than "
    return f"FAILED: the {name}, at {measure.worst}, is {times}what is allowed; {what}."
