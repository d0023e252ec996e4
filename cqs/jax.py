"""Attention that JAX can trace, differentiate and map, computed by this library in main memory."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Never

import numpy as np
import numpy.typing as npt

import cqs.api
from cqs.backend import is_of_jax
from cqs.backward import attention_backward, sink_logits_backward
from cqs.errors import BackendError, CQSError, ShapeError, refuse_unknown
from cqs.masks import Causal, Dense, Mask
from cqs.problem import AttentionProblem
from cqs.scores import ALiBi
from cqs.types import Array

__all__ = ["attention"]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    mask: Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Array | ALiBi | None = None,
    sink_logits: Array | None = None,
    strategy: str = "auto",
    **unknown: Never,
) -> Array:
    """Return attention as `cqs.attention` does, inside functions of which JAX makes others, too.

    That is `jax.jit`, `jax.grad` and `jax.vjp`, `jax.vmap`, `jax.checkpoint`: whatever calls it with values that are
    not there yet. Outside them `cqs.attention` takes arrays of JAX as they are, and more options.

    Parameters
    ----------
    q, k, v : array of JAX, `(*B, H, T, D)`, `(*B, G, S, D)` and `(*B, G, S, E)`
        Heads come before tokens: what `jax.nn.dot_product_attention` takes has axes 1 and 2 exchanged.
    workers, memory, is_causal, scale, softcap, strategy
        As in `cqs.attention`; the budget is that of each pass. They are fixed when the function is traced.
    mask : Mask, or array of bool that broadcasts to `(*B, H, T, S)`
        A mask that is not an array is fixed when the function is traced. An array may be given beside `is_causal`: what
        both show is seen.
    bias : array that broadcasts to `(*B, H, T, S)`, or `ALiBi`
        An array may be differentiated, whose gradient has as many numbers. What is to be hidden is for a mask: where a
        whole row is at -1e9, say, gradients are not exact.
    sink_logits : array that broadcasts to `(*B, H)`
        Which may be differentiated.

    Returns
    -------
    array of JAX, `(*B, H, T, E)`
        In q's type. What is kept for a backward pass is q, k, v, the output in float32 (or float64), and the
        log-sum-exp: O(T), where the formula would keep T x S weights.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, QuorumError, BudgetError
        As `cqs.attention` does, when the function is traced; or if these are no arrays of JAX. A budget that a
        backward pass or a mapped call cannot keep is refused when it runs, as JAX's own error with that in its text.

    Notes
    -----
    It is computed by a callback (`jax.pure_callback`): JAX hands over inputs in main memory, from a GPU or TPU it
    copies them there and back. Gradients are those of `cqs.attention_backward`; they cannot be differentiated again,
    nor forwards (`jax.jvp`).
    """
    refuse_unknown(attention, unknown)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not is_of_jax(x):
            raise BackendError.of(name, "be an array of JAX", type(x).__name__, "for others there is `cqs.attention`")
    import jax

    problem = AttentionProblem.of(q, k, v)
    full = (*problem.batch, problem.n_heads, problem.n_queries, problem.n_keys)
    options: dict[str, Any] = {
        "workers": workers, "memory": memory, "is_causal": is_causal, "scale": scale, "softcap": softcap,
        "strategy": strategy, "mask": mask, "bias": bias, "sink_logits": sink_logits,
    }  # fmt: skip
    arrays = {
        name: _of_rank(name, options.pop(name), wanted)
        for name, wanted in (("mask", full), ("bias", full), ("sink_logits", full[:-2]))
        if is_of_jax(options[name]) or isinstance(options[name], np.ndarray)
    }
    stand_ins: dict[str, Any] = {name: _stand_in(x) for name, x in arrays.items()}
    if "mask" in arrays:
        Dense(stand_ins.pop("mask"))  # refuses what is not bool
        options |= {"mask": Causal(), "is_causal": False} if is_causal is True else {}
    shapes, whole = (tuple(q.shape), tuple(k.shape), tuple(v.shape)), {**options, **stand_ins}
    cqs.api.plan(*shapes, dtype=problem.dtype, **whole)  # refuses what is wrong
    # NumPy's are copied, to be as they are now whenever the function runs
    arrays = {name: x if is_of_jax(x) else jax.numpy.array(x) for name, x in arrays.items()}
    named = tuple(options.items())
    try:
        hash(named)
    except TypeError:  # such as a mask that is an array, of which none is like another
        out: Array = _new_differentiable(problem, named)(q, k, v, arrays)
    else:
        out = _differentiable(problem, named)(q, k, v, arrays)
    return out


def _of_rank(name: str, x: Array, full: tuple[int, ...]) -> Array:
    """Put axes of length 1 before those of an array, so that it can be mapped over beside q, k and v."""
    shape = (*[1] * (len(full) - x.ndim), *x.shape)
    if len(shape) != len(full) or any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
        remedy = "give an axis for each of these, or of length 1"
        raise ShapeError.of(name, f"broadcast to {full}", tuple(x.shape), remedy)
    return x.reshape(shape)


def _stand_in(x: Array) -> npt.NDArray[Any]:
    """Return an array of NumPy of the shape and type of another, without its numbers."""
    return np.broadcast_to(np.zeros((), np.dtype(x.dtype)), x.shape)


def _counts_entries(mask: Mask | None, problem: AttentionProblem) -> bool:
    """Whether a mask means others by its batch entries if there is a batch axis more."""
    if mask is None:
        return False
    batch = (2, *problem.batch)
    try:
        lead = mask.bind(batch, problem.n_heads, problem.n_queries, problem.n_keys).lead
    except CQSError:
        return True
    return len(lead) > len(batch) and lead[0] > 1


def _new_differentiable(problem: AttentionProblem, named: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """Return a function of q, k, v and arrays by name, with some options, for JAX to trace and differentiate."""
    import jax

    options = dict(named)
    wide = jax.numpy.dtype(problem.accumulator_dtype)
    n_axes = len(problem.out_shape)
    method = "sequential" if _counts_entries(options.get("mask"), problem) else "expand_dims"
    output, output_and_lse, gradients = (partial(f, options, n_axes) for f in (_output, _output_and_lse, _gradients))
    result, lse_result = (jax.ShapeDtypeStruct(shape, wide) for shape in (problem.out_shape, problem.lse_shape))

    def called(function: Callable[..., Any], results: Any, *arrays: Any) -> Any:
        return jax.pure_callback(function, results, *arrays, vmap_method=method)

    def attend(q: Array, k: Array, v: Array, arrays: dict[str, Array]) -> Array:
        return called(output, jax.ShapeDtypeStruct(problem.out_shape, q.dtype), q, k, v, arrays)

    def forward(*given: Any) -> tuple[Array, tuple[Any, ...]]:
        q, k, v, arrays = jax.tree.map(lambda x: x.value, given)
        out, lse = called(output_and_lse, (result, lse_result), q, k, v, arrays)
        # what is kept may differ in structure, of which JAX knows while it traces
        asked = {name: () for name in arrays if name != "mask" and given[3][name].perturbed}
        return out.astype(q.dtype), (q, k, v, out, lse, arrays, asked)

    def backward(kept: tuple[Any, ...], dout: Any) -> tuple[Any, ...]:
        q, k, v, out, lse, arrays, asked = kept
        if isinstance(dout, jax.custom_derivatives.SymbolicZero):
            dout = jax.numpy.zeros(dout.shape, dout.dtype)
        results = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in (("q", q), ("k", k), ("v", v))}
        results |= {name: jax.ShapeDtypeStruct(arrays[name].shape, arrays[name].dtype) for name in asked}
        found = called(partial(gradients, tuple(asked)), results, dout, q, k, v, out, lse, arrays)
        return found["q"], found["k"], found["v"], {name: found.get(name) for name in arrays}

    differentiable: Callable[..., Array] = jax.custom_vjp(attend)
    differentiable.defvjp(forward, backward, symbolic_zeros=True)  # type: ignore[attr-defined]
    return differentiable


# JAX compiles anew for each function that it has not seen, so there is one for all calls with the same options
_differentiable = lru_cache(maxsize=64)(_new_differentiable)


def _output(options: dict[str, Any], n_axes: int, *given: Any) -> Array:
    q, k, v, arrays = _as_numpy(n_axes, *given)
    return cqs.api.attention(q, k, v, **_joined(options, arrays))


def _output_and_lse(options: dict[str, Any], n_axes: int, *given: Any) -> tuple[Array, Array]:
    q, k, v, arrays = _as_numpy(n_axes, *given)
    # what is not rounded to 16 bits does not have to be made up for in the gradients
    wide = np.empty((*q.shape[:-1], v.shape[-1]), np.float32) if q.dtype.itemsize == 2 else None
    found: tuple[Array, Array] = cqs.api.attention(q, k, v, **_joined(options, arrays), out=wide, return_lse=True)
    return found


def _gradients(options: dict[str, Any], n_axes: int, asked: tuple[str, ...], *given: Any) -> dict[str, Array]:
    dout, q, k, v, out, lse, arrays = _as_numpy(n_axes, *given, repeats=("sink_logits", *asked))
    joined = _joined(options, arrays)
    sinks = joined.pop("sink_logits")
    found = attention_backward(dout, q, k, v, out, lse, **joined, return_dbias="bias" in asked)
    named = dict(zip(("q", "k", "v", "bias"), found, strict=False))
    if "sink_logits" in asked:
        named["sink_logits"] = sink_logits_backward(dout, out, lse, sinks)
    return named


def _joined(options: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    """Return options with arrays among them; of two masks, what both show is seen."""
    joined = {**options, **arrays}
    if "mask" in arrays and options.get("mask") is not None:
        joined["mask"] = options["mask"] & Dense(arrays["mask"])
    return joined


def _as_numpy(n_axes: int, *given: Any, repeats: Sequence[str] = ("sink_logits",)) -> tuple[Any, ...]:
    """Return arrays of NumPy; those that JAX does not map over are repeated along the axes that it does, as views.

    Of those by name only some, since masks and biases may have axes of length 1; not if their gradients are asked for,
    of which each call that is mapped over has its own.
    """
    *arrays, named = given
    arrays, named = [np.asarray(x) for x in arrays], {name: np.asarray(x) for name, x in named.items()}
    n_mapped = arrays[0].ndim - n_axes
    mapped = np.broadcast_shapes(*(x.shape[:n_mapped] for x in (*arrays, *named.values())))

    def repeated(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.broadcast_to(x, (*mapped, *x.shape[n_mapped:]))

    return *map(repeated, arrays), {name: repeated(x) if name in repeats else x for name, x in named.items()}
