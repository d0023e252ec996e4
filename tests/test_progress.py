"""Bars and reports: they move within a task, know rate and end, and cost nothing where nobody looks."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cqs
from cqs.errors import OptionError
from cqs.events import TileDone
from cqs.masks import Predicate
from cqs.progress import RunBar, reporting, run_bar
from cqs.trace import Recorder


class Row:
    """What stands in for rich: remembers what was shown."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []
        self.total = 0

    def reset(self, row: int, total: int, **fields: str) -> None:
        self.total = total

    def update(self, row: int, **fields: Any) -> None:
        self.shown.append(fields)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Row:
    monkeypatch.setattr("cqs.progress._LEAST_SECONDS", 0.0)
    return Row()


def test_a_bar_moves_within_a_task_that_streams_its_keys(row: Row, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.random.default_rng(0).standard_normal((1, 6000, 16), dtype=np.float32))
    inputs: Any = [tmp_path / "q.npy"] * 3
    options: Any = {"memory": "3 MiB", "strategy": "tiles", "out": tmp_path / "out.npy"}
    n_tasks = len(cqs.plan(*inputs, **options))
    cqs.attention(*inputs, **options, progress=RunBar(row, 0))
    completed = [shown["completed"] for shown in row.shown]
    assert len(set(completed)) >= 2 * n_tasks
    assert completed == sorted(completed)
    assert completed[-1] == row.total == 6000**2
    assert row.shown[-1]["tasks"] == f"{n_tasks}/{n_tasks} tasks"
    assert all(shown["rate"].endswith("FLOP/s") for shown in row.shown)


@pytest.mark.parametrize("strategy", ["cqs", "tiles", "ring", "tree"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_kernel_calls_add_up_to_the_whole(row: Row, strategy: str, is_causal: bool) -> None:
    q, recorder = np.ones((2, 4, 500, 8), np.float32), Recorder()
    options: Any = {"workers": 7, "strategy": strategy, "is_causal": is_causal}
    cqs.attention(q, q[:, :2], q[:, :2], **options, progress=RunBar(row, 0), on_event=recorder)
    calls = [event for event in recorder.events if isinstance(event, TileDone)]
    assert row.total == sum(call.n_rows * call.n_columns for call in calls) * 8
    assert row.shown[-1]["completed"] == row.total


def test_the_whole_of_very_many_tasks_is_estimated(row: Row) -> None:
    q = np.ones((1, 6000, 4), np.float32)
    plan = cqs.plan(q, q, q, workers=1500, strategy="tiles", is_causal=True)
    RunBar(row, 0).start(plan)
    area = sum(len(s.query) * sum(map(len, s.keys)) for task in plan.tasks() for s in task.strips)
    assert row.total == pytest.approx(area, rel=0.1)


def test_heads_of_their_own_blocks_are_counted(row: Row) -> None:
    q = np.ones((3, 800, 8), np.float32)
    out = np.empty_like(q)
    cqs.attention(q, q, q, memory="2 MiB", out=out, progress=RunBar(row, 0))
    assert row.shown[-1]["completed"] == row.total


def test_a_mask_that_is_a_function_is_not_evaluated_for_a_bar(row: Row) -> None:
    n_pairs = []

    def causal(b: Any, h: Any, q_idx: Any, k_idx: Any) -> Any:
        n_pairs.append(np.broadcast(q_idx, k_idx).size)
        return q_idx >= k_idx

    q = np.ones((1, 300, 4), np.float32)
    cqs.attention(q, q, q, mask=Predicate(causal))
    without = sum(n_pairs)
    n_pairs.clear()
    cqs.attention(q, q, q, mask=Predicate(causal), progress=RunBar(row, 0))
    assert sum(n_pairs) <= 1.5 * without
    assert row.shown[-1]["completed"] == row.total


def test_executors_move_a_bar_too(row: Row) -> None:
    q = np.ones((1, 300, 4), np.float32)
    with ThreadPoolExecutor(2) as pool:
        cqs.attention(q, q, q, workers=7, engine=pool, progress=RunBar(row, 0))
    assert row.shown[-1] | {"rate": ""} == {"completed": row.total, "tasks": "7/7 tasks", "rate": ""}


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_nothing_to_do_is_done(row: Row, n_tokens: int) -> None:
    q = np.ones((1, n_tokens, 4), np.float32)
    cqs.attention(q, q, q, progress=RunBar(row, 0))
    assert row.shown[-1]["completed"] == row.total == 1


def test_events_reach_the_listener_beside_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    q, recorder = np.ones((1, 100, 4), np.float32), Recorder()
    cqs.attention(q, q, q, workers=3, progress=True, on_event=recorder)
    assert recorder.counters.n_tasks == 3
    shown = capsys.readouterr().err
    for what in ("3/3 tasks", "100%", "FLOP/s"):
        assert what in shown


def test_nobody_is_told_where_nobody_listens() -> None:
    for progress in (None, False):
        with reporting(progress) as report:
            assert report.emit is None
            report(1, 1)
    with pytest.raises(OptionError, match="`progress`"), reporting("yes"):  # type: ignore[arg-type]
        pass


def test_a_quiet_bar_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    q = np.ones((1, 100, 4), np.float32)
    with run_bar(is_quiet=True) as bar:
        cqs.attention(q, q, q, workers=3, progress=bar)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_bar_in_a_terminal_shows_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console

    written, console = io.StringIO(), rich.console.Console

    def terminal(**options: Any) -> Any:
        return console(file=written, force_terminal=True, width=120)

    monkeypatch.setattr(rich.console, "Console", terminal)
    q = np.ones((2, 2000, 32), np.float32)
    with run_bar() as bar:
        cqs.attention(q, q, q, workers=13, progress=bar)
    assert "13/13 tasks" in written.getvalue()
    assert "FLOP/s" in written.getvalue()
    assert ":" in written.getvalue()  # time


@pytest.mark.parametrize("call", ["attention", "work"])
def test_the_bar_of_a_job_counts_what_is_kept(
    qkv: Sequence[np.ndarray], job: Path, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cqs.work(*qkv, workers=13, job=job, tasks=range(5))
    getattr(cqs, call)(*qkv, job=job, progress=True)
    said = capsys.readouterr().err
    assert "100%" in said
    assert ("13/13 tasks" if call == "attention" else "8/8 tasks") in said


@pytest.mark.parametrize("call", ["attention", "work"])
def test_a_bar_moves_by_what_is_loaded_and_counts_it_in_no_rate(
    row: Row, qkv: Sequence[np.ndarray], job: Path, call: str
) -> None:
    cqs.attention(*qkv, workers=7, progress=RunBar(row, 0))
    whole = row.total
    row.shown.clear()
    cqs.work(*qkv, workers=7, job=job, tasks=range(4))
    getattr(cqs, call)(*qkv, job=job, progress=RunBar(row, 0))
    if call == "work":
        assert row.total == whole * 3 // 7  # of seven equal tasks three are missing
        return
    assert row.total == whole
    loaded = [shown["completed"] for shown in row.shown if shown["rate"] == "0FLOP/s"]
    assert max(loaded) == pytest.approx(4 / 7 * whole, rel=0.02)


def test_what_takes_time_is_said_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cqs.cli.terminal import status

    for is_terminal in (False, True):
        monkeypatch.setenv("FORCE_COLOR", "1") if is_terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
        with status("compiling the kernel"):
            pass
        out, err = capsys.readouterr()
        assert out == ""
        assert ("compiling the kernel" in err) is is_terminal
