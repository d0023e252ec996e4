"""The page on GPUs quotes messages as they are: each one is provoked, on fakes, and has a row on the page."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import array_api_strict
import fake_cudnn
import fake_cupy.devices
import numpy as np
import pytest

import cqs
from cqs.backend import import_cupy
from cqs.errors import CQSError
from cqs.kernels import KERNELS, cudnn_missing
from cqs.kernels.cudnn_graphs import missing_libraries

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))  # where `building` is

from building.reference import CHAPTERS, anchors, chapter_page  # noqa: E402

PAGE = (DOCS / "how-to" / "gpu.md").read_text(encoding="utf-8")
X = np.ones((2, 16, 8), np.float32)
HALF = X.astype(np.float16)


def first_column(heading: str) -> list[str]:
    """What stands in the first column of a table, without its quotes, as a pattern: "…" stands for anything."""
    rows = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [re.escape(row.split(" | ")[0].strip("| `")).replace("…", ".+") for row in rows]


MESSAGES = first_column("message")
REASONS = first_column("not cudnn: …")


def row_of(text: str, patterns: list[str]) -> str:
    found = [row for row in patterns if re.fullmatch(row, " ".join(text.replace("`", "").split()))]
    assert len(found) == 1, f"{len(found)} rows of the page say: {text}"
    return found[0]


def refused(**options: Any) -> str:
    arrays = options.pop("arrays", (X, X, X))
    with pytest.raises(CQSError) as caught:
        cqs.attention(*arrays, **options)
    return str(caught.value)


def without_cupy(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    fake_cupy.install(patch)  # which takes a true one away
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupy_backends", "cupyx")]:
        patch.delitem(sys.modules, name)
    patch.syspath_prepend(folder)
    for missing in ("cupy", "a_library"):
        (folder / "cupy.py").write_text(f"raise ImportError('No module named {missing}', name={missing!r})\n")
        import_cupy.cache_clear()
        yield refused(backend="cupy")
    import_cupy.cache_clear()


def without_device(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for driver, n_devices in ((0, 0), (12020, 1), (13000, 0)):
        fake_cupy.install(patch, n_devices).driver = driver
        yield refused(backend="cupy")
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield refused(backend="cupy")
    cupy, runtime = installed(patch)
    patch.setattr(runtime, "getDeviceCount", raising(runtime.CUDARuntimeError(999)))
    yield refused(backend="cupy")
    cupy, _ = installed(patch)
    with pytest.MonkeyPatch.context() as without:
        without.setattr(cupy.cuda.nvrtc, "getVersion", raising(RuntimeError('Failure finding "libnvrtc.so.13"')))
        yield refused(backend="cupy")
    patch.setattr(cupy, "__version__", "13.6.0")
    import_cupy.cache_clear()
    yield refused(backend="cupy")


def what_does_not_fit(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    cupy, _ = installed(patch)
    x, strict = cupy.asarray(X), array_api_strict.asarray(X)
    with cupy.cuda.Device(1):
        other = cupy.asarray(X)
    for devices in ([2], 0, [0, 0], [-1]):
        yield refused(backend="cupy", devices=devices)
    yield refused(devices=[0])
    yield refused(devices=[cqs.backend.CudaDevice(0), cqs.backend.HostDevice()])
    yield refused(backend="cupy", devices=[0], engine=cqs.engines.LocalEngine(2))
    with ThreadPoolExecutor(1) as executor:
        yield refused(arrays=(x,) * 3, engine=executor)
    yield refused(backend="cuda")
    yield refused(arrays=(strict,) * 3, backend="cupy").replace("array_api_strict", "torch")
    yield refused(arrays=(x,) * 3, backend="numpy")
    yield refused(arrays=(x,) * 3, backend="cupy", devices=[0])
    yield refused(arrays=(x, X, X))
    yield refused(arrays=(x, other, x))
    yield refused(arrays=(x,) * 3, out=folder / "out.npy")
    yield refused(arrays=(x,) * 3, mask=cupy.ones((16, 16), dtype=bool))
    yield refused(backend="cupy", kernel="numpy")
    yield refused(backend="cupy", kernel="cudnn")


def what_torch_and_numpy_lack(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    from cqs.backend import dtype_of

    class Tensor(np.ndarray):
        requires_grad = True

    yield refused(arrays=(X.view(Tensor), X, X))
    patch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(CQSError) as caught:
        dtype_of(np, "bfloat16")
    yield str(caught.value)


def raising(error: Exception) -> Callable[..., int]:
    def raises(*_: object) -> int:
        raise error

    return raises


def installed(patch: pytest.MonkeyPatch) -> tuple[ModuleType, Any]:
    fake_cupy.install(patch, n_devices=2)
    import cupy

    return cupy, cupy.cuda.runtime


CASES = (without_cupy, without_device, what_does_not_fit, what_torch_and_numpy_lack)


def test_the_page_has_every_message_and_no_other(tmp_path: Path) -> None:
    found = set()
    for case in CASES:
        with pytest.MonkeyPatch.context() as patch:
            found |= {row_of(text, MESSAGES) for text in case(patch, tmp_path)}
    assert found == set(MESSAGES)


def test_the_page_has_every_reason_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(x: np.ndarray, **options: Any) -> str:
        return dict(cqs.plan(x, x, x, backend="cupy", **options).setting.passed_over)["cudnn"]

    def missing() -> str:
        missing_libraries.cache_clear()
        return str(cudnn_missing())

    cupy, _ = installed(monkeypatch)
    found = {reason(X), reason(np.ones((2, 16, 12), np.float16)), reason(HALF, softcap=2.0), reason(HALF, scale=-1.0)}
    for versions in (("1.9.0", 92800), ("1.32.0", 91002)):
        fake_cudnn.install(monkeypatch, *versions)
        found.add(missing())
    fake_cudnn.install(monkeypatch)
    monkeypatch.setattr(fake_cupy.devices, "CAPABILITY", (7, 5))
    found.add(missing())
    monkeypatch.setitem(sys.modules, "cudnn", None)
    found.add(missing())
    monkeypatch.setitem(sys.modules, "cudnn", ModuleType("cudnn"))
    monkeypatch.setattr(importlib, "import_module", raising(OSError("libcudnn.so.9: no such file")))
    found.add(missing())
    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", raising(RuntimeError('Failure finding "libnvrtc.so.13"')))
    found.add(missing())
    missing_libraries.cache_clear()
    assert {row_of(text, REASONS) for text in found} == set(REASONS)


def test_the_page_has_every_kernel_that_takes_what_is_on_a_gpu() -> None:
    named = " ".join(first_column("| arrays | types | masks | `softcap`, `bias`, `score_mod` | how"))
    assert [name for name in KERNELS if name not in ("numba", "numpy") and name not in named] == []


@pytest.mark.parametrize("module", ["kernels", "engines"])
def test_the_reference_has_what_kernels_and_engines_are_made_of(module: str) -> None:
    values = importlib.import_module(f"cqs.{module}")
    internal = {"Accept", "KERNELS", "as_engine", "concurrency"}
    assert {name for name in values.__all__ if f"cqs.{module}.{name}" not in anchors()} <= internal


def test_defaults_in_the_reference_are_names() -> None:
    page = chapter_page(next(chapter for chapter in CHAPTERS if chapter.slug == "devices"))
    assert "xp=numpy" in page
    assert "other=cqs.kernels.blockwise.attend" in page
    assert " at 0x" not in page
