"""What is done to scores: soft caps, biases, functions and sinks are exact, alone and together, under every mask."""

from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import ON_NUMPY, Problem, fitted, problems
from test_masks import masks

import cqs
from cqs.errors import BackendError, CQSError, DTypeError, OptionError, ShapeError
from cqs.masks import Causal, Dense, KeyLengths, Predicate
from cqs.scores import ALiBi
from cqs.testing import assert_exact


def example(shape: tuple[int, ...] = (4, 90, 8), dtype: Any = np.float32, n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(n)]


def nearer(scores: Any, b: int, h: int, q_idx: Any, k_idx: Any) -> Any:
    """A function that uses everything it is given, on arrays of any library."""
    return scores * (1 + h % 2) - (b + 1) * 0.01 * ((q_idx - k_idx) * (q_idx - k_idx) % 7)


@st.composite
def options(draw: st.DrawFn, problem: Problem) -> dict[str, Any]:
    """Any of the options, in the inputs' type."""
    q, k = problem.q, problem.k
    *batch, H, T, _ = q.shape
    S = k.shape[-2]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    drawn: dict[str, Any] = {}
    if draw(st.booleans()):
        drawn["softcap"] = draw(st.sampled_from([0.5, 5.0, 50.0]))
    kind = draw(st.sampled_from(["none", "array", "alibi"]))
    if kind == "array":
        shape = draw(st.sampled_from([(T, S), (1, S), (H, T, S), (H, T, 1), (*batch, 1, T, S), (*batch, H, T, S)]))
        drawn["bias"] = rng.standard_normal(shape).astype(q.dtype)
    elif kind == "alibi":
        drawn["bias"] = ALiBi(tuple(rng.random(H).tolist()), draw(st.integers(-3, 3)))
    if draw(st.booleans()):
        drawn["score_mod"] = nearer
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(H,), (1,), (*batch, H)]))
        drawn["sink_logits"] = rng.standard_normal(shape).astype(q.dtype)
    return drawn


@given(problem=problems(scales=(1.0,)), mask=masks, kernel=st.sampled_from(ON_NUMPY), data=st.data())
def test_every_option_is_exact_in_every_kernel_under_every_mask(
    problem: Problem, mask: Any, kernel: str, data: st.DataObject
) -> None:
    q, k, v = problem.q, problem.k, problem.v
    chosen = data.draw(options(problem)) | {"mask": fitted(mask, q.shape[-2], k.shape[-2]), "scale": problem.scale}
    workers = min(problem.workers, 9)
    out, lse = cqs.attention(q, k, v, workers=workers, kernel=kernel, return_lse=True, **chosen)
    assert_exact(out, q, k, v, lse=lse, **chosen)


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
def test_options_work_on_other_libraries(library: str) -> None:
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    q, k, v, bias = (*example((2, 4, 60, 8)), np.random.default_rng(1).standard_normal((4, 60, 60), np.float32))
    logits = np.array([0.5, -1, 2, 0], np.float32)
    by_head = lambda scores, b, h, q_idx, k_idx: scores * (1 + h % 2 + b)  # noqa: E731
    shared = {"softcap": 3.0, "score_mod": by_head, "is_causal": True}
    arrays = {"bias": bias, "sink_logits": logits}
    moved = {name: xp.asarray(array) for name, array in arrays.items()}
    out = cqs.attention(*map(xp.asarray, (q, k, v)), workers=7, **shared, **moved)
    assert_exact(np.from_dlpack(out), q, k, v, **shared, **arrays)


def test_a_bias_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = example()
    bias = np.random.default_rng(1).standard_normal((4, 90, 90), np.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=torch.from_numpy(bias)
    )
    assert np.allclose(cqs.attention(q, k, v, bias=bias, workers=7), expected.numpy(), atol=1e-5)


def test_options_and_masks_that_differ_between_heads_go_together() -> None:
    q, k, v = example((3, 4, 60, 8))
    dense = np.random.default_rng(1).random((4, 60, 60)) < 0.7
    chosen = {"mask": (KeyLengths([60, 7, 0]) | Dense(dense)) & Causal(), "bias": ALiBi.standard(4), "softcap": 2.0}
    assert_exact(cqs.attention(q, k, v, workers=7, **chosen), q, k, v, **chosen)


def test_the_order_is_scale_softcap_bias_function_mask() -> None:
    q, k, v = example((1, 5, 2))
    bias, scale = np.arange(25, dtype=np.float32).reshape(5, 5), 3.0
    scores = 2 * np.tanh(scale * q @ k.swapaxes(-1, -2) / 2) + bias
    scores = np.where(np.tri(5, dtype=bool), scores * scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = cqs.attention(
        q, k, v, scale=scale, softcap=2.0, bias=bias, score_mod=lambda s, b, h, i, j: s * s, is_causal=True
    )
    assert np.allclose(out, weights / weights.sum(-1, keepdims=True) @ v, atol=1e-5)


def test_softcap_leaves_what_is_masked_masked() -> None:
    q, k, v = example()
    v[:, 50:] = np.nan
    out = cqs.attention(q, k, v, softcap=1.0, is_causal=True, workers=7)
    assert np.isfinite(out[:, :50]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_a_sink_alone_takes_all_where_nothing_is_seen(dtype: Any, kernel: str) -> None:
    q, k, v = example(dtype=dtype)
    logits = np.array([1, -2, 0, 30], dtype)
    options = {"mask": Causal(-40), "sink_logits": logits, "kernel": kernel, "return_lse": True}
    out, lse = cqs.attention(q, k, v, workers=7, **options)
    assert not out[:, :40].any()
    assert np.allclose(lse[:, :40], logits[:, None].astype(float))


def test_the_standard_slopes_are_those_of_the_paper() -> None:
    assert ALiBi.standard(8).slopes == tuple(2.0**-i for i in range(1, 9))
    assert len(ALiBi.standard(12).slopes) == 12
    assert ALiBi.standard(12).slopes[8:] == tuple(2.0**-x for x in (0.5, 1.5, 2.5, 3.5))


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"softcap": 0}, OptionError, "`softcap` must be a finite number greater than 0, got 0;"),
        ({"softcap": "5"}, OptionError, "`softcap` must be a finite number greater than 0, got '5';"),
        ({"softcap": float("inf")}, OptionError, "`softcap` must be a finite"),
        ({"bias": "b.npy"}, OptionError, r"`bias` must be an array .*, got 'b.npy'; give `np.load\(path"),
        ({"bias": 3.0}, OptionError, "`bias` must be an array or a `cqs.scores.ALiBi`, got 3.0;"),
        ({"bias": np.ones((90, 90), bool)}, DTypeError, "`bias` must be numbers to add, got bool; .* `mask`"),
        ({"bias": np.ones((90, 90), int)}, DTypeError, "`bias` must have one of the types .*, got int64"),
        ({"bias": np.ones((3, 90, 90))}, ShapeError, "`bias` must have a shape .* broadcasts to .* got shape"),
        ({"bias": np.ones(90)}, ShapeError, "`bias` must have a shape of at least"),
        ({"bias": array_api_strict.ones((90, 90))}, BackendError, "`bias`"),
        ({"bias": ALiBi((1.0, 2.0))}, ShapeError, "`bias` must have a slope for each of the 4 heads, got 2;"),
        ({"score_mod": 3}, OptionError, "`score_mod` must be a function of .*, got 3;"),
        ({"score_mod": lambda s, b, h, i, j: i}, ShapeError, "`score_mod` must return scores of the shape"),
        (
            {"score_mod": lambda s, q_idx, k_idx: s},
            OptionError,
            r"`score_mod` must take \(score, b, h, q_idx, k_idx\), got <lambda>\(s, q_idx, k_idx\); as in",
        ),
        (
            {"score_mod": lambda s, b, h, i, j: s if i > j else 2 * s},
            OptionError,
            r"`score_mod` must be a function of \(score, b, h, q_idx, k_idx\), got ValueError: .*; .* use &, |, ~ and",
        ),
        ({"sink_logits": 1.0}, OptionError, "`sink_logits` must be an array"),
        ({"sink_logits": np.ones(3)}, ShapeError, r"`sink_logits` must broadcast to .* = \(4,\), got shape \(3,\)"),
        ({"sink_logits": np.ones(4, int)}, DTypeError, "`sink_logits` must have one of the types"),
    ],
    ids=range(18),
)
def test_options_that_make_no_sense_are_refused(chosen: dict[str, Any], error: type[CQSError], message: str) -> None:
    with pytest.raises(error, match=message):
        cqs.attention(*example(), workers=3, **chosen)


@pytest.mark.parametrize("offset", [True, 1.5, "3", 1 << 61])
def test_offsets_that_are_no_whole_numbers_are_refused(offset: Any) -> None:
    with pytest.raises(OptionError, match=r"`offset` must be a whole number up to 2\^60, got"):
        ALiBi((1.0,), offset)


@pytest.mark.parametrize("kernel", ON_NUMPY)
def test_an_offset_may_be_of_any_integer_type(kernel: str) -> None:
    q, k, v = example((2, 600, 8))
    for offset in (np.uint8(3), np.int8(-3), np.uint32(5)):
        bias = ALiBi.standard(2).slopes
        found = cqs.attention(q, k, v, bias=ALiBi(bias, offset), kernel=kernel, workers=7)
        assert np.array_equal(found, cqs.attention(q, k, v, bias=ALiBi(bias, int(offset)), kernel=kernel, workers=7))


def test_slopes_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(OptionError, match="`slopes` must be numbers, one for each head, got"):
        ALiBi(("a", "b"))
    with pytest.raises(OptionError, match="`slopes` must be finite, got"):
        ALiBi((1.0, float("nan")))


def test_changes_that_differ_between_heads_where_tasks_have_some_of_them() -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((8, 1500, 16), dtype=np.float32) for i in range(3))
    mask = Predicate(lambda b, h, q_idx, k_idx: k_idx <= q_idx - 3 * h)
    chosen: dict[str, Any] = {"bias": ALiBi.standard(8), "score_mod": lambda s, b, h, i, j: s * (1 + h)}
    plan = cqs.plan(q, k, v, memory="6 MiB", mask=mask, **chosen)
    assert plan.grain.kv_heads is not None
    assert plan.grain.kv_heads < 8
    assert_exact(cqs.attention(q, k, v, memory="6 MiB", mask=mask, **chosen), q, k, v, mask=mask, **chosen)
