"""The one rule by which a result counts as exact, for this library's tests and for yours."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cqs.backend import single_threaded_blas
from cqs.errors import OptionError
from cqs.kernels.contract import KeyChunk
from cqs.kernels.reference import attend
from cqs.kernels.region import Region
from cqs.masks import Causal, Mask
from cqs.problem import DTYPES, dtype_name
from cqs.types import Array

__all__ = ["ULPS", "assert_exact", "reference_attention"]

# What the rule grants beyond twice the error of the plain formula. A merge weighs its sides by exponentials of
# log-sum-exps, whose own rounding is a few units; where the plain formula is right to the last place, that shows.
ULPS = 8
_EVALUATIONS = 9

Floats = npt.NDArray[np.floating[Any]]


def reference_attention(
    q: Floats, k: Floats, v: Floats, *, scale: float, mask: Mask | None = None
) -> tuple[Floats, Floats]:
    """Return output and log-sum-exp by the plain formula in float64, whatever the type of the inputs."""
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    with np.errstate(all="ignore"), single_threaded_blas():
        partial = attend(q, [KeyChunk(k, v)], scale=scale, region=Region.whole(q.shape[-2], k.shape[-2], mask))
    return partial.out, partial.lse


def assert_exact(
    out: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: float | None = None,
    mask: Mask | None = None,
    is_causal: bool = False,
    lse: Floats | None = None,
) -> None:
    r"""Assert that an attention output is as good as its data type allows.

    The rule: the largest error against float64 is at most twice the largest error of the plain softmax formula in the
    same type, plus 8 units in the last place of the largest element, or one unit of the largest weighted mean of
    magnitudes: where values cancel, their sum cannot be more exact than they are. It holds for the log-sum-exp
    likewise, with units of at least those of 1.

    Parameters
    ----------
    out : array, `(*B, H, T, E)`
        What is to be checked: NumPy, float16, bfloat16, float32 or float64.
    q, k, v : array
        What it was computed from.
    scale, mask, is_causal
        As for `cqs.attention`.
    lse : array, `(*B, H, T)`, optional
        The log-sum-exp, if that is to be checked as well.

    Raises
    ------
    AssertionError
        With the error, the bound, and the place of the error.

    Notes
    -----
    The plain formula keeps float32 scores for 16-bit inputs, as matrix hardware does, and is rounded to the type of
    `out` at the end. On a handful of numbers its error may be nearly zero by luck, so it is taken as the largest of
    nine evaluations: with the scale multiplied into the scores, the queries or half into each side, of the inputs as
    they are and of inputs a unit in the last place away. The output must be finite
    wherever the plain formula is, and infinite or NaN wherever float64 is.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if is_causal and mask is not None:
        raise OptionError.of("mask", "be left out when `is_causal=True`", repr(mask), "give one of them")
    mask = Causal() if is_causal else mask
    both, exact_lse = reference_attention(q, k, np.concatenate([v, abs(v)], axis=-1), scale=scale, mask=mask)
    exact_out, of_magnitudes = both[..., : v.shape[-1]], both[..., v.shape[-1] :]
    summed = float(np.max(of_magnitudes, where=np.isfinite(of_magnitudes), initial=0))
    plain = _plain_evaluations(q, k, v, scale, mask)
    _assert_close("out", out, exact_out, [np.asarray(p.out).astype(out.dtype) for p in plain], least=summed / ULPS)
    if lse is not None:
        # it counts through its exponential, of which the last place is worth eps even where lse is near 0
        _assert_close("lse", lse, exact_lse, [p.lse for p in plain], least=1)


def _plain_evaluations(q: Floats, k: Floats, v: Floats, scale: float, mask: Mask | None) -> list[Any]:
    dtype = np.dtype(DTYPES[dtype_name(q)][1])
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    rng = np.random.default_rng(0)
    root = np.sqrt(abs(scale))
    placements = [(1.0, 1.0, scale), (scale, 1.0, 1.0), (root, np.copysign(root, scale), 1.0)]
    region = Region.whole(q.shape[-2], k.shape[-2], mask)
    plain = []
    for n in range(_EVALUATIONS):
        for_q, for_k, for_scores = placements[n % len(placements)]
        towards = rng.choice([-np.inf, np.inf], q.shape).astype(dtype)
        with np.errstate(all="ignore"), single_threaded_blas():
            near_q = q if n < len(placements) else np.nextafter(q, towards)
            q_n, k_n = near_q * dtype.type(for_q), k * dtype.type(for_k)
            plain.append(attend(q_n, [KeyChunk(k_n, v)], scale=for_scores, region=region))
    return plain


def _assert_close(name: str, actual: Array, exact: Floats, plain: list[Floats], least: float) -> None:
    got = np.asarray(actual).astype(np.float64)
    assert got.shape == exact.shape, f"{name} must have shape {exact.shape}, got {got.shape}"
    hopeless = ~np.isfinite(exact)
    assert np.array_equal(got[hopeless], exact[hopeless], equal_nan=True), f"{name} must be {exact[hopeless][:3]}..."
    finite = np.isfinite(plain[0].astype(np.float64)) & ~hopeless
    assert np.isfinite(got[finite]).all(), f"{name} must be finite wherever the plain formula is"
    if not finite.any():
        return
    error, *plain_errors = (abs(np.where(finite, x, 0.0) - np.where(finite, exact, 0.0)) for x in (got, *plain))
    plain_error = max(float(np.max(e, where=np.isfinite(e), initial=0)) for e in plain_errors)
    eps = _eps(actual.dtype)
    largest = max(float(np.max(np.where(finite, abs(exact), 0))), least)
    bound = 2 * plain_error + ULPS * eps * largest
    worst = np.unravel_index(int(error.argmax()), error.shape)
    assert error.max() <= bound, (
        f"{name} is off by {error.max():.3g} at {tuple(map(int, worst))}, where at most {bound:.3g} is allowed: "
        f"twice the plain formula's {plain_error:.3g}, plus {ULPS} ulp of {largest:.3g}"
    )


def _eps(dtype: np.dtype[Any]) -> float:
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)
