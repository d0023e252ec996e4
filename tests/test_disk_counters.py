"""Every slice is read as often as the plan says, to the byte, and every row is written once."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import cqs
from cqs.masks import Causal, Documents, SlidingWindow
from cqs.sources import ArrayInput, ArraySink

MASKS = {"full": None, "causal": Causal(), "window": SlidingWindow(60), "documents": Documents([100, 30, 170, 100])}
BUDGETS: dict[str, dict[str, Any]] = {
    "no budget": {"workers": 13},
    "8 MiB": {"memory": "8 MiB"},
    "4 MiB": {"memory": "4 MiB"},
    "4 MiB and 31 tasks": {"memory": "4 MiB", "workers": 31},
}


@dataclass(frozen=True, eq=False)
class CountingInput:
    """An array that counts what is read of it, as if it were on disk."""

    array: np.ndarray
    reads: list[tuple[Any, int, int]] = field(default_factory=list)
    n_bytes: list[int] = field(default_factory=list)
    is_staged = True
    read_bytes = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def read(self, lead: Any, start: int, stop: int) -> np.ndarray:
        rows = ArrayInput(self.array).read(lead, start, stop).copy()
        self.reads.append((str(lead), start, stop))
        self.n_bytes.append(rows.nbytes)
        return rows

    def close(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class CountingSink:
    """An output that counts how often each of its rows is written."""

    array: np.ndarray
    times: np.ndarray
    ends: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def write(self, lead: Any, start: int, stop: int, rows: np.ndarray) -> None:
        ArraySink(self.array).write(lead, start, stop, rows)
        self.times[(*((...,) if lead is None else lead), slice(start, stop))] += 1

    def finish(self) -> np.ndarray:
        self.ends.append("finished")
        return self.array

    def abandon(self) -> None:
        self.ends.append("abandoned")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("strategy", ["cqs", "tiles"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_reads_are_those_of_the_plan_and_rows_are_written_once(
    mask: str, budget: str, strategy: str, batch: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    shapes = [(*batch, 4, 400, 16), (*batch, 2, 400, 16), (*batch, 2, 400, 24)]
    inputs = [CountingInput(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    out_shape = (*shapes[0][:-1], 24)
    sink = CountingSink(np.zeros(out_shape, np.float32), np.zeros(out_shape[:-1], int))
    options: dict[str, Any] = {"strategy": strategy, "mask": MASKS[mask], "out": sink} | BUDGETS[budget]
    plan = cqs.plan(*inputs, **options)
    cqs.attention(*inputs, **options)

    planned: dict[str, Counter[Any]] = {"queries": Counter(), "keys": Counter()}
    for _, read, _ in plan.reads():
        lead = None if read.heads is None else read.heads.of_queries if read.what == "queries" else read.heads.of_keys
        planned[read.what][str(lead), read.group.start, read.group.stop] += 1
    for what, x in zip(("queries", "keys", "keys"), inputs, strict=True):
        assert Counter(x.reads) == planned[what]
    n_bytes = sum(sum(x.n_bytes) for x in inputs)
    assert n_bytes == sum(size for _, _, size in plan.reads()) == plan.traffic.read
    assert (sink.times == 1).all()
    assert sink.ends == ["finished"]
    assert sink.array.nbytes == plan.traffic.written
    expected = cqs.attention(*(x.array for x in inputs), mask=MASKS[mask])
    np.testing.assert_allclose(sink.array, expected, atol=2e-6)


@pytest.mark.parametrize("when", [1, 5])
def test_an_output_of_a_run_that_fails_is_abandoned_once(when: int) -> None:
    x = np.zeros((2, 100, 8), np.float32)
    sink = CountingSink(np.zeros_like(x), np.zeros(x.shape[:-1], int))

    def stop(done: int, n: int) -> None:
        if done == when:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cqs.attention(x, x, x, workers=7, out=sink, progress=stop)
    assert sink.ends == ["abandoned"]
