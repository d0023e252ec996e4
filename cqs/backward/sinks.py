"""The gradient of sink logits, which needs no tasks: it is a sum over queries of what is known of their rows."""

from math import prod

from cqs.backend import dtype_of, namespace_of, quiet_floats, refuse_gradients
from cqs.backward.source import delta_of
from cqs.errors import DTypeError, ShapeError
from cqs.kernels.known_rows import unseeing
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import MERGE_BLOCK, even_cuts
from cqs.types import Array

__all__ = ["sink_logits_backward"]


def sink_logits_backward(dout: Array, out: Array, lse: Array, sink_logits: Array) -> Array:
    r"""Return the gradient of sink logits, given that of the output.

    A sink has a weight in each row, and no value. So with the weight :math:`p_i = e^{\mathrm{sink} - l_i}`

    .. math::

        \mathrm d\,\mathrm{sink} = -\sum_i p_i\, \delta_i, \qquad \delta_i = \mathrm{do}_i \cdot o_i.

    Parameters
    ----------
    dout, out : array, `(*B, H, T, E)`
        The output of `cqs.attention`, and the gradient of what is minimised with respect to it.
    lse : array, `(*B, H, T)`
        What it returned with `return_lse=True`.
    sink_logits : array
        What it was given: it broadcasts to `(*B, H)`.

    Returns
    -------
    array
        Of the shape and type of `sink_logits`. O(T E) a head.

    Raises
    ------
    ShapeError, DTypeError, BackendError
        If these do not belong together.

    Examples
    --------
    >>> import numpy as np, cqs
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 2, 300, 8))
    >>> sinks, step = np.array([0.5, 2.0]), np.array([1e-6, 0.0])
    >>> out, lse = cqs.attention(q, k, v, sink_logits=sinks, return_lse=True)
    >>> rise = (dout * (cqs.attention(q, k, v, sink_logits=sinks + step) - out)).sum()
    >>> bool(np.isclose(rise, 1e-6 * cqs.backward.sink_logits_backward(dout, out, lse, sinks)[0], rtol=1e-3))
    True
    """
    refuse_gradients(dout=dout, out=out, lse=lse, sink_logits=sink_logits)
    xp = namespace_of(dout=dout, out=out, lse=lse, sink_logits=sink_logits)
    _check(dout, out, lse, sink_logits)
    wide = dtype_of(xp, dtype_name(lse))
    with quiet_floats():
        logits = xp.astype(sink_logits, wide, copy=False)[..., None]
        of_rows = unseeing(xp, lse)
        of_heads = xp.zeros(tuple(lse.shape[:-1]), dtype=wide, device=lse.device)
        a_row = max(prod(of_heads.shape) * out.shape[-1], 1)
        for rows in even_cuts(lse.shape[-1], max(MERGE_BLOCK // a_row, 1)):  # so that little is held meanwhile
            here = (..., slice(rows.start, rows.stop))
            delta = delta_of(dout[(*here, slice(None))], out[(*here, slice(None))], wide)
            of_heads -= xp.sum(xp.exp(logits - of_rows[here]) * delta, axis=-1)
        n_more = of_heads.ndim - sink_logits.ndim
        shape = (1,) * n_more + tuple(sink_logits.shape)
        summed = tuple(i for i, n in enumerate(shape) if n == 1)
        found = xp.sum(of_heads, axis=summed, keepdims=True) if summed else of_heads
        return xp.astype(xp.reshape(found, tuple(sink_logits.shape)), sink_logits.dtype, copy=False)


def _check(dout: Array, out: Array, lse: Array, sink_logits: Array) -> None:
    remedy = "give what `cqs.attention` was given and returned"
    if dout.ndim < 3 or tuple(out.shape) != tuple(dout.shape):
        raise ShapeError.of("out", f"have the shape of `dout`, {tuple(dout.shape)}", tuple(out.shape), remedy)
    heads = tuple(dout.shape[:-2])
    if tuple(lse.shape) != tuple(dout.shape[:-1]):
        raise ShapeError.of("lse", f"have shape {tuple(dout.shape[:-1])}", tuple(lse.shape), remedy)
    shape = tuple(sink_logits.shape)
    if len(shape) > len(heads) or any(n not in (1, m) for n, m in zip(shape[::-1], heads[::-1], strict=False)):
        raise ShapeError.of("sink_logits", f"broadcast to (*B, H) = {heads}", f"shape {shape}", remedy)
    for name, x in (("dout", dout), ("out", out), ("sink_logits", sink_logits)):
        if dtype_name(x) not in DTYPES:
            raise DTypeError.of(name, f"have one of the types {', '.join(DTYPES)}", dtype_name(x), "convert it first")
    if dtype_name(lse) not in ("float32", "float64"):
        raise DTypeError.of("lse", "be float32 or float64", dtype_name(lse), remedy)
