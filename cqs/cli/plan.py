"""`cqs plan`: what a run would do."""

from contextlib import closing
from dataclasses import replace
from typing import Literal

import numpy as np

from cqs.cli.choices import add_choices, mask_of, scores_of
from cqs.cli.comparison import alternatives, comparison_json, comparison_table
from cqs.cli.files import inputs_of, refuse_missing
from cqs.cli.measure import measured_rates
from cqs.cli.options import Arguments, Parsers, add_command, add_common, engine_of, path, rate, whole
from cqs.cli.summary import plan_json, plan_rows, summarize
from cqs.cli.terminal import print_columns, print_json, print_table, print_text
from cqs.errors import OptionError
from cqs.kernels import KERNELS
from cqs.placing import placed
from cqs.problem import AttentionProblem
from cqs.schedule import Plan, Rates, Scheduler, Setting
from cqs.scores import Scores, checked_sink_logits
from cqs.sources import ShapeInput, open_inputs
from cqs.units import format_bytes, format_count, parse_bytes

__all__ = ["add_parser", "command"]

_USAGE = "[options] (Q K V | INPUTS.npz | --tokens T --heads H --dim D)"
_EPILOG = """\
Both strategies are shown side by side: what each would hold, move and compute,
and how long it would take at rates that are stated, measured or typical. Bare
shapes stand for arrays in memory, or with --memory for files. The output
is taken to be a .npy file. Other options of `cqs run` do not change the plan.

examples:
  cqs plan --tokens 4096 --heads 8 --dim 64 --workers 31
  cqs plan --tokens 1e9 --heads 8 --dim 64 --memory 8GiB --rate 50T --bandwidth 5GB
  cqs plan --tokens 1e6 --heads 32 --kv-heads 8 --dim 128 --dtype bfloat16 --causal
  cqs plan q.npy k.npy v.npy --json > plan.json        (`cqs.Plan.from_json` reads it)
"""
_SHAPE = ("tokens", "heads", "dim", "kv_heads", "value_dim", "key_tokens", "batch", "dtype")


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "plan", _USAGE, "show what a run would do, without running it", _EPILOG)
    parser.add_argument("files", nargs="*", type=path, metavar="FILE", help="q, k and v, or one .npz that holds them")
    shape = parser.add_argument_group("shapes, in place of files")
    shape.add_argument("--tokens", type=whole, metavar="T", help="queries, and keys unless --key-tokens is given")
    shape.add_argument("--heads", type=whole, metavar="H", help="query heads")
    shape.add_argument("--dim", type=whole, metavar="D", help="width of a query and of a key")
    shape.add_argument("--kv-heads", type=whole, metavar="G", help="key and value heads; by default H")
    shape.add_argument("--value-dim", type=whole, metavar="E", help="width of a value; by default D")
    shape.add_argument("--key-tokens", type=whole, metavar="S", help="keys and values; by default T")
    shape.add_argument("--batch", type=whole, nargs="+", metavar="B", help="batch dimensions; by default none")
    shape.add_argument("--dtype", metavar="NAME", help="float16, bfloat16, float32 (default) or float64")
    add_common(parser, "memory", "workers", "strategy")
    parser.add_argument("--kernel", default="auto", metavar="NAME", help=f"auto (default), {', '.join(KERNELS)}")
    add_common(parser, "threads", "backend", "devices")
    parser.add_argument("--lse", action="store_true", help="as if the log-sum-exp were written, which is held then")
    speed = parser.add_argument_group("rates, for predicted times")
    speed.add_argument(
        "--rate", type=rate, metavar="FLOP/S", help="of matrix products on all threads, such as 150G or 2.5T"
    )
    speed.add_argument("--bandwidth", metavar="BYTES/S", help="of reading and writing, such as 2GB")
    speed.add_argument("--measure", action="store_true", help="measure both here, in a second")
    add_choices(parser)
    add_common(parser, "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    problem, memory, setting = _problem(args)
    scheduler = Scheduler(args.workers, args.strategy, memory, setting)
    plan = scheduler.plan(problem)
    found, rates, summary = alternatives(scheduler, plan), _rates(args, setting), summarize(plan)
    if args.json:
        print_json(plan_json(plan, summary) | {"comparison": comparison_json(found, plan, rates)})
        return 0
    print_table("cqs plan", plan_rows(plan, summary))
    rows, remarks = comparison_table(found, plan, rates, _why_not_tiles(args, plan))
    print_text("")
    print_columns(rows)
    print_text("", *remarks, f"Times: {_describe(args, rates)}.")
    return 0


def _problem(args: Arguments) -> tuple[AttentionProblem, int | None, Setting]:
    """Return what is to be computed, and what a run would have to do with: memory, and the rest."""
    given = [name for name in _SHAPE if getattr(args, name) is not None]
    if args.files and given:
        option = f"--{given[0].replace('_', '-')}"
        raise OptionError.of(option, "be left out when files are given", "both", "the files have their shapes")
    missing = [f"--{name}" for name in ("tokens", "heads", "dim") if getattr(args, name) is None]
    if not args.files and missing:
        raise OptionError(f"give files, or --tokens, --heads and --dim; missing: {', '.join(missing)}")
    dtype = "float32" if args.dtype is None else args.dtype
    is_run = bool(args.files) or args.memory is not None  # as `cqs run` does it, from files to a file
    refuse_missing(args.files)
    inputs = inputs_of(args.files) if args.files else [ShapeInput(x, dtype, is_run) for x in _shapes(args)]
    engine = engine_of(args)
    with closing(open_inputs(*inputs)) as source:
        mask = mask_of(args)
        problem = AttentionProblem.of(source.q, source.k, source.v, mask=mask, scale=args.scale)
        place = placed(
            problem, source, backend=args.backend, devices=args.devices, kernel=args.kernel, engine=engine,
            memory=args.memory, **_changes(args, problem),
        )  # fmt: skip
    written = problem.accumulator_dtype if is_run and problem.dtype == "bfloat16" else problem.dtype
    output: Literal["sink", "new"] = "sink" if is_run else "new"
    return problem, place.memory, replace(place.setting, output=output, output_dtype=written, keeps_lse=args.lse)


def _changes(args: Arguments, problem: AttentionProblem) -> dict[str, bool]:
    """Return what the options change, of scores and of complete rows; refuse what is wrong with them."""
    choice, like = scores_of(args, problem.n_heads), np.empty(0)
    if choice["sink_logits"] is not None:
        checked_sink_logits(choice["sink_logits"], problem, like)
    scores = Scores.of(problem, like, choice["softcap"], choice["bias"], None)
    return {"has_scores": scores is not None, "has_sink_logits": choice["sink_logits"] is not None}


def _rates(args: Arguments, setting: Setting) -> Rates:
    threads = max(setting.threads, setting.in_flight)
    rates = Rates.typical(setting)
    if args.measure:
        kernel = setting.kernel if setting.has_own_threads else "numpy"
        rates = measured_rates(threads, args.files[0] if args.files else None, kernel)
    if args.rate is not None:
        rates = replace(rates, flops=args.rate)
    if args.bandwidth is not None:
        rates = replace(rates, bytes=parse_bytes("--bandwidth", args.bandwidth.removesuffix("/s")))
    if rates.bytes <= 0:
        raise OptionError.of("--bandwidth", "be more than 0", args.bandwidth, "leave it out for a typical one")
    return rates


def _why_not_tiles(args: Arguments, plan: Plan) -> str:
    """Say why `auto` has taken quorums, which it may have done without looking at the predicted time."""
    if args.strategy != "auto" or plan.strategy != "cqs":
        return ""
    if args.workers is not None:
        return "auto takes cqs where --workers is given, since so many tasks can go elsewhere"
    return "auto goes by typical rates" if args.memory is not None else "auto compares the two under --memory only"


def _describe(args: Arguments, rates: Rates) -> str:
    """Say what the predicted times assume."""
    basis = "measured here" if args.measure else "typical; see --measure, --rate and --bandwidth"
    if args.rate is not None and args.bandwidth is not None:
        basis = "as stated"
    return f"at {format_count(rates.flops)}FLOP/s and {format_bytes(rates.bytes)}/s, {basis}"


def _shapes(args: Arguments) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of q, k and v that the options describe."""
    batch = tuple(args.batch or ())
    G, E = _default(args, "kv_heads", "heads"), _default(args, "value_dim", "dim")
    S = args.tokens if args.key_tokens is None else args.key_tokens
    return (*batch, args.heads, args.tokens, args.dim), (*batch, G, S, args.dim), (*batch, G, S, E)


def _default(args: Arguments, name: str, other: str) -> int:
    """Return an option that is at least 1, or where it is left out the value of another."""
    value: int | None = getattr(args, name)
    if value == 0:
        option = f"--{name.replace('_', '-')}"
        raise OptionError.of(option, "be at least 1", 0, f"leave it out to have it equal --{other}")
    return getattr(args, other) if value is None else value
