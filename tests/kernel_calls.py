"""Calls of a kernel with several strips, for the tests of the kernels for NumPy arrays."""

import numpy as np
from hypothesis import strategies as st

from cqs.kernels import KeyChunk, Region
from cqs.masks import Causal, Documents, NoMask, SlidingWindow

__all__ = ["D", "arrays_of", "strips"]

D = 8


@st.composite
def strips(draw: st.DrawFn) -> Region:
    """Strips of one call, some of whose tiles are not the task's own; each owns one at least."""
    sizes = st.one_of(st.integers(1, 20), st.integers(100, 250))
    runs, start = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 50), sizes), min_size=1, max_size=5)):
        runs.append(range(start + gap, start + gap + size))
        start = runs[-1].stop
    places = [(i, j) for i in range(len(runs)) for j in range(len(runs)) if i != j]
    foreign = frozenset(draw(st.sets(st.sampled_from(places)))) if places else frozenset()
    masks = [
        st.just(NoMask()),
        st.builds(Causal, st.integers(-100, 100)),
        st.builds(SlidingWindow, st.integers(0, 300), st.integers(0, 300)),
        st.builds(lambda size: Documents([size] * (start // size + 1)), st.integers(1, 400)),
    ]
    return Region(tuple(runs), tuple(runs), draw(st.one_of(masks)), foreign)


def arrays_of(region: Region, heads: int, kv_heads: int, dtype: str) -> tuple[np.ndarray, list[KeyChunk]]:
    """Queries of the rows, and a chunk of keys for each run of columns."""
    rng, numpy_dtype = np.random.default_rng(len(region.keys)), np.dtype(dtype)
    q = rng.standard_normal((heads, sum(map(len, region.queries)), D)).astype(numpy_dtype)
    return q, [KeyChunk(*rng.standard_normal((2, kv_heads, len(keys), D)).astype(numpy_dtype)) for keys in region.keys]
