"""`cqs plan`: what a run would do."""

import cqs
from cqs.cli.files import read_inputs
from cqs.cli.options import Arguments, Parsers, add_command, add_common, whole
from cqs.cli.summary import plan_json, plan_rows, summarize
from cqs.cli.terminal import print_json, print_table
from cqs.errors import OptionError
from cqs.schedule import Plan

__all__ = ["add_parser", "command"]

_USAGE = "[options] (Q.npy K.npy V.npy | INPUTS.npz | --tokens T --heads H --dim D)"
_EPILOG = """\
examples:
  cqs plan --tokens 4096 --heads 8 --dim 64 --workers 31
  cqs plan --tokens 1e6 --heads 32 --kv-heads 8 --dim 128 --dtype bfloat16 --causal
  cqs plan q.npy k.npy v.npy --json > plan.json        (`cqs.Plan.from_json` reads it)
"""
_SHAPE = ("tokens", "heads", "dim", "kv_heads", "value_dim", "key_tokens", "batch", "dtype")


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "plan", _USAGE, "show what a run would do, without running it", _EPILOG)
    parser.add_argument("files", nargs="*", metavar="FILE", help="q, k and v, or one .npz that holds them")
    shape = parser.add_argument_group("shapes, in place of files")
    shape.add_argument("--tokens", type=whole, metavar="T", help="queries, and keys unless --key-tokens is given")
    shape.add_argument("--heads", type=whole, metavar="H", help="query heads")
    shape.add_argument("--dim", type=whole, metavar="D", help="width of a query and of a key")
    shape.add_argument("--kv-heads", type=whole, metavar="G", help="key and value heads; by default H")
    shape.add_argument("--value-dim", type=whole, metavar="E", help="width of a value; by default D")
    shape.add_argument("--key-tokens", type=whole, metavar="S", help="keys and values; by default T")
    shape.add_argument("--batch", type=whole, nargs="+", metavar="B", help="batch dimensions; by default none")
    shape.add_argument("--dtype", metavar="NAME", help="float16, bfloat16, float32 (default) or float64")
    add_common(parser, "workers", "causal", "strategy", "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    plan = _plan(args)
    summary = summarize(plan)
    if args.json:
        print_json(plan_json(plan, summary))
    else:
        print_table("cqs plan", plan_rows(plan, summary))
    return 0


def _plan(args: Arguments) -> Plan:
    given = [name for name in _SHAPE if getattr(args, name) is not None]
    choice = {"workers": args.workers, "is_causal": args.causal, "strategy": args.strategy}
    if args.files:
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise OptionError.of(option, "be left out when files are given", "both", "the files have their shapes")
        return cqs.plan(*read_inputs(args.files), **choice)
    if missing := [f"--{name}" for name in ("tokens", "heads", "dim") if getattr(args, name) is None]:
        raise OptionError(f"give files, or --tokens, --heads and --dim; missing: {', '.join(missing)}")
    dtype = "float32" if args.dtype is None else args.dtype
    return cqs.plan(*_shapes(args), dtype=dtype, **choice)


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
