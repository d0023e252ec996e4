"""`cqs quorum`: the quorum set behind W workers."""

import colorsys
import json
from collections.abc import Sequence
from typing import Any

from cqs.cli.options import Arguments, Parsers, add_command, add_common, whole
from cqs.cli.terminal import print_json, print_table, print_text, stdout_console
from cqs.quorum import CyclicQuorumSet, DifferenceCover, difference_cover

__all__ = ["add_parser", "command"]

_MOST_SHOWN = 31  # workers whose quorums and tiles are all shown
_FEW = 5
_MOST_ELEMENTS = 40  # of a base or a quorum that are written
_ENDS = 6  # of a longer one, at each end
_EPILOG = """\
W workers hold groups of tokens, such that any two groups meet at some worker:
one of those owns their tile of the score matrix. Up to W = 31 all quorums are
shown, and who owns which tile (rows are query groups, columns key groups).
Bases of more than 40 elements are shortened; --json has all of them.

examples:
  cqs quorum 7
  cqs quorum 133 --json
  cqs quorum 43 --prove
"""


def add_parser(parsers: Parsers) -> None:
    """Add the command to the parser."""
    parser = add_command(parsers, "quorum", "[options] W", "show the quorum set behind W workers", _EPILOG)
    parser.add_argument("workers", type=whole, metavar="W", help="number of workers, the modulus")
    parser.add_argument(
        "--prove", action="store_true", help="prove the cover, step by step, and say whether a smaller one can exist"
    )
    add_common(parser, "json")
    parser.set_defaults(command=command)


def command(args: Arguments) -> int:
    """Run the command."""
    cover = difference_cover(args.workers)
    W = cover.modulus
    quorums = CyclicQuorumSet(W) if W <= _MOST_SHOWN else None  # of owners, which are W / 2 pairs for each worker
    if args.prove:
        cover.certificate.verify()
        cover.minimality.verify()
    if args.json:
        proof = _json_proof(cover) if args.prove else {}
        print_json(_json(cover, quorums) | proof)
        return 0
    if args.prove:
        print_text(*_proof_lines(cover))
        return 0
    print_table(f"cqs quorum {W}", _rows(cover))
    print_text("", *_quorum_lines(cover, _FEW if quorums is None else W))
    if quorums is not None:
        print_text("", *_matrix(quorums))
    else:
        print_text("", f"The matrix of owners is shown up to W = {_MOST_SHOWN}.")
    return 0


def _rows(cover: DifferenceCover) -> list[tuple[str, str]]:
    W = cover.modulus
    return [
        ("base", _listed(cover.base)),
        ("from", str(cover.construction)),
        ("size", f"{cover.size:,}; no cover has less than {cover.lower_bound:,}"),
        ("minimal", cover.minimality.label),
        ("perfect", "yes: every difference occurs exactly once" if cover.is_perfect else "no"),
        ("a worker holds", f"{cover.size:,} of {W:,} groups, {100 * cover.size / W:.3g}%"),
        ("a worker owns", f"{W:,} of {W * W:,} tiles; causal: {_causal_load(W):g} tiles' worth"),
    ]


def _proof_lines(cover: DifferenceCover) -> list[str]:
    """Return the proof for a person to read; it was checked before."""
    lines = [f"{cover.size} elements cover Z_{cover.modulus}: {_listed(cover.base)}", ""]
    lines += [f"Proof, each step checked ({cover.construction}):"]
    lines += [f"  {number}. {step}" for number, step in enumerate(cover.certificate.steps(), start=1)]
    lines += ["", str(cover.minimality)]
    return lines + [f"  {number}. {step}" for number, step in enumerate(cover.minimality.steps(), start=1)]


def _json_proof(cover: DifferenceCover) -> dict[str, Any]:
    certificate = json.loads(cover.certificate.to_json())
    return {"certificate": certificate, "minimality": cover.minimality.to_dict()}


def _causal_load(W: int) -> float:
    """Return the tiles of every worker under a causal mask, where a diagonal tile is half a tile.

    Of its W tiles, some are pairs (g, h) and (h, g), of which one is visible, and the others are on the diagonal.
    """
    return W / 2


def _listed(numbers: Sequence[int], width: int = 0) -> str:
    """Write numbers one after the other; of very many, those at the ends."""
    written = [f"{number:>{width}}" for number in numbers]
    if len(written) > _MOST_ELEMENTS:
        written[_ENDS:-_ENDS] = [f"... {len(written) - 2 * _ENDS:,} more ..."]
    return " ".join(written)


def _json(cover: DifferenceCover, quorums: CyclicQuorumSet | None) -> dict[str, Any]:
    W = cover.modulus
    causal = _causal_load(W)
    values: dict[str, Any] = {"workers": W, "base": cover.base, "size": cover.size, "lower_bound": cover.lower_bound}
    values |= {"construction": str(cover.construction), "minimality": cover.minimality.label}
    values |= {"is_perfect": cover.is_perfect, "tiles": W, "causal_tiles": {"least": causal, "most": causal}}
    values["quorums"] = None if quorums is None else [quorums.quorum(i) for i in range(W)]
    return values | {"owners": None if quorums is None else quorums.ownership().tolist()}


def _quorum_lines(cover: DifferenceCover, n: int) -> list[str]:
    W = cover.modulus
    width = len(str(W - 1))
    held = [sorted((a + i) % W for a in cover.base) for i in range(n)]
    lines = [f"  worker {i:>{width}}  holds groups  {_listed(groups, width)}" for i, groups in enumerate(held)]
    n_more = W - n
    return [*lines, f"  ... and {n_more:,} more, each one further on"] if n_more else lines


def _matrix(quorums: CyclicQuorumSet) -> list[Any]:
    """Return the matrix of owners, line by line, each owner in a colour of its own."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    W = quorums.modulus
    console = stdout_console()
    digits = len(str(W - 1))
    # colours tell cells apart without a blank between, where blanks would not fit
    blank = 0 if console.color_system and console.width < (digits + 1) * (W + 1) + 2 else 1
    styles = []
    for i in range(W):
        rgb = colorsys.hls_to_rgb(i * 0.618 % 1, 0.68 + 0.13 * (i % 2), 0.65)
        styles.append(Style(color="black", bgcolor=Color.from_rgb(*(255 * part for part in rgb))))
    lines = [Text("who owns which tile: query groups down, key groups across", style="bold")]
    for g, owners in enumerate(quorums.ownership().tolist()):
        line = Text(f"  {g:>{digits}} ")
        for owner in owners:
            line.append(" " * blank + f"{owner:>{digits}}", style=styles[owner])
        lines.append(line)
    return lines
