"""Reading ahead: the groups that a worker wants, in its order, within a limit of bytes."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from cqs.reading import Direct, ReadAhead
from cqs.schedule import Group, HeadBlock, Read
from cqs.sources import ArraySource
from cqs.types import Array

SIZE = 4 * 8  # bytes of one query


class Slow(ArraySource):
    """A source that counts what it has read, and fails at some tokens."""

    def __init__(self, seconds: float = 0.0, fails: tuple[int, ...] = ()) -> None:
        x = np.arange(400, dtype=np.float64).reshape(1, 100, 4)
        super().__init__(x, x, x)
        self.__dict__["read"] = []
        self.__dict__["seconds"], self.__dict__["fails"] = seconds, fails

    def queries(self, group: Group, heads: HeadBlock | None = None) -> Array:
        time.sleep(self.__dict__["seconds"])
        if group.start in self.__dict__["fails"]:
            raise OSError(f"token {group.start}")
        self.__dict__["read"].append(group.start)
        return super().queries(group, heads).copy()


def order(n: int, tokens: int = 1) -> Iterator[tuple[int, Read, int]]:
    """Task i reads queries i to i + tokens - 1."""
    for i in range(n):
        yield i, Read("queries", Group(i, i, i + tokens), None), tokens * SIZE


def test_groups_come_in_order() -> None:
    with ReadAhead(Slow(), order(50), limit=10 * SIZE).running() as feed:
        for task, read, _ in order(50):
            groups = feed.take(read, task)
            assert groups[0, 0, 0] == 4 * task
            feed.release([groups])


def test_it_reads_ahead_and_no_further_than_the_limit() -> None:
    source = Slow()
    with ReadAhead(source, order(50), limit=3 * SIZE).running() as feed:
        for done, (task, read, _) in enumerate(order(20)):
            groups = feed.take(read, task)
            time.sleep(0.002)
            assert len(source.__dict__["read"]) <= done + 3
            feed.release([groups])
        time.sleep(0.02)
        assert len(source.__dict__["read"]) == 23


def test_what_is_waited_for_is_read_though_it_exceeds_the_limit() -> None:
    with ReadAhead(Slow(), order(5, tokens=10), limit=SIZE).running() as feed:
        for task, read, _ in order(5, tokens=10):
            assert feed.take(read, task).shape == (1, 10, 4)  # never released


def test_the_next_is_read_while_the_last_is_used() -> None:
    source = Slow()
    with ReadAhead(source, order(10), limit=2 * SIZE).running() as feed:
        for task, read, _ in order(9):
            groups = feed.take(read, task)
            deadline = time.monotonic() + 10
            while source.__dict__["read"][-1] == task and time.monotonic() < deadline:
                time.sleep(0.001)
            assert source.__dict__["read"][-1] == task + 1
            feed.release([groups])


def test_an_error_reaches_whoever_takes_what_failed_and_the_next_can_be_taken() -> None:
    with ReadAhead(Slow(fails=(3,)), order(6), limit=100 * SIZE).running() as feed:
        for task, read, _ in order(6):
            if task == 3:
                with pytest.raises(OSError, match="token 3"):
                    feed.take(read, task)
            else:
                feed.release([feed.take(read, task)])


def test_an_error_of_the_order_reaches_whoever_waits() -> None:
    def broken() -> Iterator[tuple[int, Read, int]]:
        yield from order(2)
        raise RuntimeError("no more")

    with ReadAhead(Slow(), broken(), limit=100 * SIZE).running() as feed:
        for task, read, _ in order(2):
            feed.take(read, task)
        with pytest.raises(RuntimeError, match="no more"):
            feed.take(Read("queries", Group(2, 2, 3), None), 2)


def test_a_task_that_is_skipped_is_read_no_further() -> None:
    def two_tasks() -> Iterator[tuple[int, Read, int]]:
        for task, tokens in ((0, range(20)), (1, range(20, 30))):
            for i in tokens:
                yield task, Read("queries", Group(i, i, i + 1), None), SIZE

    source = Slow()
    with ReadAhead(source, two_tasks(), limit=4 * SIZE).running() as feed:
        feed.release([feed.take(Read("queries", Group(0, 0, 1), None), 0)])
        feed.skip(0)
        for i in range(20, 30):
            groups = feed.take(Read("queries", Group(i, i, i + 1), None), 1)
            assert groups[0, 0, 0] == 4 * i
            feed.release([groups])
    assert len([i for i in source.__dict__["read"] if i < 20]) <= 6


def test_no_thread_is_left_when_it_ends_early() -> None:
    before = threading.active_count()
    with ReadAhead(Slow(seconds=0.001), order(50), limit=2 * SIZE).running() as feed:
        feed.take(next(order(1))[1], 0)
    assert threading.active_count() == before


def test_reading_at_once_reads_what_is_asked_for() -> None:
    source = Slow()
    feed = Direct(source)
    for task, read, _ in order(3):
        feed.release([feed.take(read, task)])
        feed.skip(task)
    assert source.__dict__["read"] == [0, 1, 2]
