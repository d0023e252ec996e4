"""The fake CuPy catches what a GPU would let pass, and computes what a GPU would."""

import gc
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import array_api_compat
import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from fake_cupy import Machine, RaceError

from cqs.backend import cuda_devices, import_cupy, is_cupy, may_overlap, namespace_of

cupy, fake_gpu = fake_cupy.cupy, fake_cupy.fake_gpu


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose copies wait until they must run."""
    return fake_cupy.install(monkeypatch)


def pinned(cupy: ModuleType, values: np.ndarray) -> np.ndarray:
    memory = cupy.cuda.alloc_pinned_memory(values.nbytes)
    array = np.frombuffer(memory, values.dtype, values.size).reshape(values.shape)
    array[...] = values
    return array


def streams(cupy: ModuleType, n: int = 2) -> list:
    return [cupy.cuda.Stream(non_blocking=True) for _ in range(n)]


def buffer(cupy: ModuleType, shape: tuple[int, ...]) -> object:
    """A buffer that every stream may use."""
    array = cupy.zeros(shape, np.float32)
    cupy.cuda.Stream.null.synchronize()
    return array


# ---------------------------------------------------------------------------------------- installation
def test_it_is_found_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name for name in sys.modules if "cupy" in name and "fake" not in name}
    with monkeypatch.context() as patch:
        fake_cupy.install(patch, n_devices=3)
        cupy = import_cupy()
        assert (cuda_devices(), cupy.__version__) == (3, "14.2.0")
        x = cupy.ones(3)
        assert is_cupy(namespace_of(x=x))
        assert array_api_compat.is_cupy_array(x)
        assert not array_api_compat.is_numpy_array(x)
        assert array_api_compat.is_writeable_array(x)
        assert array_api_compat.device(x) == cupy.cuda.Device(0)
    assert {name for name in sys.modules if "cupy" in name and "fake" not in name} == before
    assert not hasattr(array_api_compat, "cupy") or before
    if not before:
        assert not array_api_compat.is_cupy_array(x)


def test_the_namespace_computes(cupy: ModuleType) -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    a = cupy.asarray(x)
    xp = array_api_compat.array_namespace(a)
    for got, expected in [
        (xp.matmul(a, xp.matrix_transpose(a)), x @ x.swapaxes(1, 2)),
        (a[:, 1, ::2] * 2 - 1, x[:, 1, ::2] * 2 - 1),
        (xp.sum(a, axis=-1, keepdims=True), x.sum(-1, keepdims=True)),
        (xp.max(a), x.max()),
        (xp.where(a > 5, a, -xp.inf), np.where(x > 5, x, -np.inf)),
        (xp.concat([a, a], axis=0), np.concatenate([x, x])),
        (np.float64(3) + a, 3 + x),
        (xp.asarray(a, dtype=xp.float32, copy=True), x.astype(np.float32)),
        (a[a > 20], x[x > 20]),
        (xp.astype(xp.arange(3), xp.float64), np.arange(3.0)),
    ]:
        assert isinstance(got, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(got), expected)
    assert (float(a[0, 0, 1]), bool(a[0, 0, 0]), int(xp.sum(a)), a[1, 2, 3].shape) == (1.0, False, 276, ())


def test_views_share_memory_and_addresses(cupy: ModuleType) -> None:
    a = cupy.zeros((4, 6), np.float32)
    part = a[1:, 2:].T
    part[...] = 5
    assert part.data.ptr == a.data.ptr + 8 * 4
    assert a.sum() == 4 * 3 * 5
    assert part.base is a
    assert cupy.ndarray((6,), np.float32, a.data + 24).data.ptr == a[1].data.ptr
    assert may_overlap(a, a)
    a += 1
    assert float(part[0, 0]) == 6.0
    assert a.__cuda_array_interface__["data"] == (a.data.ptr, False)


def test_bfloat16_is_stored(cupy: ModuleType) -> None:
    x = np.arange(6).astype(ml_dtypes.bfloat16)
    a = cupy.asarray(x)
    assert a.dtype == x.dtype
    np.testing.assert_array_equal(a.astype(np.float32).get(), x.astype(np.float32))
    with pytest.raises(NotImplementedError, match="matmul of bfloat16 in 3 dim"):
        a.reshape(1, 2, 3) @ a.reshape(1, 3, 2)


# ---------------------------------------------------------------------------------------- strictness
@pytest.mark.parametrize(
    "use",
    [
        lambda cupy, x: np.asarray(x),
        lambda cupy, x: x + np.ones(3),
        lambda cupy, x: np.ones(3) * x,
        lambda cupy, x: cupy.exp(np.ones(3)),
        lambda cupy, x: cupy.copyto(x, np.ones(3)),
        lambda cupy, x: cupy.concatenate([x, np.ones(3)]),
        lambda cupy, x: x.__setitem__(slice(2), np.ones(2)),
        lambda cupy, x: x.set([1.0, 2.0, 3.0]),
    ],
)
def test_nothing_goes_to_or_from_numpy_unasked(cupy: ModuleType, use: Callable) -> None:
    with pytest.raises(TypeError):
        use(cupy, cupy.ones(3))


def test_functions_that_cupy_lacks_are_missing(cupy: ModuleType) -> None:
    with pytest.raises(AttributeError):
        cupy.vecdot  # noqa: B018


@pytest.mark.parametrize("use", [lambda cupy, x: x + 1, lambda cupy, x: cupy.asarray(x), lambda cupy, x: x.copy()])
def test_arrays_of_another_device_are_refused(cupy: ModuleType, use: Callable) -> None:
    x = cupy.ones(3)
    with cupy.cuda.Device(1):
        assert cupy.zeros(2).device.id == 1
        with pytest.raises(ValueError, match="resides"):
            use(cupy, x)
        np.testing.assert_array_equal(x.get(), np.ones(3))


def test_devices_are_current_per_thread_and_numbered(cupy: ModuleType, fake_gpu: Machine) -> None:
    seen: list[int] = []
    with cupy.cuda.Device(1):
        thread = threading.Thread(target=lambda: seen.append(cupy.cuda.runtime.getDevice()))
        thread.start()
        thread.join()
        assert (seen, cupy.cuda.Device().id) == ([0], 1)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidDevice"):
        cupy.cuda.Device(2).use()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.Device(1), pytest.raises(RuntimeError, match="does not match"), stream:
        pass
    assert cupy.cuda.runtime.getDeviceProperties(1)["totalGlobalMem"] == fake_gpu.memory
    assert cupy.cuda.Device(0).compute_capability == "90"


# ---------------------------------------------------------------------------------------- memory
def test_memory_is_counted_limited_and_given_back(cupy: ModuleType, fake_gpu: Machine) -> None:
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=4096)
    with cupy.cuda.using_allocator(pool.malloc):
        a, b = cupy.empty(300, np.uint8), cupy.empty(1025, np.uint8)
        assert (pool.used_bytes(), pool.total_bytes(), fake_gpu.peak_bytes(0)) == (512 + 1536, 2048, 2048)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="limit set to: 4,096") as raised:
            cupy.empty(2049, np.uint8)
        assert isinstance(raised.value, MemoryError)
        part = b[512:]
        del b
        assert pool.used_bytes() == 2048
        del part
        assert (pool.used_bytes(), pool.total_bytes()) == (512, 2048)
        c = cupy.empty(1000, np.uint8)
        assert (pool.used_bytes(), pool.total_bytes()) == (1536, 2048)
        del a, c
    pool.free_all_blocks()
    assert (pool.used_bytes(), pool.total_bytes(), fake_gpu.reserved[0]) == (0, 0, 0)
    assert fake_gpu.peak_bytes(0) == 2048
    assert cupy.cuda.runtime.memGetInfo() == (fake_gpu.memory, fake_gpu.memory)


def test_a_device_is_full_at_some_point(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy.install(monkeypatch, memory=10_000)
    cupy = import_cupy()
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(10_001, np.uint8)
    kept = cupy.empty(5000, np.uint8)
    with cupy.cuda.using_allocator(None), pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="MemoryAllocation"):
        cupy.empty(5000, np.uint8)
    assert kept.size == 5000


def test_fresh_and_freed_memory_is_nan(cupy: ModuleType) -> None:
    assert np.isnan(cupy.empty(7, np.float32).get()).all()
    host = pinned(cupy, np.ones(4))
    a = cupy.ones(4)
    raw, address = a._view, a.data.ptr
    del a
    assert np.isnan(raw).all()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="use after free"):
        cupy.cuda.runtime.memcpy(host.ctypes.data, address, 32, cupy.cuda.runtime.memcpyDeviceToHost)


# ---------------------------------------------------------------------------------------- order
def test_a_copy_that_nobody_waits_for_has_not_run(late: Machine) -> None:
    cupy = import_cupy()
    (stream, other), source = streams(cupy), pinned(cupy, np.ones(4, np.float32))
    on_device = buffer(cupy, (4,))
    host = pinned(cupy, np.zeros(4, np.float32))
    on_device.set(source, stream=stream)
    on_device.get(stream=stream, out=host, blocking=False)
    event = stream.record()
    other.synchronize()
    assert not host.any()
    assert not event.done
    event.synchronize()
    assert host.all()


def test_a_copy_reads_its_pinned_source_late(late: Machine) -> None:
    cupy = import_cupy()
    source = pinned(cupy, np.ones(4))
    loaded = cupy.asarray(source)
    source[:] = 2  # CuPy copies from pinned memory itself
    pageable = np.ones(4)
    other = cupy.asarray(pageable)
    pageable[:] = 2
    assert float(loaded[0]) == 2.0
    assert float(other[0]) == 1.0


@pytest.mark.parametrize("chain", [1, 2])
def test_waiting_for_events_orders_streams(cupy: ModuleType, chain: int) -> None:
    lanes, x = streams(cupy, 3), buffer(cupy, (4,))
    x.set(np.ones(4, np.float32), stream=lanes[0])
    for before, after in pairwise(lanes[: chain + 1]):
        after.wait_event(before.record())
    with lanes[chain]:
        y = x + 1
        np.testing.assert_array_equal(y.get(), np.full(4, 2))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda cupy, x, host, a, b: x.get(stream=b, out=host, blocking=False),
        lambda cupy, x, host, a, b: x.set(host, stream=b),
        lambda cupy, x, host, a, b: _within(b, lambda: x + 1),
        lambda cupy, x, host, a, b: _within(b, lambda: x.fill(0)),
        lambda cupy, x, host, a, b: (b.wait_event(cupy.cuda.Event()), _within(b, lambda: x + 1)),
        lambda cupy, x, host, a, b: x + 1,  # the null stream does not wait for non-blocking ones
    ],
)
def test_a_missing_wait_is_a_race(cupy: ModuleType, misuse: Callable) -> None:
    (a, b), x, host = streams(cupy), buffer(cupy, (4,)), pinned(cupy, np.ones(4, np.float32))
    early = a.record()
    x.set(host, stream=a)
    b.wait_event(early)  # recorded before the copy: it helps nothing
    with pytest.raises(RaceError, match=r"race: .* did not wait for it"):
        misuse(cupy, x, host, a, b)
    a.synchronize()


def _within(stream: object, work: Callable) -> object:
    with stream:
        return work()


def test_what_does_not_conflict_is_no_race(cupy: ModuleType) -> None:
    (a, b), x = streams(cupy), buffer(cupy, (4, 6))
    host = [pinned(cupy, np.ones(6, np.float32)) for _ in range(2)]
    x[0].set(host[0], stream=a)
    x[1].set(host[1], stream=b)
    for stream, columns in ((a, slice(0, 3)), (b, slice(3, 6))):
        with stream:
            x[2:, columns] = 4
            x[0 if stream is a else 1].sum()
    for stream in (a, b):
        stream.synchronize()
    results = [_within(stream, lambda: x * 2) for stream in (a, b)]  # both read
    with a, pytest.raises(RaceError):
        results[0] + results[1]
    cupy.cuda.Device().synchronize()
    assert (results[0] == results[1]).all()


def test_blocking_streams_and_the_null_stream_wait_for_each_other(cupy: ModuleType) -> None:
    x, stream = buffer(cupy, (4,)), cupy.cuda.Stream()
    x.set(np.ones(4, np.float32), stream=stream)
    y = x + 1
    assert float(_within(stream, lambda: (y + x)[0])) == 3.0


def test_freeing_what_a_copy_uses_is_a_race(cupy: ModuleType, fake_gpu: Machine) -> None:
    a, _ = streams(cupy)
    x, host = buffer(cupy, (4,)), pinned(cupy, np.ones(4, np.float32))
    x.set(host, stream=a)
    del host
    gc.collect()
    with pytest.raises(RaceError, match="pinned memory is freed while copy"):
        a.synchronize()
    x.get(stream=a, out=(kept := pinned(cupy, np.ones(4, np.float32))), blocking=False)
    del x
    with pytest.raises(RaceError, match="memory of stream null of device 0 is freed"):
        fake_gpu.check()
    a.synchronize()
    assert kept.shape == (4,)


def test_freed_memory_passes_to_the_same_stream_only(cupy: ModuleType) -> None:
    a, b = streams(cupy)
    with a:
        x = cupy.ones(4)
        y = x + 1
        del x
        z = cupy.empty(4)
    with pytest.raises(RaceError, match=r"did not wait"), b:
        z.fill(0)
    b.wait_event(a.record())
    with b:
        y += 1
    a.wait_event(b.record())


def test_a_copy_may_end_after_its_array_if_its_stream_allocated_it(cupy: ModuleType) -> None:
    stream, host = cupy.cuda.Stream(non_blocking=True), pinned(cupy, np.zeros(4))
    with stream:
        (cupy.asarray(np.ones(4)) * 3).get(out=host, blocking=False)
    stream.synchronize()
    np.testing.assert_array_equal(host, np.full(4, 3.0))


# ---------------------------------------------------------------------------------------- kernels
SCALE = """
extern "C" __global__ void scale(const float* __restrict__ x, float* y, float by, long long n) { /* ... */ }
"""


def test_kernels_are_emulated(cupy: ModuleType, fake_gpu: Machine) -> None:
    @fake_cupy.kernel("scale", writes=(1,), launch=True)
    def scale(x: np.ndarray, y: int, by: float, n: int, grid: tuple, block: tuple, shared_mem: int) -> None:
        assert (grid, block, shared_mem) == ((2, 1, 1), (32, 1, 1), 0)
        fake_cupy.view_at(y, (n,), np.float32, writes=True)[:] = x * by

    run = cupy.RawModule(code=SCALE, options=("-std=c++17",)).get_function("scale")
    x, y = cupy.arange(4, dtype=np.float32), cupy.empty(4, np.float32)
    run((2,), (32,), (x, y.data, np.float32(3), 4))
    np.testing.assert_array_equal(y.get(), [0, 3, 6, 9])
    assert fake_gpu.n_launched == {"scale": 1}
    other = cupy.cuda.Stream(non_blocking=True)
    run((2,), (32,), (x, y.data, np.float32(3), 4))
    with pytest.raises(RaceError):
        run((2,), (32,), (x, y.data, np.float32(3), 4), stream=other)
    cupy.cuda.Device().synchronize()
    for args, error in [
        ((x, y, np.float32(3)), TypeError),
        ((x, y, 3.0, 4), TypeError),  # goes as a double
        ((x, y, np.float32(3), np.int32(4)), TypeError),
        ((x, np.zeros(4), np.float32(3), 4), TypeError),
        ((x, y.data.ptr + 504, np.float32(3), 4), RuntimeError),
    ]:
        with pytest.raises(error):
            run((2,), (32,), args)
    with pytest.raises(RuntimeError, match="shared memory"):
        run((1,), (32,), (x, y, np.float32(3), 4), shared_mem=100_000)
    with pytest.raises(RuntimeError, match="NOT_FOUND"):
        cupy.RawModule(code=SCALE).get_function("shift")
    with pytest.raises(NotImplementedError, match="no emulation of kernel 'shift'"):
        cupy.RawKernel('extern "C" __global__ void shift(float* x) {}', "shift")((1,), (1,), (x,))
