"""How the gemm kernel cuts a call, what that takes, and what its rows see of a block: integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cqs.kernels import Region
from cqs.masks import Causal, Documents, NoMask, SlidingWindow
from cqs.schedule import CallShape
from cqs.schedule.gemm_blocks import buffer_sizes, gemm_block, gemm_bytes, head_groups


@given(
    n=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(1, 1 << 20)),
    n_keys=st.integers(1, 1 << 20),
    mega=st.integers(1, 512),
    is_masked=st.booleans(),
)
def test_blocks_keep_to_their_bytes_and_cover_all_heads_once(
    n: tuple[int, int, int, int], n_keys: int, mega: int, is_masked: bool
) -> None:
    batch, kv_heads, shared, n_queries = n
    call = CallShape(batch, kv_heads, shared, n_queries, n_keys, 64, 64, 4, False, is_masked)
    block = gemm_block(call, mega << 20)
    assert buffer_sizes(call, block)["scores"] * 4 <= max(mega << 20, 4 * 32 * block.n_heads * block.rows)
    numbers = np.arange(call.n_heads).reshape(batch, kv_heads, shared, 1, 1)
    groups = list(head_groups((batch,), kv_heads, shared, block))
    parts = [numbers[heads.of_queries].ravel() for heads in groups]
    assert all(part[0] == heads.first and len(part) <= block.n_heads for part, heads in zip(parts, groups, strict=True))
    assert np.array_equal(np.concatenate(parts), np.arange(call.n_heads))


@given(
    heads=st.tuples(st.integers(1, 5), st.integers(1, 16), st.integers(1, 9)),
    sizes=st.tuples(st.integers(1, 40_000), st.integers(1, 40_000)),
    parts=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    block_bytes=st.integers(1_000, 1 << 28),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_smaller_call_allocates_no_more(
    heads: tuple[int, int, int],
    sizes: tuple[int, int],
    parts: tuple[int, int],
    block_bytes: int,
    flags: tuple[bool, bool, bool],
) -> None:
    is_masked, is_smaller_masked, is_gathered = flags
    smaller = [-(-n * percent // 100) for n, percent in zip(sizes, parts, strict=True)]
    most = gemm_bytes(CallShape(*heads, *sizes, 64, 80, 4, is_gathered, is_masked), block_bytes)
    call = CallShape(*heads, *smaller, 64, 80, 4, is_gathered, is_masked and is_smaller_masked)
    block = gemm_block(call, block_bytes)
    held = buffer_sizes(call, block)
    names = ["scores", "top", "total"] + ["hold"] * call.is_masked + ["q"] * is_gathered
    names += ["k", "v"] * (is_gathered or call.is_masked)
    masks = 2 * block.rows * max(8, -(-block.columns // 8)) * call.is_masked
    assert 4 * sum(held[name] for name in names) + masks <= most


@given(data=st.data())
def test_bounds_are_what_is_visible(data: st.DataObject) -> None:
    queries, keys = ((range(3, 40), range(50, 61)), (range(0, 9), range(9, 30), range(44, 80)))
    offset, foreign = data.draw(st.integers(-70, 70)), data.draw(st.sets(st.sampled_from([(0, 1), (1, 2), (0, 0)])))
    documents = Documents([30, 1, 40], [50, 9, 33]) & Causal(5)
    mask = data.draw(st.sampled_from([NoMask(), Causal(offset), SlidingWindow(12, 4, offset), documents]))
    region = Region(queries, keys, mask, frozenset(foreign))
    start, first, gap = (data.draw(st.integers(0, n)) for n in (40, 20, 10))
    rows, pieces = range(start, 48), [range(first, first + 15), range(first + 15 + gap, 66)]
    visible, bounds = region.visible(rows, pieces), region.bounds(rows, pieces)
    column = np.arange(visible.shape[1])
    if bounds is None:
        assert (np.abs(np.diff(visible, prepend=False, append=False, axis=1)).sum(axis=1) > 2).any()
    else:
        assert np.array_equal(visible, (column >= bounds[0][:, None]) & (column < bounds[1][:, None]))
