"""Options for masks and scores, which mean the same in `cqs run`, `cqs plan` and `cqs verify`."""

import argparse
from typing import Any

import numpy as np

from cqs.cli.files import read_array
from cqs.cli.options import Arguments, add_common, path, real, whole
from cqs.errors import OptionError
from cqs.masks import Causal, Dense, Documents, Mask, Sinks, SlidingWindow
from cqs.scores import ALiBi

__all__ = ["add_choices", "mask_of", "scores_of"]


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add options for masks and scores."""
    group = parser.add_argument_group("masks and scores")
    add_common(group, "causal")
    group.add_argument("--window", type=whole, metavar="N", help="query i sees keys i - N to i + N; with --causal to i")
    group.add_argument("--sinks", type=whole, metavar="N", help="with --window: every query also sees the first N keys")
    lengths = "tokens of each document that is packed, in order; each sees itself"
    group.add_argument("--documents", type=path, metavar="LENGTHS.npy", help=lengths)
    seen = "bool, broadcasts to (..., heads, T, S): True where seen"
    group.add_argument("--mask", type=path, metavar="M.npy", help=seen)
    add_common(group, "scale")
    group.add_argument("--softcap", type=real, metavar="C", help="scores become C tanh(score / C)")
    group.add_argument("--alibi", action="store_true", help="linear biases, with the slopes of the ALiBi paper")
    added = "added to scores; broadcasts to (..., heads, T, S)"
    group.add_argument("--bias", type=path, metavar="B.npy", help=added)
    logits = "attention-sink logits; broadcasts to (..., heads)"
    group.add_argument("--sink-logits", type=path, metavar="L.npy", help=logits)


def mask_of(args: Arguments) -> Mask | None:
    """Return the mask that the options describe.

    Raises
    ------
    OptionError
        If `--sinks` has no window to be joined with, or a file is not what it should be.
    """
    if args.sinks is not None and args.window is None:
        raise OptionError.of(
            "--sinks", "be given with --window", args.sinks, "without one the first keys are seen anyway"
        )
    mask: Mask | None = Causal() if args.causal else None
    if args.window is not None:
        band: Mask = SlidingWindow(args.window, 0 if args.causal else args.window)
        mask = band if args.sinks is None else band | Sinks(args.sinks)
        if args.causal and args.sinks is not None:
            mask &= Causal()
    if args.documents is not None:
        documents = _documents(args.documents)
        mask = documents if mask is None else mask & documents
    if args.mask is not None:
        given = Dense(read_array("--mask", args.mask))
        mask = given if mask is None else mask & given
    return mask


def _documents(path: str) -> Documents:
    lengths = read_array("--documents", path)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        got, remedy = f"{lengths.dtype} of shape {lengths.shape}", "as of `np.save('lengths.npy', [700, 300])`"
        raise OptionError.of("--documents", "hold whole numbers along one axis", got, remedy)
    return Documents(lengths.tolist())


def scores_of(args: Arguments, n_heads: int) -> dict[str, Any]:
    """Return what the options say about scores, as `cqs.attention` takes it.

    Raises
    ------
    OptionError
        If biases are given twice, or a file is not what it should be.
    """
    if args.alibi and args.bias is not None:
        raise OptionError.of("--bias", "be left out with --alibi", args.bias, "give one of them")
    bias = None if args.bias is None else read_array("--bias", args.bias)
    logits = None if args.sink_logits is None else np.array(read_array("--sink-logits", args.sink_logits))
    return {
        "scale": args.scale,
        "softcap": args.softcap,
        "bias": ALiBi.standard(n_heads) if args.alibi else bias,
        "sink_logits": logits,
    }
