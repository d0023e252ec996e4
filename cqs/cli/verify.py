"""`cqs verify`: whether an output is the attention of its inputs."""

from math import prod
from time import perf_counter

from cqs.cli.files import read_array, read_inputs
from cqs.cli.options import Arguments, Parsers, add_command, add_common, whole
from cqs.cli.terminal import print_json, print_table, print_verdict
from cqs.errors import OptionError
from cqs.progress import progress_bar
from cqs.units import format_seconds
from cqs.verify import ULPS, Verification, verify_rows

__all__ = ["add_parser", "command", "error_rows", "verdict", "verification_json"]

_USAGE = "[options] (Q.npy K.npy V.npy | INPUTS.npz) OUT.npy"
_EPILOG = """\
Some rows of every head are computed again in float64, whatever wrote the
output. Give the --causal and --scale that it was computed with. The largest
error may be twice that of the plain softmax formula in the inputs' precision,
and 8 units in the last place more; exit code 1 says that it is larger.

examples:
  cqs verify q.npy k.npy v.npy out.npy --causal
  cqs verify inputs.npz out.npy --rows 1000
"""


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "verify", _USAGE, "check an output against float64", _EPILOG)
    parser.add_argument("files", nargs="+", metavar="FILE", help="q, k and v, or one .npz, and then the output")
    parser.add_argument("--rows", type=whole, default=64, metavar="N", help="rows of each head (default 64)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="which rows are drawn (default 0)")
    add_common(parser, "causal", "scale", "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    *inputs, output = args.files
    if len(inputs) not in (1, 3):
        rule = "be q.npy k.npy v.npy out.npy, or inputs.npz out.npy"
        raise OptionError.of("FILE", rule, f"{len(args.files)} files", "give 2 or 4")
    q, k, v = read_inputs(inputs)
    out = read_array(output)
    options = {"scale": args.scale, "is_causal": args.causal, "n_rows": args.rows, "seed": args.seed}
    with progress_bar("checking heads", prod(q.shape[:-2])) as report:
        started = perf_counter()
        found = verify_rows(out, q, k, v, **options, report=report)
        seconds = perf_counter() - started
    n_rows = prod(out.shape[:-1])
    if args.json:
        print_json(verification_json(found) | {"n_rows_in_all": n_rows, "seconds": seconds})
    else:
        rows = f"{found.n_rows:,} of {n_rows:,} rows, in float64, {format_seconds(seconds)}"
        print_table(f"cqs verify {output}", [("checked", rows), *error_rows(found)])
        print_verdict(verdict(found), found.passed)
    return 0 if found.passed else 1


def verification_json(found: Verification) -> dict[str, object]:
    """Return what was found as JSON values."""
    names = ("passed", "n_rows", "n_broken", "error", "bound", "plain_error", "ulp")
    ulps = found.error / found.ulp if found.ulp else None
    return {name: getattr(found, name) for name in names} | {"ulps": ulps, "worst": found.worst}


def error_rows(found: Verification) -> list[tuple[str, str]]:
    """Return names and values of the errors."""
    ulps = f" ({found.error / found.ulp:.1f} ulp)" if found.ulp else ""
    where = "" if found.worst is None else f" at {found.worst}"
    return [
        ("largest error", f"{found.error:.2e}{ulps}{where}"),
        ("allowed", f"{found.bound:.2e}: twice the plain formula's {found.plain_error:.2e}, and {ULPS} ulp"),
    ]


def verdict(found: Verification) -> str:
    """Return what was found in words."""
    if found.passed:
        return "Passed: as exact as the plain formula."
    if found.n_broken:
        return f"FAILED: {found.n_broken:,} numbers are NaN or infinite, or should be."
    times = f"{found.error / found.bound:.3g} times " if found.bound else "more than "
    return f"FAILED: the largest error is {times}what is allowed."
