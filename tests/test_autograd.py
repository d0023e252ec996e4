"""PyTorch differentiates through attention."""

from typing import Any

import numpy as np
import pytest

import cqs
from cqs.autograd import attention
from cqs.errors import BackendError, BudgetError, OptionError, ShapeError
from cqs.masks import Causal, SlidingWindow
from cqs.scores import ALiBi

torch = pytest.importorskip("torch")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"mask": SlidingWindow(3, 1)},
    "softcap": {"softcap": 2.0, "scale": 1.5},
    "ALiBi": {"bias": ALiBi.standard(4)},
    "sinks": {"sink_logits": torch.tensor([0.5, 1.0, -1.0, 2.0], dtype=torch.float64)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(h, 5, 3, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    assert torch.autograd.gradcheck(  # fast: along one direction of each, and not along all axes
        lambda *qkv: attention(*qkv, workers=3, **options), (q, k, v), fast_mode=bool(options)
    )


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 4), (3, 1), (1, 4)])
def test_sink_logits_are_learned(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, h, 5, 3, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    sinks = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(  # fast: along one direction of each, and not along all axes
        lambda *x: attention(*x[:3], sink_logits=x[3], mask=Causal(-2)), (q, k, v, sinks), fast_mode=shape != (4,)
    )


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6), (3, 1, 5, 6), (3, 4, 1, 6), (1, 5, 1)])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"mask": Causal(-2)}], ids=str)
def test_a_bias_is_learned(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, h, n, 3, dtype=torch.float64, requires_grad=True) for h, n in ((4, 5), (2, 6), (2, 6)))
    bias, sinks = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, (4,)))
    assert torch.autograd.gradcheck(  # fast: along one direction of each, and not along all axes
        lambda *x: attention(*x[:3], bias=x[3], sink_logits=x[4], workers=3, **options),
        (q, k, v, bias, sinks),
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_is_trained_as_by_torch(dtype: str) -> None:
    def gradient_of_weights(attend: Any) -> Any:
        torch.manual_seed(0)
        project = torch.nn.Linear(32, 96).to(getattr(torch, dtype))
        x = torch.randn(2, 70, 32).to(getattr(torch, dtype))
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in project(x).chunk(3, dim=-1))
        attend(q, k, v).square().sum().backward()
        return project.weight.grad.float()

    peer = torch.nn.functional.scaled_dot_product_attention
    own = gradient_of_weights(lambda *qkv: attention(*qkv, is_causal=True, workers=7))
    expected = gradient_of_weights(lambda *qkv: peer(*qkv, is_causal=True))
    scale = float(expected.abs().max())
    assert float((own - expected).abs().max()) < {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}[dtype] * scale


def test_what_needs_no_gradient_is_given_none() -> None:
    q, k, v = (torch.randn(2, 50, 8) for _ in range(3))
    out = attention(q, k, v)
    assert not out.requires_grad
    np.testing.assert_array_equal(out, cqs.attention(q, k, v))
    q.requires_grad_()
    attention(q, k, v).sum().backward()
    assert q.grad is not None
    assert k.grad is None


@pytest.mark.parametrize("learned", [[], [0], [3], [1, 3]])
def test_the_gradient_of_a_bias_is_computed_where_it_is_asked_for(
    learned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, original = [], cqs.autograd.attention_backward

    def noted(*args: Any, **options: Any) -> Any:
        asked.append(options["return_dbias"])
        return original(*args, **options)

    monkeypatch.setattr(cqs.autograd, "attention_backward", noted)
    given = [*torch.randn(3, 2, 50, 8), torch.randn(2, 50, 50)]
    for i in learned:
        given[i] = given[i].requires_grad_()
    out = attention(*given[:3], bias=given[3])
    if learned:
        out.sum().backward()
    assert asked == [3 in learned] * bool(learned)
    assert [x.grad is not None for x in given] == [i in learned for i in range(4)]


def test_both_passes_keep_to_the_budget() -> None:
    q, k, v = (torch.randn(2, 600, 16, requires_grad=True) for _ in range(3))
    attention(q, k, v, memory="16 MiB").sum().backward()
    grads = [x.grad for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    attention(q, k, v).sum().backward()
    for x, expected in zip((q, k, v), grads, strict=True):
        np.testing.assert_allclose(x.grad, expected, atol=1e-5)
    with pytest.raises(BudgetError, match="`memory` must be at least"):
        attention(q, k, v, memory="1 MiB")


def test_the_caller_is_told_where_gradients_are() -> None:
    x = torch.randn(2, 50, 8, requires_grad=True)
    with pytest.raises(BackendError, match=r"only `cqs\.autograd\.attention` passes on"):
        cqs.attention(x, x, x)


def test_what_has_no_gradient_is_refused() -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(BackendError, match="`q` must be a torch tensor, got ndarray"):
        attention(x.numpy(), x, x)
    with pytest.raises(BackendError, match="`sink_logits` must be a torch tensor, got ndarray"):
        attention(x, x, x, sink_logits=np.zeros(2, np.float32))
    with pytest.raises(OptionError, match="`score_mod` must be an option of `attention`"):
        attention(x, x, x, score_mod=abs)
    with pytest.raises(ShapeError, match="`q` must"):
        attention(x.half()[0, 0, 0], x.half(), x.half())
    with pytest.raises(ShapeError, match="`k` must"):
        attention(x, x[..., :4], x)
