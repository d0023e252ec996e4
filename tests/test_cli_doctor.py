"""`cqs doctor`: what it sees, and what it advises."""

import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import Run

import cqs
from cqs.backend import BlasLibrary
from cqs.cli.doctor import Facts, advice


def facts(architecture: str = "Haswell", simd: tuple[str, ...] = ("X86_V4",), coretype: str | None = None) -> Facts:
    blas = (BlasLibrary("openblas", "0.3.30", architecture, 8),)
    return Facts("0.1.0", "2.4.0", "3.13.1", "Linux x86_64", blas, simd, coretype, 8, 13, {"torch": None})


@pytest.mark.parametrize("architecture", ["Haswell", "Zen", "haswell"])
@pytest.mark.parametrize("simd", [("SSE42", "AVX2", "AVX512_SKX"), ("X86_V2", "X86_V3", "X86_V4")])
def test_doctor_sees_avx2_kernels_on_a_cpu_with_avx512(architecture: str, simd: tuple[str, ...]) -> None:
    (remedy,) = advice(facts(architecture, simd))
    assert "OPENBLAS_CORETYPE=SkylakeX" in remedy
    assert architecture in remedy


def test_doctor_sees_who_asked_for_the_slow_kernels() -> None:
    (remedy,) = advice(facts(coretype="Haswell"))
    assert "because OPENBLAS_CORETYPE=Haswell is set" in remedy
    (remedy,) = advice(facts(coretype="SkylakeX"))
    assert "although OPENBLAS_CORETYPE=SkylakeX is set" in remedy


def test_doctor_advises_the_compiled_kernel() -> None:
    (remedy,) = advice(replace(facts("SkylakeX"), packages={"numba": None}))
    assert "pip install 'cqs-attention[numba]'" in remedy
    assert advice(replace(facts("SkylakeX"), packages={"numba": "0.66.0"})) == []


def test_doctor_is_content() -> None:
    assert advice(facts("SkylakeX")) == []
    assert advice(facts("Haswell", ("X86_V2", "X86_V3"))) == []
    assert advice(facts("Zen", ("SSE42", "AVX2", "AVX512F"))) == []  # an early CPU that lacks what SkylakeX needs


def test_doctor(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cqs.cli.doctor._facts", lambda: facts("SkylakeX"))
    code, out, err = cli("doctor")
    assert (code, err) == (0, "")
    assert "openblas 0.3.30, kernels for SkylakeX, 8 threads" in out
    assert "not installed (pip install 'cqs-attention[torch]'), for torch tensors" in out
    assert out.splitlines()[-1] == "Nothing to improve."


def test_doctor_sees_what_multiplies(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cqs.cli.doctor._facts", lambda: replace(facts(), has_amx=True))
    assert "8 available, with AVX-512 and AMX, by which the compiled kernel multiplies on Linux" in cli("doctor")[1]
    monkeypatch.setattr("cqs.cli.doctor._facts", facts)
    assert "8 available, with AVX-512\n" in cli("doctor")[1]


def test_doctor_json(cli: Run) -> None:
    code, out, _ = cli("doctor --json")
    values = json.loads(out)
    assert code == 0
    assert values["cqs"] == cqs.__version__
    assert values["numpy"] == np.__version__
    packages = {"ml_dtypes", "numba", "torch", "jax", "cupy", "zarr", "h5py", "matplotlib", "array_api_strict"}
    assert set(values["packages"]) == packages
    assert values["packages"]["ml_dtypes"] is not None
    assert isinstance(values["advice"], list)
