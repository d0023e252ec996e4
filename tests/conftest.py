import hashlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from command_line import Run
from fake_cupy import Machine, install
from hypothesis import HealthCheck, settings

import cqs
from cqs.backend import blas_libraries
from cqs.cli import main
from cqs.schedule import forget_plans

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=60, **_COMMON)
settings.register_profile("ci", max_examples=40, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=3000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

# Numba looks at the file of a function only, not at what it imports: what it keeps is for one version of all of them
_ROOT = Path(cqs.__file__).parent
_CONSTANTS = _ROOT / "kernels" / "numba_tables.py", _ROOT / "schedule" / "scratch.py"
_COMPILED = [*sorted((_ROOT / "kernels" / "compiled").glob("*.py")), *_CONSTANTS]
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in _COMPILED)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"cqs-numba-{_VERSION}"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what `thinned` says.

    Values of each parameter are numbered in their order, and a set of n is kept if its numbers add up to a multiple
    of n. So where two parameters have n values or more, each value of each is in some set.
    """
    numbers: dict[tuple[object, str], dict[int, int]] = {}  # of each parameter of each test its values, in their order
    for item in items:
        mark = item.get_closest_marker("thinned")
        if mark is not None:
            known = [(numbers.setdefault((item.function, name), {}), id(x)) for name, x in item.callspec.params.items()]
            if sum(of.setdefault(value, len(of)) for of, value in known) % mark.args[0] != 0:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def what_is_compiled_is_ready() -> None:
    """Compiled code is compiled and loaded before any test counts time or memory."""
    x = np.zeros((1, 7, 4), np.float32)
    cqs.attention(x, x, x, workers=7)  # whose results are merged


@pytest.fixture(autouse=True)
def no_plan_is_remembered() -> None:
    """A test may change what plans follow from."""
    forget_plans()


@pytest.fixture(scope="session")
def real_qkv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shipped activations of a trained model, (4, 4096, 32) float16."""
    from importlib import resources

    with resources.as_file(resources.files(cqs) / "data" / "text_qkv_4096.npz") as path, np.load(path) as arrays:
        return arrays["q"], arrays["k"], arrays["v"]


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    """No thread outlives the test, but those that Zarr keeps for all, and BLAS has the threads that it had."""
    threads, libraries = set(threading.enumerate()), blas_libraries()
    yield
    assert {t for t in threading.enumerate() if not t.name.startswith(("zarr", "asyncio"))} <= threads
    assert blas_libraries()[: len(libraries)] == libraries


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(int, range(4)))  # its own threads start here, not in a test
        yield pool


@pytest.fixture(params=["late copies", "early copies"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A fake CuPy with three devices, whose copies come as late, or as early, as streams and events allow."""
    machine = install(monkeypatch, n_devices=3, memory=1 << 28, eager=request.param == "early copies")
    yield machine
    machine.check()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in an empty directory; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        code = main(line.split())
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Where a job may keep its results."""
    return tmp_path / "run.job"


@pytest.fixture
def qkv(tmp_path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grouped-query arrays, saved as .npy files and as one .npz."""
    rng = np.random.default_rng(5)
    q = rng.standard_normal((4, 300, 16), dtype=np.float32)
    k, v = rng.standard_normal((2, 300, 16), dtype=np.float32), rng.standard_normal((2, 300, 24), dtype=np.float32)
    for name, array in zip("qkv", (q, k, v), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "inputs.npz", q=q, k=k, v=v)
    return q, k, v
