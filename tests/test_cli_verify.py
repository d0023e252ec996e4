"""`cqs verify`: what it accepts, finds and refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_refused

import cqs


def test_verify_accepts_what_run_wrote(cli: Run, qkv: Any) -> None:
    assert cli("run inputs.npz -o out.npy --causal --scale 0.5")[0] == 0
    code, out, err = cli("verify q.npy k.npy v.npy out.npy --causal --scale 0.5")
    assert (code, err) == (0, "")
    assert " of 1,200 rows" in out
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


@pytest.mark.parametrize("side", [-1, 0])
@pytest.mark.parametrize(
    ("options", "border"),
    [
        ("--workers 7", 5 * 300 // 7),
        ("--workers 13 --causal", 300 // 13),
        ("--workers 5 --strategy ring", 4 * 300 // 5),
        ("--workers 2 --window 37 --causal", 37),  # where the window begins to slide
        ("--workers 1 --mask two.npy", 123),  # where a document begins
    ],
)
def test_verify_finds_one_wrong_row_at_a_border(
    cli: Run, qkv: Any, tmp_path: Path, options: str, border: int, side: int
) -> None:
    documents = np.arange(300) >= 123
    np.save(tmp_path / "two.npy", documents[:, None] == documents)
    row = border + side
    assert cli(f"run q.npy k.npy v.npy -o out.npy -q {options}")[0] == 0
    out = np.load(tmp_path / "out.npy")
    out[2, row, 3] += 1e-4
    np.save(tmp_path / "wrong.npy", out)
    assert cli(f"verify q.npy k.npy v.npy out.npy --rows 2 {options}")[0] == 0
    code, text, err = cli(f"verify q.npy k.npy v.npy wrong.npy --rows 2 {options}")
    assert (code, err) == (1, "")
    assert f"(2, {row}, 3)" in text
    assert " ulp)" in text
    assert "FAILED: the largest error, at " in text.splitlines()[-1]
    code, text, err = cli(f"verify q.npy k.npy v.npy wrong.npy --rows 2 --json {options}")
    assert code == 1
    assert json.loads(text)["worst"] == [2, row, 3]
    assert err.startswith("cqs: wrong.npy: FAILED: ")


def test_verify_refuses_what_is_not_complete_by_name(cli: Run, qkv: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "out.npy", cqs.attention(*qkv))
    (tmp_path / "out.npy").rename(tmp_path / "out.npy.unfinished")
    assert_refused(cli("verify q.npy k.npy v.npy out.npy.unfinished"), "`out.npy.unfinished`", "finished output")
    zarr = pytest.importorskip("zarr")
    array = zarr.save_array(tmp_path / "out.zarr", cqs.attention(*qkv))
    array = zarr.open_array(tmp_path / "out.zarr")
    assert cli("verify inputs.npz out.zarr")[0] == 0
    array.attrs["cqs"] = {"complete": False}
    assert_refused(cli("verify inputs.npz out.zarr"), "out.zarr", "complete")
    (tmp_path / "out.zarr").rename(tmp_path / "out.zarr.unfinished")
    assert_refused(cli("verify inputs.npz out.zarr.unfinished"), "`out.zarr.unfinished`", "finished output")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("verify inputs.npz", ["1 files"]),
        ("verify q.npy k.npy v.npy", ["3 files"]),
        ("verify inputs.npz nope.npy", ["`OUT` must be a file that exists, got nope.npy"]),
        ("verify inputs.npz inputs.npz", ["be a .npy file"]),
        ("verify inputs.npz k.npy", ["`OUT`", "(4, 300, 24)"]),
        ("verify inputs.npz double.npy", ["`OUT`", "float64"]),
        ("verify inputs.npz out.npy --rows 0", ["`--rows`", "at least 1"]),
        ("verify inputs.npz out.npy --rows most", ["`--rows` must be all, or a whole number", "'most'"]),
        ("verify q.npy k.npy v.npy ./q.npy", ["`OUT` must be another file than the inputs"]),
        ("verify q.npy nope.npy v.npy out.npy", ["`K` must be a file that exists"]),
    ],
)
def test_verify_refuses(cli: Run, qkv: Any, line: str, words: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "double.npy", np.zeros((4, 300, 24)))
    np.save(tmp_path / "out.npy", np.zeros((4, 300, 24), np.float32))
    assert_refused(cli(line), *words)


def test_verify_can_check_every_row(cli: Run, qkv: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "out.npy", cqs.attention(*qkv))
    assert "1,200 of 1,200 rows" in cli("verify inputs.npz out.npy --rows all")[1]
