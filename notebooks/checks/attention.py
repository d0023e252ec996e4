"""Exercises of notebook 01: attention and its memory."""

import math

import numpy as np

import cqs
from checks.forms import number, two_numbers
from checks.verdict import exercise

__all__ = ["check_longest", "check_query"]

_BYTES, _HEADS, _ELEMENT = 16 * 2**30, 8, 4
_LONGEST = math.isqrt(_BYTES // (_HEADS * _ELEMENT))


@exercise(
    hint="8 heads of N x N scores of 4 bytes are 32 N^2 bytes; 16 GiB are 2^34 bytes.",
    right=f"N = {_LONGEST:,}. The inputs of that sequence, at width 64, take 0.13 GiB. The scores are what is large.",
    form=number("a whole number"),
)
def check_longest(n_tokens: float) -> str | None:
    """Check the most tokens whose float32 scores, for 8 heads, fit into 16 GiB."""
    n = int(n_tokens)
    if n != n_tokens:
        return "Tokens are counted in whole numbers: round down, since half a token more would not fit."
    mistakes = {
        math.isqrt(_BYTES // _ELEMENT): "That is the answer for one head. There are 8, each with scores of its own.",
        math.isqrt(_BYTES // _HEADS): "That takes a score for one byte. A float32 has 4.",
        math.isqrt(_BYTES): "That leaves out both the heads and the 4 bytes of a float32.",
        math.isqrt(16 * 10**9 // 32): "That takes a GiB for 10^9 bytes. It is 2^30.",
        _BYTES // (_HEADS * _ELEMENT): "That is N^2, the number of scores of a head. Take its square root.",
    }
    if n in mistakes:
        return mistakes[n]
    if n > _LONGEST:
        return f"{n:,} tokens need 32 x {n:,}^2 = {32 * n * n:,} bytes, more than the {_BYTES:,} there are."
    return None if n == _LONGEST else f"{n:,} tokens fit, and {n + 1:,} would, too. How far can you go?"


@exercise(
    hint="with these keys the two scores are the two numbers of the query. The weights are as exp(score).",
    right="Scores are logarithms of weights: only their difference counts, so (log 3 + c, c) is right for every c.",
    form=two_numbers(),
)
def check_query(query: tuple[float, float]) -> str | None:
    """Check a query that gives the keys (1, 0) and (0, 1) the weights 3/4 and 1/4, at scale 1."""
    a, b = query
    keys, values = np.eye(2)[None], np.array([[[1.0], [0.0]]])
    weight = float(cqs.attention(np.array([[[a, b]]]), keys, values, scale=1.0)[0, 0, 0])
    if abs(weight - 0.75) < 1e-6:
        return None
    quotient = f"exp({a:g}) / (exp({a:g}) + exp({b:g})) = {weight:.3f}"
    said = f"Your scores are {a:g} and {b:g}, and the first weight is {quotient}."
    if abs(a - 3 * b) < 1e-9 and b != 0:
        return f"{said} You made the scores stand 3 to 1. It is their exponentials that have to."
    if abs(weight - 0.25) < 1e-6:
        return f"{said} That is the other way round: the first key is to have 3/4."
    return f"{said} Which difference of scores makes exp three times as large?"
