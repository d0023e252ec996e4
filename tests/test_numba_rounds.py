"""Threads of the compiled kernel share items by a number that each adds 1 to."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from numba import int64, void

from cqs.backend import Workspace
from cqs.kernels import KeyChunk, Region, numba
from cqs.kernels.compiled.sharing import next_item
from cqs.kernels.compiled.vectors import compiled
from cqs.kernels.numba_cut import Cut
from cqs.kernels.numba_rounds import Alone, Round, Rounds, rounds_of
from cqs.kernels.numba_tables import Tables
from cqs.masks import Causal
from cqs.schedule import MOST_ITEMS


def table_of(n_blocks: int) -> Tables:
    blocks = np.zeros((n_blocks, 4), np.int64)
    return Tables(blocks, np.zeros((0, 6), np.int64), np.empty(0, np.int32), np.empty(0, bool), True, True)


@compiled(void(int64[::1], int64, int64[::1]))
def take_all(turn, n, taken):
    """Count how often each item is taken, until all are."""
    item = next_item(turn.ctypes.data)
    while item < n:
        taken[item] += 1
        item = next_item(turn.ctypes.data)


def test_each_item_is_taken_by_one_thread() -> None:
    n, turn = 1_000_000, np.zeros(1, np.int64)
    taken = np.zeros((4, n), np.int64)
    threads = [threading.Thread(target=take_all, args=(turn, n, own)) for own in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (taken.sum(axis=0) == 1).all()
    assert turn[0] == n + len(threads)


@pytest.mark.parametrize("n_blocks", [1, 7, MOST_ITEMS])
@pytest.mark.parametrize("n_heads", [1, 300, MOST_ITEMS + 1])
def test_every_block_of_every_head_is_in_one_round(n_blocks: int, n_heads: int) -> None:
    heads = np.stack([np.zeros(n_heads, np.int64), *[np.arange(n_heads)] * 2, np.ones(n_heads, np.int64)], axis=1)
    if n_blocks * n_heads > 1 << 20:
        heads = heads[:40]
    rounds = list(rounds_of(heads, table_of(n_blocks)))
    assert max(len(this.items) for this in rounds) <= max(MOST_ITEMS, n_blocks)
    found = [tuple(item) for this in rounds for item in this.items.tolist()]
    assert sorted(found) == sorted((*head, n) for head in heads.tolist() for n in range(n_blocks))


def test_a_round_is_for_all_threads_and_what_is_alone_for_one() -> None:
    heads = np.zeros((1, 4), np.int64)
    first, second = (Round(np.zeros((3, 5), np.int64), table_of(1)) for _ in range(2))
    alone = [Alone(heads, range(n)) for n in range(2)]
    rounds = Rounds(iter([first, *alone, second]))
    assert rounds.after(None) is first
    assert rounds.after(None) is first  # another thread
    assert rounds.after(first) is alone[0]
    assert rounds.after(first) is alone[1]  # the other thread
    assert rounds.after(alone[1]) is second
    assert rounds.after(alone[0]) is second
    assert [rounds.after(second), rounds.after(second)] == [None, None]


def test_an_error_in_one_thread_ends_what_others_have_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    q, seen = np.ones((8, 4096, 64), np.float32), []
    original = numba._Call._attend

    def attend(self: numba._Call, this: Round, work: Workspace) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        seen.append(this)
        while this.turn[0] == 0:  # until the other one has failed
            time.sleep(0.001)
        original(self, this, work)

    monkeypatch.setattr(numba._Call, "_attend", attend)
    with pytest.raises(MemoryError):
        numba.attend(q, [KeyChunk(q, q)], scale=1.0, threads=2)
    assert all(this.turn[0] >= len(this.items) for this in seen)


def test_whole_calls_of_one_shape_have_one_cut() -> None:
    def cut_of(n: int, threads: int = 2, **options: Any) -> Cut:
        q = np.ones((2, n, 64), np.float32)
        call = numba._Call.of(q, [KeyChunk(q, q)], 1.0, Region.whole(n, n, **options), 2 << 20)
        call.computed(threads)
        return call.cut

    assert cut_of(300) is cut_of(300, threads=1)
    assert cut_of(300) is not cut_of(301)
    assert cut_of(300, mask=Causal()) is not cut_of(300, mask=Causal())


def test_where_a_round_cannot_be_made_one_thread_is_told() -> None:
    def making() -> Iterator[Round]:
        yield Round(np.zeros((3, 5), np.int64), table_of(1))
        raise MemoryError

    rounds = Rounds(making())
    first = rounds.after(None)
    with pytest.raises(MemoryError):
        rounds.after(first)
    assert rounds.after(first) is None
