"""The rule by which a result counts as exact: its oracle agrees with sums by hand, and what is wrong is caught."""

import math

import array_api_strict
import numpy as np
import pytest
from problems import DTYPES

import cqs
from cqs.errors import BackendError, OptionError, ShapeError
from cqs.masks import Causal, Mask, NoMask
from cqs.oracle import EVALUATIONS, Rows, judge_out
from cqs.testing import assert_exact, reference_attention
from cqs.verify import verify_rows


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Attention of grouped heads number by number, with sums that round once."""
    H, T, _ = q.shape
    G, S, E = v.shape
    out, lse = np.zeros((H, T, E)), np.full((H, T), -math.inf)
    for h, t in np.ndindex(H, T):
        g = h * G // H
        seen = [s for s in range(S) if mask.count(range(t, t + 1), range(s, s + 1))]
        scores = [scale * math.fsum(map(float.__mul__, q[h, t].tolist(), k[g, s].tolist())) for s in seen]
        weights = [math.exp(score) for score in scores]
        if seen:
            lse[h, t] = math.log(math.fsum(weights))
            sums = [math.fsum(w * float(v[g, s, e]) for w, s in zip(weights, seen, strict=True)) for e in range(E)]
            out[h, t] = np.array(sums) / math.fsum(weights)
    return out, lse


def arrays(dtype: str = "float64", T: int = 9) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(4)
    shapes = (4, T, 5), (2, 13, 5), (2, 13, 3)
    return tuple(rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes)


@pytest.mark.parametrize("mask", [NoMask(), Causal(), Causal(-3), Causal(4)], ids=str)
@pytest.mark.parametrize("area", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_oracle_agrees_with_sums_by_hand(
    dtype: str, area: int, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cqs.oracle._AREA", area)  # in blocks of few keys, or in one
    q, k, v = arrays(dtype)
    out, lse = reference_attention(q, k, v, scale=0.4, mask=mask)
    expected_out, expected_lse = by_hand(q.astype(float), k.astype(float), v.astype(float), 0.4, mask)
    assert out.dtype == lse.dtype == np.float64
    np.testing.assert_allclose(out, expected_out, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("dtype", "better"), [("float32", np.float64), ("float64", np.longdouble)])
def test_the_oracle_is_more_precise_than_what_it_judges(dtype: str, better: type) -> None:
    q, k, v = (x[0] for x in arrays(dtype))
    rows = Rows(q, k, v, np.arange(len(q)), 0.4, NoMask())
    out, lse, _ = rows.exact()
    assert out.dtype == lse.dtype == better
    plain = rows.plain()
    assert len(plain) == EVALUATIONS
    assert len({formula.tobytes() for formula, _ in plain}) == EVALUATIONS
    for formula, of_lse in plain:
        assert formula.dtype == of_lse.dtype == dtype
        np.testing.assert_allclose(formula, out.astype(float), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["out", "lse"])
def test_an_error_is_accepted_up_to_a_few_ulp_and_no_further(name: str, dtype: str) -> None:
    q, k, v = arrays(dtype)
    exact = dict(zip(("out", "lse"), reference_attention(q, k, v, scale=0.4), strict=True))
    types = {"out": DTYPES[dtype], "lse": np.dtype(np.float64 if dtype == "float64" else np.float32)}
    eps = 2.0**-7 if types[name].name == "bfloat16" else float(np.finfo(types[name]).eps)
    is_rounded = types[name].itemsize == 2  # from sums of float32: then it is off by less than a unit
    for ulps, is_exact in ((0.5 if is_rounded else 4, True), (100, False)):
        given = {n: x.astype(types[n]) for n, x in exact.items()}
        wrong = exact[name].copy()
        wrong[2, 7] += ulps * eps * max(abs(wrong).max(), 1)
        given[name] = wrong.astype(types[name])
        if is_exact:
            assert_exact(q=q, k=k, v=v, scale=0.4, **given)
            continue
        with pytest.raises(AssertionError, match=rf"^{name} is off by .* at \(2, 7.*\), where at most .* is allowed"):
            assert_exact(q=q, k=k, v=v, scale=0.4, **given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_small_numbers_are_held_to_their_own_size(dtype: str) -> None:
    rng = np.random.default_rng(4)
    N = 700 if dtype == "float64" else 2000  # long doubles are slow
    q, k, v = (rng.standard_normal((2, N, 16)).astype(DTYPES[dtype]) for _ in range(3))
    out = cqs.attention(q, k, v, is_causal=True)  # the last rows are means of many values
    assert_exact(out, q, k, v, is_causal=True)
    out[:, N // 2 :] = 0
    with pytest.raises(AssertionError, match=r"out is off by .* where at most .* is allowed"):
        assert_exact(out, q, k, v, is_causal=True)
    assert not verify_rows(out, q, k, v, is_causal=True).passed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heads_of_small_values_are_held_to_their_own_size(dtype: str) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((2, 200, 16)).astype(dtype) for i in range(3))
    v[0] *= 1e12 if dtype == "float64" else 1e6
    out = cqs.attention(q, k, v, workers=3)
    assert_exact(out, q, k, v)
    out[1] *= 1.001
    with pytest.raises(
        AssertionError, match=r"out is off by 0\.00.* of the magnitudes that it is made of at \(1, .*\), where"
    ):
        assert_exact(out, q, k, v)
    found = verify_rows(out, q, k, v)
    assert (found.absolute.is_within, found.relative.is_within, found.passed) == (True, False, False)


@pytest.mark.parametrize("is_causal", [False, True])
def test_infinities_and_nan_are_expected_where_float64_has_them_and_nowhere_else(is_causal: bool) -> None:
    q, k, v = arrays(T=13)
    out, _ = reference_attention(q, k, v, scale=0.4, mask=Causal() if is_causal else None)
    out[1, 3, 2] = np.nan
    with pytest.raises(AssertionError, match="out must be finite wherever the plain formula is"):
        assert_exact(out, q, k, v, scale=0.4, is_causal=is_causal)
    v[0, 0, 2] = np.inf
    out, _ = reference_attention(q, k, v, scale=0.4, mask=Causal() if is_causal else None)
    assert np.isposinf(out[:2, :, 2]).all()
    assert_exact(out, q, k, v, scale=0.4, is_causal=is_causal)
    out[1, 3, 2] = 1e300
    with pytest.raises(AssertionError, match=r"out must be \[inf inf inf\]"):
        assert_exact(out, q, k, v, scale=0.4, is_causal=is_causal)


@pytest.mark.parametrize("library", ["array_api_strict", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_any_library_are_judged(library: str, dtype: str) -> None:
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    if not hasattr(xp, dtype):
        pytest.skip(f"{library} has no {dtype}")
    rng = np.random.default_rng(3)
    q, k, v, bias, logits = (
        xp.asarray(rng.standard_normal(shape)).to(getattr(xp, dtype))
        if library == "torch"
        else xp.asarray(rng.standard_normal(shape), dtype=getattr(xp, dtype))
        for shape in ((2, 40, 8), (2, 40, 8), (2, 40, 8), (40, 40), (2,))
    )
    chosen = {"bias": bias, "sink_logits": logits, "is_causal": True}
    out, lse = cqs.attention(q, k, v, workers=3, return_lse=True, **chosen)
    assert_exact(out, q, k, v, lse=lse, **chosen)
    assert verify_rows(out, q, k, v, **chosen).passed
    with pytest.raises(AssertionError, match="out is off by"):
        assert_exact(out + 0.5, q, k, v, **chosen)
    assert not verify_rows(out + 0.5, q, k, v, **chosen).passed


@pytest.mark.parametrize(
    ("dtype", "sums", "absolute", "relative"),
    [
        ("float32", "float32", 2 * 0.25 + 8 * 4 * 2.0**-23, 2 * 0.0625 + 8 * 2.0**-23),
        ("float16", "float32", 2 * 0.25 + 8 * 4 * 2.0**-10, 2 * 0.0625 + 8 * 2.0**-23 + 2.0**-10),
        ("float64", "float64", 2 * 0.25 + 8 * 4 * 2.0**-52, 2 * 0.0625 + 8 * 2.0**-52),
    ],
)
def test_the_bounds_are_those_of_the_rule(dtype: str, sums: str, absolute: float, relative: float) -> None:
    exact, magnitudes = np.array([4.0, 1.0]), np.array([4.0, 4.0])
    plain = [exact.astype(sums), np.array([4.0, 1.25], sums)]  # off by 1/4, and 1/16 of the magnitudes
    for error, passes in ((0.99, True), (1.01, False)):
        wrong = np.array([4.0, 1.0 + error * absolute]).astype(dtype)
        found = judge_out(wrong, exact, plain, magnitudes)
        assert (found.absolute.bound, found.relative.bound) == (absolute, relative)
        assert found.absolute.is_within is passes


def test_what_numpy_cannot_read_is_refused() -> None:
    torch = pytest.importorskip("torch")
    x = np.zeros((1, 4, 2), np.float32)
    nowhere = torch.empty(1, 4, 2, device="meta")
    for check in (assert_exact, verify_rows):
        with pytest.raises(BackendError, match=r"`v` must be an array that NumPy can read, .*; move it .* `x.cpu\(\)`"):
            check(x, x, x, nowhere)
        with pytest.raises(BackendError, match=r"`out` must be an array of a library .*, got list; convert it"):
            check(x.tolist(), x, x, x)


def test_shapes_and_options_are_checked() -> None:
    q, k, v = arrays()
    out, lse = reference_attention(q, k, v, scale=0.4)
    with pytest.raises(AssertionError, match=r"out must have shape \(4, 9, 3\), got \(4, 9, 2\)"):
        assert_exact(out[..., :2], q, k, v)
    with pytest.raises(AssertionError, match=r"lse must have shape \(4, 9\), got \(4, 8\)"):
        assert_exact(out, q, k, v, scale=0.4, lse=lse[:, :8])
    with pytest.raises(OptionError, match="`mask` must be left out when `is_causal=True`"):
        assert_exact(out, q, k, v, mask=Causal(), is_causal=True)
    with pytest.raises(ShapeError, match="`k` must have the width of `q`"):
        assert_exact(out, q, k[..., :4], v)


def test_empty_sequences_are_judged_too() -> None:
    q, k = np.zeros((2, 0, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    assert_exact(q, q, k, k, lse=np.zeros((2, 0), np.float32))
    assert_exact(np.zeros_like(k), k, q, q, lse=np.full((2, 3), -np.inf, np.float32))
