"""Attention for PyTorch's automatic differentiation, on tensors in main memory or on a GPU."""

from functools import cache
from typing import Any, Never

import cqs.api
from cqs.backend import is_tensor
from cqs.backward import attention_backward, sink_logits_backward
from cqs.engines import Engine
from cqs.errors import BackendError, refuse_unknown
from cqs.masks import Mask
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
    engine: Engine | None = None,
    strategy: str = "auto",
    **unknown: Never,
) -> Array:
    """Return attention as `cqs.attention` does, through which PyTorch can differentiate.

    Parameters
    ----------
    q, k, v : tensor, `(*B, H, T, D)`, `(*B, G, S, D)` and `(*B, G, S, E)`
        Of which any may require gradients.
    workers, memory, mask, is_causal, scale, softcap, bias, sink_logits, engine, strategy
        As in `cqs.attention`; the budget is that of each pass, beside what is kept in between. `sink_logits` and
        `bias` may require gradients; that of a bias is an array of its shape.

    Returns
    -------
    tensor, `(*B, H, T, E)`
        In q's type. What is kept for the backward pass is q, k, v, the output in float32 (or float64), and the
        log-sum-exp: O(T), where the formula would keep T x S weights.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError, QuorumError
        As `cqs.attention` does; or if q, k, v or `sink_logits` are no tensors.

    Notes
    -----
    Its gradients are those of `cqs.attention_backward`, which see for the cost. They cannot be
    differentiated again, nor by `torch.func`.
    """
    refuse_unknown(attention, unknown)
    for name, x in (("q", q), ("k", k), ("v", v), ("sink_logits", q if sink_logits is None else sink_logits)):
        if not is_tensor(x):
            remedy = "for other libraries there is `cqs.attention_backward`"
            raise BackendError.of(name, "be a torch tensor", type(x).__name__, remedy)
    AttentionProblem.of(q, k, v)  # refuses what does not fit, before anything is allocated
    common = {
        "workers": workers, "memory": memory, "mask": mask, "is_causal": is_causal, "scale": scale, "softcap": softcap,
        "engine": engine, "strategy": strategy,
    }  # fmt: skip
    out: Array = _function().apply(q, k, v, common, sink_logits, bias)
    return out


@cache
def _function() -> Any:
    """Return the function that PyTorch differentiates; PyTorch is there when somebody has a tensor."""
    import torch

    def detached(*tensors: Array) -> tuple[Array, ...]:
        return tuple(x.detach() for x in tensors)

    class Attention(torch.autograd.Function):
        """Attention with a backward pass of its own."""

        @staticmethod
        def forward(
            ctx: Any, q: Array, k: Array, v: Array, common: dict[str, Any], sink_logits: Array, bias: Any
        ) -> Array:
            is_narrow = q.dtype in (torch.float16, torch.bfloat16)
            # what is not rounded to 16 bits does not have to be made up for in the gradients
            wide = torch.empty((*q.shape[:-1], v.shape[-1]), device=q.device) if is_narrow else None
            sinks, added = (x.detach() if is_tensor(x) else x for x in (sink_logits, bias))
            options = {**common, "sink_logits": sinks, "bias": added}
            out, lse = cqs.api.attention(*detached(q, k, v), **options, out=wide, return_lse=True)
            ctx.save_for_backward(q, k, v, out, lse, sink_logits, bias if is_tensor(bias) else None)
            ctx.common, ctx.bias = common, None if is_tensor(bias) else bias
            return out.to(q.dtype) if is_narrow else out

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, dout: Array) -> tuple[Array | None, ...]:
            *saved, sinks, bias = ctx.saved_tensors
            dout, q, k, v, out, lse = detached(dout, *saved)
            *_, asks_sinks, asks_bias = ctx.needs_input_grad
            options = {**ctx.common, "bias": ctx.bias if bias is None else bias.detach(), "return_dbias": asks_bias}
            dq, dk, dv, *of_bias = attention_backward(dout, q, k, v, out, lse, **options)
            of_sinks = sink_logits_backward(dout, out, lse, sinks.detach()) if asks_sinks else None
            return dq, dk, dv, None, of_sinks, *(of_bias or [None])

    return Attention
