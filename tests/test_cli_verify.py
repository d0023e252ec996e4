"""`cqs verify`: what it accepts, finds and refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_refused

import cqs
import cqs.cli.files
import cqs.oracle
import cqs.verify


def test_verify_accepts_what_run_wrote(cli: Run, qkv: Any) -> None:
    assert cli("run inputs.npz -o out.npy --causal --scale 0.5")[0] == 0
    code, out, err = cli("verify q.npy k.npy v.npy out.npy --causal --scale 0.5")
    assert (code, err) == (0, "")
    assert "256 of 1,200 rows" in out
    assert out.splitlines()[-1].startswith("Passed")
    code, out, _ = cli("verify inputs.npz out.npy")  # another mask and scale
    assert code == 1
    assert out.splitlines()[-1].startswith("FAILED")


@pytest.mark.parametrize(("rows", "row"), [("64", 0), ("2", 299), ("300", 150)])
def test_verify_detects_a_corrupted_row(cli: Run, qkv: Any, tmp_path: Path, rows: str, row: int) -> None:
    out = cqs.attention(*qkv)
    out[3, row, 7] += 1e-5
    np.save(tmp_path / "out.npy", out)
    code, text, _ = cli(f"verify inputs.npz out.npy --rows {rows} --json")
    found = json.loads(text)
    assert code == 1
    assert found["passed"] is False
    assert found["worst"] == [3, row, 7]
    assert found["error"] == pytest.approx(1e-5, rel=0.1)
    assert found["ulps"] == pytest.approx(found["error"] / found["ulp"])
    assert found["n_rows_in_all"] == 1200


def test_verify_detects_nan(cli: Run, qkv: Any, tmp_path: Path) -> None:
    out = cqs.attention(*qkv)
    out[0, -1] = np.nan
    np.save(tmp_path / "out.npy", out)
    code, text, _ = cli("verify inputs.npz out.npy")
    assert code == 1
    assert "FAILED: 24 numbers are NaN" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("verify inputs.npz", ["1 files"]),
        ("verify q.npy k.npy v.npy", ["3 files"]),
        ("verify inputs.npz nope.npy", ["nope.npy", "No such file"]),
        ("verify inputs.npz inputs.npz", ["be a .npy file"]),
        ("verify inputs.npz k.npy", ["`out`", "(4, 300, 24)"]),
        ("verify inputs.npz double.npy", ["`out`", "float64"]),
        ("verify inputs.npz out.npy --rows 0", ["`n_rows`", "at least 1"]),
    ],
)
def test_verify_refuses(cli: Run, qkv: Any, line: str, words: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "double.npy", np.zeros((4, 300, 24)))
    np.save(tmp_path / "out.npy", np.zeros((4, 300, 24), np.float32))
    assert_refused(cli(line), *words)
