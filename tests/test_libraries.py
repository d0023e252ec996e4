"""The same call on arrays of other libraries, and PyTorch's attention as an oracle from outside."""

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from problems import Problem, problems

import cqs
from cqs.testing import assert_exact


@given(problem=problems(dtypes=("float32", "float64")))
def test_array_api_strict_is_exact(problem: Problem) -> None:
    arrays = [array_api_strict.asarray(x) for x in (problem.q, problem.k, problem.v)]
    out, lse = cqs.attention(*arrays, workers=problem.workers, return_lse=True, **problem.options)
    assert type(out) is type(arrays[0])
    numbers = np.from_dlpack(out), np.from_dlpack(lse)
    assert_exact(numbers[0], problem.q, problem.k, problem.v, lse=numbers[1], **problem.options)


@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1", "device2"])
def test_results_stay_on_the_device(device: str) -> None:
    place = array_api_strict.Device(device)
    rng = np.random.default_rng(0)
    q, k, v = (array_api_strict.asarray(rng.standard_normal((2, 40, 8)), device=place) for _ in range(3))
    for strategy in ("cqs", "tiles"):
        out, lse = cqs.attention(q, k, v, workers=7, is_causal=True, strategy=strategy, return_lse=True)
        assert out.device == lse.device == place


@given(problem=problems(scales=(1.0, 10.0)))
def test_torch_tensors_are_exact(problem: Problem) -> None:
    torch = pytest.importorskip("torch")
    arrays = [_tensor(torch, x) for x in (problem.q, problem.k, problem.v)]
    out, lse = cqs.attention(*arrays, workers=problem.workers, return_lse=True, **problem.options)
    assert out.dtype == arrays[0].dtype
    assert_exact(_array(torch, out, problem.q), problem.q, problem.k, problem.v, lse=lse.numpy(), **problem.options)


@given(problem=problems(dtypes=("float32", "float64"), scales=(1.0, 10.0), value_magnitudes=(1.0,)))
def test_torch_attention_agrees(problem: Problem) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x) for x in (problem.q, problem.k, problem.v))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **problem.options)
    ours = cqs.attention(problem.q, problem.k, problem.v, workers=problem.workers, **problem.options)
    scale = 1e-4 if problem.q.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=scale * max(1.0, float(abs(problem.v).max())))


def test_torch_and_cqs_agree_on_nan_and_infinity() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, 20, 4), dtype=np.float32) for _ in range(3))
    q[0, 0, 3, 1], k[0, 0, 8, 0], v[0, 0, 15, 2] = np.nan, np.nan, np.inf
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x) for x in (q, k, v)), is_causal=True
    ).numpy()
    ours = cqs.attention(q, k, v, workers=7, is_causal=True)
    np.testing.assert_array_equal(np.isnan(ours[0, 0, :, 0]), np.isnan(theirs[0, 0, :, 0]))


def test_torch_without_a_visible_key_gives_zero_too() -> None:
    torch = pytest.importorskip("torch")
    q = torch.ones(1, 1, 3, 4)
    k = torch.ones(1, 1, 0, 4)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert (theirs == 0).all()
    assert (cqs.attention(q, k, k) == 0).all()


def _tensor(torch, x: np.ndarray):
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x)


def _array(torch, x, like: np.ndarray) -> np.ndarray:
    return x.view(torch.int16).numpy().view(like.dtype) if like.dtype.name == "bfloat16" else x.numpy()
