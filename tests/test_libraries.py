"""The same call on arrays of other libraries, and PyTorch's attention as an oracle from outside."""

from pathlib import Path

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from problems import Problem, problems

import cqs
from cqs.errors import BackendError
from cqs.events import BytesRead, ResultMerged
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


@pytest.mark.parametrize("kernel", ["auto", "blockwise"])
@given(problem=problems(scales=(1.0, 10.0)))
def test_torch_tensors_are_exact(problem: Problem, kernel: str) -> None:
    torch = pytest.importorskip("torch")
    arrays = [_tensor(torch, x) for x in (problem.q, problem.k, problem.v)]
    out, lse = cqs.attention(*arrays, workers=problem.workers, return_lse=True, kernel=kernel, **problem.options)
    assert out.dtype == arrays[0].dtype
    assert_exact(_array(torch, out, problem.q), problem.q, problem.k, problem.v, lse=lse.numpy(), **problem.options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_tensors_in_main_memory_are_computed_by_numpy_where_they_are(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.randn(2, 60, 3, 8, dtype=torch.float64).to(getattr(torch, dtype)).swapaxes(1, 2) for _ in "qkv")
    assert cqs.plan(q, k, v).setting.kernel == "numba"
    out = torch.empty(q.shape, dtype=q.dtype)
    found = cqs.attention(q, k, v, workers=7, bias=torch.zeros(60, 60), sink_logits=torch.zeros(3), out=out)
    assert found is out
    by_torch = cqs.attention(
        q, k, v, workers=7, bias=torch.zeros(60, 60), sink_logits=torch.zeros(3), kernel="blockwise"
    )
    torch.testing.assert_close(out, by_torch)


@pytest.mark.parametrize("kind", ["npy", "zarr"])
def test_outputs_on_disk_are_no_tensors(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if kind == "zarr":
        pytest.importorskip("zarr")
    q, k, v = torch.randn(3, 2, 100, 16).unbind(0)
    out, lse = cqs.attention(q, k, v, out=tmp_path / f"out.{kind}", return_lse=True)
    assert not torch.is_tensor(out)  # a tensor over a map that is only read would crash when it is written to
    assert torch.is_tensor(lse)
    torch.testing.assert_close(torch.from_numpy(np.array(out[:])), cqs.attention(q, k, v))


def test_tensors_that_only_torch_can_read_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(1, 30, 8)
    for odd in (x.to(torch.float8_e4m3fn), x.to_sparse(), torch._neg_view(x)):
        with pytest.raises(BackendError, match=r"`k` must be an array whose numbers can be read, got .*; convert"):
            cqs.attention(x, odd, x)


def test_functions_of_scores_are_given_tensors() -> None:
    torch = pytest.importorskip("torch")
    q, k, v = (torch.randn(1, 40, 8) for _ in "qkv")
    seen = []

    def score_mod(score, b, h, q_idx, k_idx):
        seen.append(torch.is_tensor(score))
        return torch.tanh(score)

    assert torch.is_tensor(cqs.attention(q, k, v, score_mod=score_mod))
    assert cqs.plan(q, k, v, score_mod=score_mod).setting.kernel == "blockwise"
    assert seen
    assert all(seen)


@pytest.mark.parametrize("library", ["numpy", "torch", "array_api_strict"])
def test_what_happens_is_told_for_every_library(library: str) -> None:
    xp = pytest.importorskip(library)
    x = xp.ones((2, 40, 8))
    told = []
    cqs.attention(x, x, x, workers=7, kernel="blockwise", on_event=told.append)
    assert sum(event.n_bytes for event in told if isinstance(event, ResultMerged)) > 0
    assert sum(event.n_bytes for event in told if isinstance(event, BytesRead)) > 0


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


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_sums_of_other_libraries_are_not_spilled(library: str) -> None:
    xp = pytest.importorskip(library)
    arrays = [np.random.default_rng(n).standard_normal((1, 1845, 64)).astype(np.float32) for n in range(3)]
    given = [xp.asarray(x) for x in arrays]
    if library == "torch":
        given = [x.to(xp.float16) for x in given]
        arrays = [x.numpy() for x in given]
    for memory in range(3_000_000, 9_000_000, 1_500_000):
        try:
            out = cqs.attention(*given, memory=memory, is_causal=True, workers=3, kernel="blockwise")
        except cqs.errors.BudgetError:
            continue
        assert_exact(np.asarray(out), *arrays, is_causal=True)
