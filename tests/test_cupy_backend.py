"""`backend="cupy"`, end to end: on a fake CuPy, whose copies come as late, or as early, as streams and events allow."""

import gc
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import cuda_emulation  # noqa: F401  # what the library's CUDA kernels do, for the fake
import numpy as np
import pytest
from command_line import Run
from fake_cupy import Machine, install
from problems import DTYPES, odd_qkv

import cqs
from cqs.backend import CudaDevice, HostDevice, import_cupy
from cqs.errors import BackendError, BudgetError, OptionError
from cqs.events import TaskRetried
from cqs.kernels import cudnn_missing
from cqs.masks import Causal, Dense, Documents, SlidingWindow
from cqs.sources import ArraySink
from cqs.testing import assert_exact
from cqs.trace import Recorder


@pytest.fixture(scope="module")
def qkv() -> list[np.ndarray]:
    return odd_qkv()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "7 tasks": {"workers": 7},
    "tiles": {"workers": 3, "strategy": "tiles"},
    "window": {"mask": SlidingWindow(50), "workers": 7},
    "documents": {"mask": Documents([150, 1, 180]) & Causal()},
    "little memory": {"memory": "4 MiB"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("devices", [None, [0, 2]], ids=["first", "two"])
def test_arrays_in_memory_go_to_devices_and_back(
    machine: Machine, qkv: list[np.ndarray], options: dict[str, Any], devices: list[int] | None
) -> None:
    out, lse = cqs.attention(*qkv, backend="cupy", devices=devices, return_lse=True, **options)
    assert isinstance(out, np.ndarray)
    assert_exact(out, *qkv, mask=options.get("mask"), lse=lse)
    assert machine.used == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kernel", ["gemm", "blockwise"])
def test_arrays_on_a_device_stay_there(machine: Machine, qkv: list[np.ndarray], dtype: str, kernel: str) -> None:
    import cupy

    arrays = [x.astype(DTYPES[dtype]) for x in qkv]
    with cupy.cuda.Device(1):
        on_device = [cupy.asarray(x) for x in arrays]
    out, lse = cqs.attention(*on_device, workers=7, is_causal=True, return_lse=True, kernel=kernel)
    assert (type(out), out.device.id, lse.device.id, out.dtype.name) == (cupy.ndarray, 1, 1, dtype)
    assert cupy.cuda.Device().id == 0
    assert_exact(out.get(), *arrays, is_causal=True, lse=lse.get())
    again = cqs.attention(*on_device, workers=7, is_causal=True, backend="cupy", kernel=kernel)
    assert again.get().tobytes() == out.get().tobytes()


@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("memory", ["4 MiB", "8 MiB"])
def test_the_device_holds_no_more_than_the_plan_says(
    machine: Machine, qkv: list[np.ndarray], strategy: str, memory: str
) -> None:
    options: dict[str, Any] = {"memory": memory, "strategy": strategy, "backend": "cupy"}
    plan = cqs.plan(*qkv, **options)
    machine.reset_peaks()
    assert_exact(cqs.attention(*qkv, **options), *qkv)
    assert machine.peak_bytes(0) <= plan.projected_bytes <= plan.setting.memory
    assert machine.peak_reserved_bytes(0) <= plan.setting.memory


def test_the_first_task_may_see_nothing(machine: Machine, qkv: list[np.ndarray]) -> None:
    T = qkv[0].shape[-2]
    visible = np.zeros((T, T), dtype=bool)
    visible[-T // 7 :, -T // 7 :] = True
    out = cqs.attention(*qkv, mask=Dense(visible), workers=7, backend="cupy")
    assert_exact(out, *qkv, mask=Dense(visible))


def test_slots_for_the_next_task_fit_the_memory_that_is_left(machine: Machine) -> None:
    x = np.random.default_rng(0).standard_normal((1, 13 * 130, 16), dtype=np.float32)
    for memory in ("4 MiB", "16 MiB"):
        options: dict[str, Any] = {"memory": memory, "strategy": "cqs", "workers": 13, "backend": "cupy"}
        plan = cqs.plan(x, x, x, **options)
        machine.reset_peaks()
        cqs.attention(x, x, x, **options)
        gc.collect()
        assert machine.peak_bytes(0) <= plan.projected_bytes <= plan.setting.memory
        assert machine.peak_reserved_bytes(0) <= plan.setting.memory


def test_a_device_that_is_full_divides_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((4, 600, 64), dtype=np.float32) for _ in range(3))
    machine, recorder = install(monkeypatch, n_devices=1, memory=3 << 20), Recorder()
    out = cqs.attention(
        q, k, v, backend="cupy", memory="64 MiB", workers=1, on_event=recorder
    )  # which it does not have
    machine.check()
    assert recorder.counters.n_retries > 0
    assert_exact(out, q, k, v)


@pytest.mark.parametrize("what", ["pinned memory", "copies"])
def test_pinned_memory_is_there_again_after_failures(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    import cupy

    runtime, x = cupy.cuda.runtime, np.arange(1 << 10, dtype=np.float32)
    place, name = (cupy.cuda, "PinnedMemory") if what == "pinned memory" else (runtime, "memcpyAsync")

    def fails(*_: Any) -> Any:
        raise runtime.CUDARuntimeError(runtime.errorMemoryAllocation)

    with CudaDevice(0).opened() as session:
        slot, there = session.slot(x.nbytes), session.upload(x)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails)
            for _ in range(6):  # more often than there are buffers
                with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorMemoryAllocation"):
                    slot.fill([x])
                with pytest.raises(runtime.CUDARuntimeError, match="cudaErrorMemoryAllocation"):
                    session.download(there)
        [filled] = slot.fill([x])
        slot.wait()
        assert session.download(filled).result().tolist() == session.download(there).result().tolist() == x.tolist()


def test_files_are_streamed_through_a_device(machine: Machine, qkv: list[np.ndarray], tmp_path: Path) -> None:
    for name, array in zip("qkv", qkv, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    out = cqs.attention(*paths, memory="4 MiB", backend="cupy", out=tmp_path / "out.npy", is_causal=True)
    assert_exact(np.asarray(out), *qkv, is_causal=True)


def test_a_run_that_fails_leaves_the_devices_as_they_were(machine: Machine, qkv: list[np.ndarray]) -> None:
    def fails(scores: Any, b: int, h: int, q: Any, k: Any) -> Any:
        raise ZeroDivisionError

    for devices in ([1], [0, 2]):
        with pytest.raises(ZeroDivisionError):
            cqs.attention(*qkv, backend="cupy", devices=devices, score_mod=fails, workers=7)
        gc.collect()
        assert machine.used == [0, 0, 0]


def test_arrays_on_a_device_are_computed_in_large_blocks_if_they_fit(machine: Machine) -> None:
    import cupy

    x = cupy.zeros((4, 8192, 16), dtype=cupy.float32)
    plans = [cqs.plan(x, x, x, memory=memory, workers=1) for memory in ("8 GiB", "200 MiB")]
    assert [plan.grain.block_bytes for plan in plans] == [256 << 20, 128 << 20]
    assert all(plan.projected_bytes <= plan.setting.memory for plan in plans)


def test_arrays_on_a_device_are_computed_at_once_and_written_at_once(machine: Machine) -> None:
    import cupy

    x, lane = cupy.zeros((2, 9000, 64), dtype=cupy.float16), machine.current_lane()
    assert cqs.plan(x, x, x).workers == 1
    rows = cupy.full((2, 9000, 64), 1 / 3, dtype=cupy.float32)
    before = lane.tick
    ArraySink(x).write(None, 0, 9000, rows)
    assert lane.tick - before == 1
    assert (x.get() == np.float16(1 / 3)).all()


def test_arrays_on_a_device_are_computed_in_the_thread_that_has_it(machine: Machine, qkv: list[np.ndarray]) -> None:
    import cupy

    with cupy.cuda.Device(1):
        on_device = [cupy.asarray(x) for x in qkv]
    local = cqs.engines.LocalEngine(2)
    out = cqs.attention(*on_device, workers=7, engine=local)
    assert out.device.id == 1
    with ThreadPoolExecutor(2) as executor:
        for engine in (executor, cqs.engines.ExecutorEngine(executor)):
            with pytest.raises(OptionError, match="`engine` must be no executor for arrays that are on a GPU, got"):
                cqs.attention(*on_device, workers=7, engine=engine)


def test_an_output_over_an_input_is_refused(machine: Machine) -> None:
    import cupy

    both = np.random.default_rng(0).standard_normal((3, 2, 300, 16), dtype=np.float32)
    fused = cupy.asarray(both)
    q, k, v = fused[0], fused[1], fused[2]
    flat = fused.reshape(-1)
    for out in (k, v[::-1], flat[q.size - 8 : 2 * q.size - 8].reshape(q.shape)):
        with pytest.raises(OptionError, match=r"`out` must share no memory with `[qkv]`, which is still read"):
            cqs.attention(q, k, v, out=out, workers=7)
    with pytest.raises(OptionError, match="`out` must have each element in a place of its own"):
        cqs.attention(q, k, v, out=cupy.broadcast_to(cupy.zeros((1, 300, 16), np.float32), (2, 300, 16)))
    wide = cupy.asarray(np.concatenate([both[1], both[1]], axis=-1))
    beside = cqs.attention(q, wide[..., :16], v, out=wide[..., 16:], workers=7)  # rows of both in turn, none in both
    assert_exact(beside.get(), *both)


def test_a_plan_says_which_kernel_and_why(machine: Machine, qkv: list[np.ndarray]) -> None:
    plan = cqs.plan(*qkv, backend="cupy")
    assert "kernel    gemm on cuda:0 Fake GPU; not cudnn: takes float16 and bfloat16, not float32" in str(plan)
    with pytest.raises(OptionError, match="`kernel` must take arrays of cupy, got 'numpy', which takes NumPy"):
        cqs.plan(*qkv, backend="cupy", kernel="numpy")
    with pytest.raises(OptionError, match="`kernel` must be able to do what is asked, got 'cudnn': takes float16"):
        cqs.plan(*qkv, backend="cupy", kernel="cudnn")


X = np.ones((2, 8, 4), np.float32)


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, n_devices=2)
    import cupy

    with pytest.raises(BackendError, match=r"`devices` must be numbers of CUDA devices, 0..1, got 2; `cqs doctor`"):
        cqs.attention(X, X, X, backend="cupy", devices=[2])
    for twice in ([CudaDevice(0), CudaDevice(0)], [0, CudaDevice(0)], [CudaDevice(np.int64(1)), 0, 1]):
        with pytest.raises(OptionError, match="`devices` must name each device once"):
            cqs.attention(X, X, X, backend="cupy", devices=twice)
    for number in (False, 1.0, -1):
        with pytest.raises(OptionError, match="`devices` must be a whole number of at least 0"):
            CudaDevice(number)
    with pytest.raises(BackendError, match="`backend` must fit the devices, of which one is cuda:0 Fake GPU, got 'nu"):
        cqs.attention(X, X, X, backend="numpy", devices=[CudaDevice(0)])
    with pytest.raises(OptionError, match=r"`devices` must be of one array library.*cuda:0 Fake GPU and numpy"):
        cqs.attention(X, X, X, devices=[CudaDevice(0), HostDevice()])
    x = cupy.asarray(X)
    with pytest.raises(OptionError, match="`devices` must be left out for arrays that are on a device"):
        cqs.attention(x, x, x, backend="cupy", devices=[0])
    with pytest.raises(BackendError, match="`backend` must fit the inputs, arrays of cupy, got 'numpy'"):
        cqs.attention(x, x, x, backend="numpy")
    monkeypatch.setattr(cupy, "__version__", "13.6.0")
    import_cupy.cache_clear()
    with pytest.raises(BackendError, match=r"must have CuPy 14 or later.*got 13\.6\.0; pip install"):
        cqs.attention(X, X, X, backend="cupy")
    import_cupy.cache_clear()


@pytest.mark.parametrize(
    ("driver", "visible", "message"),
    [
        (0, None, r"must have a CUDA driver.* got none; install NVIDIA's driver"),
        (12020, None, r"must have a driver for CUDA 13, .* got one for CUDA 12\.2; update it.*\[cuda12\]"),
        (13000, None, r"must have a CUDA device.* got none; does `nvidia-smi` list one"),
        (13000, "", r"must have a CUDA device.* got none, with CUDA_VISIBLE_DEVICES=''; unset it\."),
        (13000, "7", r"must have a CUDA device.* got none, with CUDA_VISIBLE_DEVICES='7'; unset it\."),
    ],
)
def test_no_driver_an_old_one_and_no_device_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, driver: int, visible: str | None, message: str
) -> None:
    install(monkeypatch, n_devices=0).driver = driver
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(BackendError, match=message):
        cqs.attention(X, X, X, backend="cupy")


LIBRARIES = {
    "nvrtc": ("13000", r"no NVRTC that can be loaded \(Failure finding .*; pip install 'cupy-cuda13x\[ctk\]'"),
    "cublas": ("12090", r"no cuBLAS that can be loaded \(.*; pip install 'cupy-cuda12x\[ctk\]'"),
}


def take_away(monkeypatch: pytest.MonkeyPatch, library: str, build: str) -> None:
    """As CuPy behaves without one of the toolkit's libraries: the first use of it raises."""
    import cupy

    def raises() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so.13"\nlooked in some places')

    monkeypatch.setattr(cupy.cuda.driver, "get_build_version", lambda: int(build))
    if library == "nvrtc":
        monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", raises)
    else:
        monkeypatch.delattr(cupy.cuda, "cublas")
        monkeypatch.setattr(cupy.cuda, "__getattr__", lambda name: import_module(f"no_{name}"), raising=False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_driver_without_the_libraries_of_the_toolkit_is_refused(
    monkeypatch: pytest.MonkeyPatch, cli: Run, library: str
) -> None:
    install(monkeypatch, n_devices=1)
    import cupy

    build, message = LIBRARIES[library]
    x = cupy.asarray(X)
    take_away(monkeypatch, library, build)
    for arrays, options in ((X, {"backend": "cupy"}), (x, {})):
        with pytest.raises(BackendError, match=f"must have the libraries of the CUDA toolkit.*{message}"):
            cqs.attention(arrays, arrays, arrays, **options)
    assert re.match(message, str(cudnn_missing()))
    code, out, _ = cli("doctor")
    assert code == 0
    assert re.search(f"backend='cupy' does not work: {message}", " ".join(out.split()))
    assert "cuDNN" not in out


def test_doctor_lists_what_is_there(monkeypatch: pytest.MonkeyPatch, cli: Run) -> None:
    install(monkeypatch, n_devices=2)
    code, out, _ = cli("doctor")
    assert code == 0
    assert "cuda:1 Fake GPU" in out
    assert "no kernel cudnn: nvidia-cudnn-frontend is not installed" in out


def test_the_command_line_takes_a_backend(machine: Machine, qkv: list[np.ndarray], cli: Run) -> None:
    for name, array in zip("qkv", qkv, strict=True):
        np.save(f"{name}.npy", array)
    code, _, err = cli("run q.npy k.npy v.npy -o out.npy --backend cupy --devices 0,1 --workers 7")
    assert (code, err) == (0, "")
    assert_exact(np.load("out.npy"), *qkv)
    code, _, _ = cli("plan q.npy k.npy v.npy --backend cupy --memory 8MiB")
    assert code == 0


def normal(H: int, G: int, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((heads, n, 64), dtype=np.float32) for heads in (H, G, G)]


@pytest.mark.parametrize("memory", ["16 MiB", "20 MiB", "30 MiB"])
def test_what_was_planned_to_fit_is_not_divided(machine: Machine, memory: str) -> None:
    """A pool that is asked for pieces of other sizes, call after call, may have room in pieces that are too small."""
    q, k, v = normal(8, 2, 3000)
    recorder = Recorder()
    out = cqs.attention(q, k, v, backend="cupy", memory=memory, on_event=recorder)
    assert_exact(out[:, :50], q[:, :50], k, v)
    assert not any(isinstance(event, TaskRetried) for event in recorder.events)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sums_of_arrays_on_a_device_are_not_spilled(machine: Machine, dtype: str) -> None:
    import cupy

    arrays = [x.astype(dtype) for x in normal(1, 1, 1845)]
    for memory in (1_500_000, 3_000_000, 4_404_019, 6_000_000):
        try:
            out = cqs.attention(*map(cupy.asarray, arrays), memory=memory, is_causal=True, workers=3)
        except BudgetError:
            continue
        assert_exact(out.get(), *arrays, is_causal=True)
