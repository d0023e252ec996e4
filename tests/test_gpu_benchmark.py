"""benchmarks/gpu.py runs to its end: on a fake GPU, with sizes that show nothing but that."""

import ast
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_emulation  # noqa: F401  # what the library's CUDA kernels do, for the fake
import fake_cudnn
import pytest
from fake_cupy import install

SOURCE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    install(monkeypatch, n_devices=1, memory=1 << 28, eager=True)
    fake_cudnn.install(monkeypatch)
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SOURCE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUDGETS", (0.01, 0.1))
    monkeypatch.setattr(module, "WORKERS", (1, 3))
    return module


def run(benchmark: ModuleType, folder: Path, *options: str) -> dict[str, Any]:
    path = folder / "new" / "gpu.json"
    benchmark.main([*options, "--rounds", "1", "--out", str(path)])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_it_runs_to_its_end(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(benchmark, tmp_path, "--shortest", "16", "--longest", "64")
    printed = capsys.readouterr().out
    assert found["machine"]["gpu"] == "cuda:0 Fake GPU"
    assert found["left_out"] == []
    assert {row["part"] for row in found["rows"]} == {"resident", "host", "float"}
    own = [row for row in found["rows"] if row["name"].startswith("cqs")]
    assert {row["name"] for row in own} >= {"cqs W=1", "cqs resident", "cqs 0.1 GiB"}
    assert all(row["seconds"] > 0 and row["tflops"] > 0 for row in own), own
    assert all(row["strategy"] and 0 <= row["hidden"] <= 1 for row in own if "GiB" in row["name"])
    assert {target["what"].split(":")[0] for target in found["targets"]} == {"host N=64 D=64 float16 causal"}
    for text in (
        "resident: H=16 N=16 D=64 bfloat16 causal",
        "cqs W=3",
        "TFLOP/s",
        "of copying hidden",
        "gpu: cuda:0 Fake GPU",
        "wanted",
    ):
        assert text in printed


def test_contestants_that_are_missing_or_fail_are_named(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "WORKERS", (1, -1))
    monkeypatch.setattr(benchmark, "_torch", lambda: None)
    found = run(benchmark, tmp_path, "--shortest", "16", "--longest", "64", "--parts", "host", "float")
    errors = {(row["part"], row["name"]): row["error"] for row in found["rows"] if "error" in row}
    assert set(errors) == {("float", "cqs W=-1"), ("float", "torch"), ("host", "stream-cqsa")}
    assert "OptionError: `workers` must be" in errors["float", "cqs W=-1"]
    assert "torch with CUDA is not installed" in errors["float", "torch"]
    assert "torch with CUDA is not installed" in capsys.readouterr().out


def test_inputs_that_do_not_fit_are_not_the_end(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(benchmark.Case, "numbers", full)
    found = run(benchmark, tmp_path, "--shortest", "32", "--longest", "32", "--parts", "float")
    assert {row["error"] for row in found["rows"]} == {"LookupError: no inputs for them: MemoryError: no room"}


def test_what_was_measured_is_kept_if_it_is_stopped(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, measured = benchmark.measure, []

    def stopped(case: Any, rounds: int) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return measure(case, rounds)

    monkeypatch.setattr(benchmark, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, tmp_path, "--shortest", "32", "--longest", "64", "--parts", "float")
    rows = json.loads((tmp_path / "new" / "gpu.json").read_text())["rows"]
    assert {row["dtype"] for row in rows} == {"float32"}


def test_what_is_long_is_even_for_every_number_of_workers(benchmark: ModuleType) -> None:
    sizes = {case.n_tokens for case in benchmark.cases(["resident"], 131072)}
    assert len(sizes) == 6
    assert all(n % W == 0 for n in sizes for W in (1, 7, 31, 133))
    long = next(case for case in benchmark.cases(["host"], 1 << 22, 1 << 22 >> 2) if case.n_tokens == 1 << 22)
    assert 100 < long.least_seconds < 400
    small = benchmark.Case("host", 2, 100, 8, "bfloat16", True).numbers(3)
    assert (small.shape, small.dtype.name) == ((2, 100, 8), "bfloat16")


def test_what_there_is_no_time_for_is_listed(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(benchmark, tmp_path, "--shortest", "32", "--longest", "64", "--parts", "float", "--seconds", "0")
    assert (found["rows"], len(found["left_out"])) == ([], 4)
    assert "left out for lack of time" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(SystemExit) as stopped:
        run(benchmark, tmp_path)
    assert stopped.value.code == 2
    assert "must have a CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(SOURCE.parent.glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_what_there_is(path: Path) -> None:
    """Even where a branch is not taken on this machine."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "cqs":
            module = importlib.import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)]
