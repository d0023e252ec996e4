"""Cutting a region into the shapes of mask that cuDNN knows, and a rest: integers only."""

import importlib
import tracemalloc
from types import ModuleType

import fake_cudnn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqs.kernels import Region, by_coverage
from cqs.kernels.by_coverage import Shape, cut_by_coverage, part_of
from cqs.kernels.cudnn_graphs import Layout, Spec, _mask_options
from cqs.masks import Causal, Coverage, Dense, Documents, Mask, NoMask, PrefixLM, Sinks, SlidingWindow

mask_module = importlib.import_module("cqs.masks.mask")
numbers = st.integers(-12, 40)
masks = st.recursive(
    st.one_of(
        st.just(NoMask()),
        st.builds(Causal, numbers),
        st.builds(SlidingWindow, st.integers(0, 20), st.integers(0, 20), numbers),
        st.builds(PrefixLM, st.integers(0, 30)),
        st.builds(Sinks, st.integers(0, 30)),
        st.builds(Documents, st.lists(st.integers(0, 15), max_size=5)),
        st.integers(0, 99).map(lambda n: Dense(np.random.default_rng(n).random((80, 80)) < 0.4)),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        inner.map(lambda a: ~a),
    ),
    max_leaves=3,
)


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, list[int]]:
    """A region, and the sizes of the arrays that its columns stand in."""
    runs = st.tuples(st.integers(0, 50), st.integers(0, 30)).map(lambda run: range(run[0], run[0] + run[1]))
    queries, keys = (tuple(draw(st.lists(runs, min_size=1, max_size=3))) for _ in range(2))
    if draw(st.booleans()):  # runs that continue each other
        keys = tuple(part for run in keys for part in (run[: len(run) // 2], run[len(run) // 2 :]))
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    foreign = frozenset(draw(st.sets(st.sampled_from(pairs), max_size=2)))
    n = sum(map(len, keys))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=2)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    return Region(queries, keys, draw(masks), foreign), sizes


@given(regions(), st.sampled_from([by_coverage._LEAST_SQUARE, 3]))
def test_every_visible_pair_is_in_one_part(case: tuple[Region, list[int]], least_square: int) -> None:
    region, sizes = case
    n_rows, n_columns = sum(map(len, region.queries)), region.n_columns
    times = np.zeros((n_rows, n_columns), dtype=int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_coverage, "_LEAST_SQUARE", least_square)
        cut = cut_by_coverage(region, sizes)
    ends = np.cumsum([0, *sizes])
    for rows, columns, shape in cut.parts:
        seen = shape.visible(len(rows), len(columns))
        assert seen.any(axis=1).all(), "a row of a part sees nothing"
        assert np.count_nonzero(seen) == shape.n_pairs(len(rows), len(columns))
        assert np.count_nonzero((ends[:-1] <= columns.start) & (columns.stop <= ends[1:])) >= 1
        times[rows.start : rows.stop, columns.start : columns.stop] += seen
    for rows, pieces in cut.rest:
        own = part_of(region, rows, pieces)
        assert sum(map(len, own.queries)) == len(rows)
        index = np.concatenate([list(piece) for piece in pieces])
        times[np.ix_(range(rows.start, rows.stop), index)] += own.visible(range(len(rows)), [range(len(index))])
    assert (times == region.visible(range(n_rows), [range(n_columns)])).all()


def test_keys_that_stream_by_a_diagonal_want_two_graphs() -> None:
    n, part = 1 << 20, 1 << 16
    kinds = set()
    for first in range(0, n, part):
        region = Region((range(n),), (range(first, first + part),), Causal())
        kinds |= {(len(rows), len(columns), shape) for rows, columns, shape in cut_by_coverage(region, [part]).parts}
    assert kinds == {(part, part, Shape.FULL), (part, part, Shape.CAUSAL)}


@given(regions(), st.integers(1, 20))
def test_it_does_not_matter_how_many_rows_are_looked_at_together(case: tuple[Region, list[int]], n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        expected = cut_by_coverage(*case)
        patch.setattr(mask_module, "_SEGMENTS", n)
        assert cut_by_coverage(*case) == expected


MASKS = {
    "causal": Causal(),
    "window": SlidingWindow(1000),
    "documents": Documents([1 << 10] * (1 << 10)) & Causal(),
    "small documents": Documents([1 << 7] * (1 << 13)) & Causal(),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_million_rows_take_little_memory(mask: Mask) -> None:
    n = 1 << 20
    region = Region.whole(n, n, mask.bind((), 1, n, n))
    tracemalloc.start()
    try:
        cut = cut_by_coverage(region, [n])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert cut.parts or cut.rest


@given(st.sampled_from(Shape), st.integers(1, 9), st.integers(0, 9))
def test_a_shape_is_what_cudnn_is_told(shape: Shape, n: int, more: int) -> None:
    s = n + more
    at = Layout((1, 1, n, 8), (8 * n, 8 * n, 8, 1))
    spec = Spec("float16", at, at._replace(dims=(1, 1, s, 8)), at, at, 1.0, shape)
    graph = object.__new__(fake_cudnn.pygraph)
    names = ModuleType("cudnn")
    names.diagonal_alignment = fake_cudnn.Alignment  # type: ignore[attr-defined]
    options = _mask_options(names, spec)
    graph.alignment = options.get("diagonal_alignment", fake_cudnn.Alignment.TOP_LEFT)
    graph.left, graph.right = (options.get(f"diagonal_band_{side}_bound") for side in ("left", "right"))
    assert (graph.visible(n, s) == shape.visible(n, s)).all()


def test_runs_that_are_full_make_one_part() -> None:
    region = Region((range(40, 60), range(80, 90)), (range(0, 10), range(20, 30), range(30, 35)), Causal())
    assert [tuple(part) for part in cut_by_coverage(region, [25]).parts] == [(range(30), range(25), Shape.FULL)]
    assert len(cut_by_coverage(region, [10, 15]).parts) == 2


def test_an_unaligned_causal_square_is_two_parts() -> None:
    [causal, full] = sorted(cut_by_coverage(Region.whole(100, 80, Causal(10)), [80]).parts, key=lambda p: p.rows.start)
    assert causal == (range(70), range(80), Shape.CAUSAL)
    assert full == (range(70, 100), range(80), Shape.FULL)


def test_many_small_documents_are_left_to_the_other_kernel() -> None:
    region = Region.whole(3000, 3000, Documents([7, 11, 13, 9] * 75) & Causal())
    cut = cut_by_coverage(region, [3000])
    assert cut.parts == ()
    assert len(cut.rest) == 1
    assert region.mask.classify(range(3000), range(3000)) is Coverage.PARTIAL
