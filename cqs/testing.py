"""The one rule by which a result counts as exact, for this library's tests and for yours."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.masks import Mask
from cqs.oracle import ULPS, Floats, Judgement, Rows, as_numpy, judge_lse, judge_out
from cqs.oracle_backward import BackwardFormula, judge_gradients
from cqs.problem import DTYPES, AttentionProblem, dtype_name
from cqs.scores import ALiBi, Scores
from cqs.types import Array

__all__ = ["ULPS", "assert_exact", "assert_exact_gradients", "reference_attention"]

_GRADIENTS = ("dq", "dk", "dv", "dbias")


def reference_attention(
    q: Floats, k: Floats, v: Floats, *, scale: float, mask: Mask | Array | None = None
) -> tuple[Floats, Floats]:
    """Return output and log-sum-exp by the plain formula in float64, whatever the type and library of the inputs."""
    q, k, v = (as_numpy(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    problem = AttentionProblem.of(q, k, v, mask=mask, scale=scale)
    out, lse, _ = _rows(q, k, v, problem).exact()
    return out.reshape(problem.out_shape).astype(np.float64), lse.reshape(problem.lse_shape).astype(np.float64)


def assert_exact(
    out: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: float | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    bias: Floats | ALiBi | None = None,
    score_mod: Callable[..., Floats] | None = None,
    sink_logits: Floats | None = None,
    lse: Floats | None = None,
) -> None:
    r"""Assert that an attention output is as good as its data type allows.

    The rule: the largest error against float64 is at most twice the largest error of the plain softmax formula in the
    same type, plus 8 units in the last place of the largest element, or one unit of the largest weighted mean of
    magnitudes: where values cancel, their sum cannot be more exact than they are.

    And so it is for each element by itself, in proportion to the weighted mean of its own values' magnitudes: the
    largest share is at most twice the plain formula's, plus 8 units of the type that sums are kept in, float32 or
    float64, and one of float16 or bfloat16 if that is what the output is rounded to. So rows and heads of small numbers
    are held to their own size, and not to that of the largest.

    The log-sum-exp is held to both likewise, with units of at least those of 1.

    Parameters
    ----------
    out : array, `(*B, H, T, E)`
        What is to be checked: float16, bfloat16, float32 or float64, of NumPy, torch, CuPy or another array library.
        What is not NumPy's is read by NumPy, so tensors are to be on the CPU.
    q, k, v : array
        What it was computed from.
    scale, mask, is_causal, softcap, bias, score_mod, sink_logits
        As for `cqs.attention`; `score_mod` is called with NumPy arrays.
    lse : array, `(*B, H, T)`, optional
        The log-sum-exp, if that is to be checked as well.

    Raises
    ------
    AssertionError
        With the error, the bound, and the place of the error.
    ShapeError, DTypeError, OptionError, BackendError
        If the arguments do not fit each other, or are no arrays that NumPy can read.

    Notes
    -----
    The plain formula keeps float32 scores for 16-bit inputs, as matrix hardware does, and is rounded to the type of
    `out` at the end. On a handful of numbers its error may be nearly zero by luck, so it is taken as the largest of
    nine evaluations: with the scale multiplied into the scores, the queries or half into each side, of the inputs as
    they are and of queries a unit in the last place away. The output must be finite wherever the plain formula is, and
    infinite or NaN wherever float64 is. For float64 outputs, float64 here means long double, where a machine has it.
    """
    out, q, k, v = (as_numpy(name, x) for name, x in (("out", out), ("q", q), ("k", k), ("v", v)))
    lse = None if lse is None else as_numpy("lse", lse)
    sink_logits = None if sink_logits is None else as_numpy("sink_logits", sink_logits)
    bias = bias if bias is None or isinstance(bias, ALiBi) else as_numpy("bias", bias)
    problem = AttentionProblem.of(q, k, v, mask=mask, is_causal=is_causal, scale=scale)
    change = partial(_changed, problem, softcap, bias, score_mod)
    rows = replace(
        _rows(q, k, v, problem),
        change=None if softcap is None and bias is None and score_mod is None else change,
        sink_logits=None if sink_logits is None else _by_group(sink_logits, problem)[..., None, None],
    )
    exact_out, exact_lse, magnitudes = rows.exact()
    plain = rows.plain()
    _check_shape("out", out, problem.out_shape)
    exact_out, magnitudes, *formulas = (x.reshape(out.shape) for x in (exact_out, magnitudes, *(o for o, _ in plain)))
    _assert_passed("out", judge_out(out, exact_out, formulas, magnitudes), exact_out)
    if lse is not None:
        _check_shape("lse", lse, problem.lse_shape)
        exact_lse, *formulas = (x.reshape(lse.shape) for x in (exact_lse, *(x for _, x in plain)))
        _assert_passed("lse", judge_lse(lse, exact_lse, formulas), exact_lse)


def assert_exact_gradients(
    gradients: Sequence[Floats],
    dout: Floats,
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    scale: float | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    bias: Floats | ALiBi | None = None,
) -> None:
    """Assert that gradients of attention are as good as their data type allows, by the rule of `assert_exact`.

    In place of weighted means of magnitudes there are the sums of the magnitudes of all that a gradient is a sum of.

    Parameters
    ----------
    gradients : sequence of array
        dq, dk and dv, of the shapes of q, k and v, and if there are four, of the bias; what is to be checked.
    dout : array, `(*B, H, T, E)`
        The gradient of the output.
    q, k, v, scale, mask, is_causal, softcap, bias
        As for `cqs.attention`, of finite numbers.

    Raises
    ------
    AssertionError
        With the error, the bound, and the place of the error.
    ShapeError, DTypeError, OptionError, BackendError
        If the arguments do not fit each other, or are no arrays that NumPy can read.

    Notes
    -----
    The formula holds all T x S scores of all heads. Errors are compared with the formula's largest, as those of outputs
    are: where one row has scores in the thousands, whose weights no float32 gets right, others may be wrong unnoticed.
    """
    q, k, v, dout = (as_numpy(name, x) for name, x in (("q", q), ("k", k), ("v", v), ("dout", dout)))
    bias = bias if bias is None or isinstance(bias, ALiBi) else as_numpy("bias", bias)
    problem = AttentionProblem.of(q, k, v, mask=mask, is_causal=is_causal, scale=scale)
    Scores.of(problem, q, softcap, bias)  # which refuses what is wrong with them
    shape = None if bias is None or isinstance(bias, ALiBi) else bias.shape
    arrays = _checked_gradients(problem, gradients, dout, (q, k, v), shape)
    rows = _rows(q, k, v, problem)
    everything = slice(0, problem.n_keys)
    formula = BackwardFormula(
        rows.q, dout.reshape(*rows.q.shape[:-1], dout.shape[-1]), rows.k, rows.v, problem.scale,
        visible=rows.visible(np.arange(problem.n_keys)), softcap=softcap,
        change=lambda scores: _changed(problem, softcap, bias, None, scores, everything),
        bias_shape=None if shape is None or len(arrays) == 3 else (*[1] * (dout.ndim - len(shape)), *shape),
    )  # fmt: skip
    for name, found in zip(_GRADIENTS, judge_gradients(arrays, formula), strict=False):
        _assert_passed(name, found, np.zeros(0))


def _checked_gradients(
    problem: AttentionProblem,
    gradients: Sequence[Floats],
    dout: Floats,
    inputs: Sequence[Floats],
    bias_shape: tuple[int, ...] | None,
) -> list[Floats]:
    """Return the gradients as NumPy's arrays; refuse what cannot be compared."""
    if dout.shape != problem.out_shape:
        raise ShapeError.of("dout", f"have the output's shape {problem.out_shape}", dout.shape, "check its axes")
    shapes = [*problem.input_shapes.values(), *([] if bias_shape is None else [bias_shape])]
    if not isinstance(gradients, tuple | list) or not 3 <= len(gradients) <= len(shapes):
        rule = "be dq, dk and dv" + " and perhaps dbias" * (len(shapes) - 3)
        raise OptionError.of("gradients", rule, type(gradients).__name__, "give all of them")
    for name, x in zip(("q", "k", "v", "dout"), (*inputs, dout), strict=True):
        if not np.isfinite(x).all():
            raise OptionError.of(name, "be finite where gradients are checked", "NaN or infinity", "leave those out")
    arrays = [as_numpy(name, x) for name, x in zip(_GRADIENTS, gradients, strict=False)]
    for name, x, shape in zip(_GRADIENTS, arrays, shapes, strict=False):
        if dtype_name(x) not in DTYPES:
            raise DTypeError.of(name, f"have one of the types {', '.join(DTYPES)}", dtype_name(x), "convert it first")
        _check_shape(name, x, shape)
    return arrays


def _rows(q: Floats, k: Floats, v: Floats, problem: AttentionProblem) -> Rows:
    """Take all rows, with the heads as (G, H / G), whose second axis shares keys."""
    *batch, H, T, D = q.shape
    G = k.shape[-3]
    grouped = q.reshape(*batch, G, H // G, T, D)
    return Rows(grouped, k[..., None, :, :], v[..., None, :, :], np.arange(T), problem.scale, problem.mask)


def _by_group(x: Floats, problem: AttentionProblem) -> Floats:
    """Expand axes that broadcast to `(*B, H)` to `(*B, G, H / G)`."""
    heads = (*problem.batch, problem.n_heads)
    G = problem.n_kv_heads
    return np.broadcast_to(x, heads).reshape(*problem.batch, G, problem.n_heads // G)


def _changed(
    problem: AttentionProblem,
    softcap: float | None,
    bias: Floats | ALiBi | None,
    score_mod: Callable[..., Floats] | None,
    scores: Floats,
    keys: slice,
) -> Floats:
    """Apply softcap, bias and function as their formulas say."""
    q_idx, k_idx = np.arange(problem.n_queries)[:, None], np.arange(keys.start, keys.stop)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if isinstance(bias, ALiBi):
        slopes = _by_group(np.array(bias.slopes), problem)[..., None, None].astype(scores.dtype)
        scores = scores - slopes * abs(q_idx + bias.offset - k_idx)
    elif bias is not None:
        full = np.broadcast_to(bias, (*problem.batch, problem.n_heads, problem.n_queries, problem.n_keys))
        scores = scores + full[..., keys].reshape(scores.shape)
    if score_mod is not None:
        scores = scores.copy()
        G = problem.n_kv_heads
        for b, index in enumerate(np.ndindex(*problem.batch)):
            for h in range(problem.n_heads):
                at = (*index, *divmod(h, problem.n_heads // G))
                scores[at] = score_mod(scores[at], b, h, q_idx, k_idx)
    return scores


def _check_shape(name: str, actual: Floats, shape: tuple[int, ...]) -> None:
    assert actual.shape == shape, f"{name} must have shape {shape}, got {actual.shape}"


def _assert_passed(name: str, found: Judgement, exact: Floats) -> None:
    assert not found.n_unlike, f"{name} must be {exact[~np.isfinite(exact)][:3]}..."
    assert not found.n_lost, f"{name} must be finite wherever the plain formula is"
    for of_what, measure in (("", found.absolute), (" of the magnitudes that it is made of", found.relative)):
        assert measure.is_within, (
            f"{name} is off by {measure.error:.3g}{of_what} at {measure.worst}, where at most {measure.bound:.3g} is "
            f"allowed: twice the plain formula's {measure.plain_error:.3g}, plus {measure.granted:.3g}"
        )
