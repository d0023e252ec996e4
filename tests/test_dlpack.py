"""torch tensors on a CUDA device go in and out as they are: by DLPack, here between a fake torch and a fake CuPy."""

import sys
from types import ModuleType
from typing import Any

import cuda_emulation  # noqa: F401  # what the library's CUDA kernels do, for the fake
import numpy as np
import pytest
from fake_cupy import Machine, cupy, fake_gpu  # noqa: F401
from problems import DTYPES

import cqs
from cqs.backend import borrowed, import_cupy
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError
from cqs.testing import assert_exact

torch = pytest.importorskip("torch")
fake_cuda_tensor = pytest.importorskip("fake_cuda_tensor")


@pytest.fixture
def taken(fake_gpu: Machine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:  # noqa: F811
    """What torch has taken from CuPy."""
    found: list[Any] = fake_cuda_tensor.install(monkeypatch)
    return found


def on_device(cupy: Any, array: np.ndarray, device: int = 1) -> Any:  # noqa: F811
    with cupy.cuda.Device(device):
        return fake_cuda_tensor.tensor_over(cupy.asarray(array))


def arrays(dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = (4, 90, 16), (2, 90, 16), (2, 90, 8)
    return [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]


def on_host(tensor: Any) -> np.ndarray:
    return tensor.owner.get().view(DTYPES[str(tensor.dtype).removeprefix("torch.")])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_tensor_and_an_array_are_the_same_memory(cupy: ModuleType, taken: list[Any], dtype: str) -> None:  # noqa: F811
    tensor = on_device(cupy, arrays(dtype)[0])
    for view in (tensor, tensor[1:, ::3], tensor.mT, tensor[:0]):
        (array, _), hand_out = borrowed(by_cupy=True, by_numpy=False, q=view, out=None)
        assert (array.shape, array.dtype, array.device.id) == (tuple(view.shape), DTYPES[dtype], 1)
        with array.device:
            back = hand_out(array)
        assert (back.dtype, back.shape) == (view.dtype, view.shape)
        if view.numel():
            assert back.stride() == view.stride()
            assert array.data.ptr == view.data_ptr() == back.data_ptr()


def test_the_array_keeps_the_memory_of_the_tensor(cupy: ModuleType, taken: list[Any]) -> None:  # noqa: F811
    wanted = arrays()[0]
    (array, _), _ = borrowed(by_cupy=True, by_numpy=False, q=on_device(cupy, wanted)[2:], out=None)
    np.testing.assert_array_equal(array.get(), wanted[2:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_attention_takes_and_gives_tensors_without_a_copy(
    cupy: ModuleType,  # noqa: F811
    fake_gpu: Machine,  # noqa: F811
    taken: list[Any],
    dtype: str,
) -> None:
    given = arrays(dtype)
    q, k, v = (on_device(cupy, x) for x in given)
    before = fake_gpu.peak_bytes(1)
    tensors = cqs.attention(q, k, v, workers=7, is_causal=True, return_lse=True, backend="cupy")
    assert all(tensor.is_cuda and tensor.device.index == 1 for tensor in tensors)
    out, lse = tensors
    assert out.dtype == q.dtype
    assert [tuple(x.shape) for x in taken] == [tuple(out.shape), tuple(lse.shape)]
    assert [x.data.ptr for x in taken] == [out.data_ptr(), lse.data_ptr()]
    assert_exact(on_host(out), *given, is_causal=True, lse=lse.owner.get())
    assert fake_gpu.peak_bytes(0) == 0
    assert before > 0


def test_attention_with_all_that_may_be_a_tensor(cupy: ModuleType, taken: list[Any]) -> None:  # noqa: F811
    given, rng = arrays(), np.random.default_rng(1)
    bias, sinks = rng.standard_normal((4, 90, 90), dtype=np.float32), rng.standard_normal(4, dtype=np.float32)
    q, k, v, bias_there, sinks_there = (on_device(cupy, x) for x in (*given, bias, sinks))
    into = on_device(cupy, np.zeros((4, 90, 8), np.float32))
    out = cqs.attention(q, k, v, bias=bias_there, sink_logits=sinks_there, out=into, backend="cupy")
    assert out is into
    assert_exact(on_host(out), *given, bias=bias, sink_logits=sinks)


def test_out_is_given_back_as_it_is_beside_a_new_lse(cupy: ModuleType, taken: list[Any]) -> None:  # noqa: F811
    given = arrays("bfloat16")
    into = on_device(cupy, np.zeros((4, 90, 8), DTYPES["bfloat16"]))
    out, lse = cqs.attention(*(on_device(cupy, x) for x in given), out=into, return_lse=True, backend="cupy", workers=7)
    assert out is into
    assert [tuple(x.shape) for x in taken] == [(4, 90, 8), (4, 90)]  # the first so that torch waits for it
    assert lse.is_cuda
    assert_exact(on_host(out), *given, lse=lse.owner.get())


@pytest.mark.parametrize("backend", ["cupy", None])
def test_an_output_over_an_input_is_refused(
    cupy: ModuleType,  # noqa: F811
    taken: list[Any],
    backend: Any,
) -> None:
    both = on_device(cupy, np.random.default_rng(0).standard_normal((3, 2, 90, 8), dtype=np.float32))
    q, k, v = both[0], both[1], both[2]
    for out in (k, v, both.view(-1)[q.numel() - 8 : 2 * q.numel() - 8].view(2, 90, 8)):
        with pytest.raises(OptionError, match=r"`out` must share no memory with `[qkv]`, which is still read"):
            cqs.attention(q, k, v, out=out, backend=backend)


def test_a_budget_is_of_the_tensors_device(cupy: ModuleType, fake_gpu: Machine, taken: list[Any]) -> None:  # noqa: F811
    given = arrays()
    q, k, v = (on_device(cupy, x) for x in given)
    fake_gpu.reset_peaks()
    before = fake_gpu.peak_bytes(1)
    options: dict[str, Any] = {"memory": "4 MiB", "backend": "cupy"}
    out = cqs.attention(q, k, v, **options)
    assert_exact(on_host(out), *given)
    assert fake_gpu.peak_bytes(1) - before <= cqs.plan(q, k, v, **options).projected_bytes


@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "sink_logits", "out"])
def test_gradients_are_refused(cupy: ModuleType, taken: list[Any], name: str) -> None:  # noqa: F811
    tensors = dict(zip("qkv", (on_device(cupy, x) for x in arrays()), strict=True))
    tensors |= {"bias": on_device(cupy, np.zeros((90, 90), np.float32))}
    tensors |= {"sink_logits": on_device(cupy, np.zeros(4, np.float32))}
    tensors |= {"out": on_device(cupy, np.zeros((4, 90, 8), np.float32))}
    tensors[name].requires_grad_()
    with pytest.raises(BackendError, match=rf"`{name}` must not require gradients.*give `{name}.detach\(\)`"):
        cqs.attention(**tensors, backend="cupy")


def test_tensors_on_several_devices_are_refused(cupy: ModuleType, taken: list[Any]) -> None:  # noqa: F811
    q, k, v = arrays()
    here, there, on_cpu = on_device(cupy, q), on_device(cupy, v, device=0), torch.from_numpy(v)
    for other, place in ((there, "cuda:0"), (on_cpu, "cpu")):
        with pytest.raises(BackendError, match=rf"`v` must be on the device of `q`, cuda:1, got {place}; move one"):
            cqs.attention(here, on_device(cupy, k), other, backend="cupy")
    with pytest.raises(BackendError, match="`k` must be on the device of `q`, cpu, got cuda:1"):
        cqs.attention(torch.from_numpy(q), on_device(cupy, k), on_device(cupy, v), backend="cupy")
    with pytest.raises(BackendError, match="`k` must be of the same library as `q`, torch"):
        cqs.attention(here, k, v, backend="cupy")
    sinks = on_device(cupy, np.zeros(4, np.float32), device=0)
    with pytest.raises(BackendError, match="`sink_logits` must be on the device of `q`"):
        cqs.attention(here, on_device(cupy, k), on_device(cupy, v), sink_logits=sinks, backend="cupy")


def test_what_is_wrong_with_tensors_is_said_as_of_arrays(cupy: ModuleType, taken: list[Any]) -> None:  # noqa: F811
    q, k, v = (on_device(cupy, x) for x in arrays())
    with pytest.raises(ShapeError, match="`v` must"):
        cqs.attention(q, k, v[:, 1:], backend="cupy")
    with pytest.raises(DTypeError, match="`q` must"):
        cqs.attention(on_device(cupy, np.zeros((4, 90, 16), int)), k, v, backend="cupy")
    with pytest.raises(BackendError, match="`backend` must fit the inputs, arrays of torch"):
        cqs.attention(q, k, v, backend="numpy")


def test_without_cupy_the_remedy_is_named(
    cupy: ModuleType,  # noqa: F811
    taken: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoCupy:
        @staticmethod
        def find_spec(name: str, *args: Any) -> None:
            if name == "cupy":
                raise ModuleNotFoundError("No module named 'cupy'", name="cupy")

    q, k, v = (on_device(cupy, x) for x in arrays())
    import_cupy.cache_clear()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "cupy")
        patch.setattr(sys, "meta_path", [NoCupy, *sys.meta_path])
        with pytest.raises(BackendError, match=r"`backend` must have CuPy.*pip install 'cqs-attention\[cuda13\]'"):
            cqs.attention(q, k, v, backend="cupy")
    import_cupy.cache_clear()


def test_tensors_on_the_cpu_are_refused_with_a_remedy(taken: list[Any]) -> None:
    q, k, v = map(torch.from_numpy, arrays())
    with pytest.raises(BackendError, match=r"`backend` must fit the inputs, arrays of torch.*a CUDA device"):
        cqs.attention(q, k, v, backend="cupy")
