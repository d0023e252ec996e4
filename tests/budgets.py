"""Random calls under a memory budget, drawn by hypothesis, and how to measure what they hold."""

import gc
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from problems import cut

import cqs
from cqs.engines import ExecutorEngine, LocalEngine
from cqs.masks import Causal, Documents, Mask, PrefixLM, Sinks, SlidingWindow
from cqs.scores import ALiBi

MIB = 1 << 20
EXECUTOR = ThreadPoolExecutor(8)
SCORES: list[dict[str, Any]] = [
    {},
    {"softcap": 20.0},
    {"bias": ALiBi((0.5,))},
    {"softcap": 20.0, "bias": ALiBi((0.5,))},
    {"score_mod": lambda score, b, h, q, k: score + 0.1},
]


@dataclass(frozen=True)
class Call:
    """Shapes and options of one call; the inputs are zeros, which cost as much as others."""

    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    dtype: str
    is_staged: bool
    out: str
    options: dict[str, Any]

    def arguments(self, directory: Path) -> tuple[list[Any], dict[str, Any]]:
        """Make the inputs, on disk if they are to be staged, and the output."""
        inputs: list[Any] = [np.zeros(shape, self.dtype) for shape in self.shapes]
        if self.is_staged:
            paths = [directory / f"{name}.npy" for name in "qkv"]
            for path, array in zip(paths, inputs, strict=True):
                np.save(path, array)
            inputs = paths
        shape = (*self.shapes[0][:-1], self.shapes[2][-1])
        wide = "float64" if self.dtype == "float64" else "float32"
        out = {
            "new": lambda: None,
            "given": lambda: np.empty(shape, self.dtype),
            "wide": lambda: np.empty(shape, wide),
            "file": lambda: directory / "out.npy",
        }[self.out]()
        return inputs, self.options | {"out": out}


def measured(call: Call, directory: Path, **more: Any) -> tuple[cqs.Plan, int]:
    """Plan a call and run it; return the plan, and the most bytes that the run held."""
    inputs, options = call.arguments(directory)
    plan = cqs.plan(*inputs, **options)
    with tracing():
        cqs.attention(*inputs, **options, **more)
        return plan, tracemalloc.get_traced_memory()[1]


@contextmanager
def tracing() -> Iterator[None]:
    """Trace what is allocated, but for what the interpreter keeps of small objects that were freed, to use it again.

    Of tuples alone that may be some MB, which belong to the process. They are made before; collecting would drop them.
    """
    gc.collect()
    gc.disable()
    for size in range(1, 20):
        _ = [tuple([None] * size) for _ in range(2000)]
    del _
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


def masks(T: int) -> st.SearchStrategy[Mask | None]:
    """Masks of every kind that has edges, for T queries."""
    numbers = st.integers(0, T)
    lengths = st.lists(st.integers(1, max(T // 3, 1)), min_size=1, max_size=30)
    simple = st.one_of(
        st.builds(Causal, st.integers(-T, T)),
        st.builds(SlidingWindow, numbers, numbers),
        st.builds(Sinks, numbers),
        st.builds(PrefixLM, numbers),
        lengths.map(lambda n: documents_of(n, T)),
    )
    both = st.tuples(simple, simple)
    return st.one_of(st.none(), simple, both.map(lambda m: m[0] & m[1]), both.map(lambda m: m[0] | m[1]))


def documents_of(lengths: list[int], T: int) -> Mask:
    """Documents of such lengths, again and again until there are T tokens."""
    repeated: list[int] = []
    while sum(repeated) < T:
        repeated += lengths
    return Documents(cut(tuple(repeated), T))


@st.composite
def calls(draw: st.DrawFn, most_tokens: int = 3000, most_scores: float = 3e7) -> Call:
    """Draw a call of some million scores, and a budget from one that is too small to one that is ample."""
    G = draw(st.integers(1, 3))
    H = G * draw(st.sampled_from([1, 2, 4]))
    batch = draw(st.sampled_from([(), (), (2,), (2, 1)]))
    most = min(most_tokens, int((most_scores / (H * int(np.prod(batch)))) ** 0.5))
    T = draw(st.integers(1, most))
    S = T if draw(st.booleans()) else draw(st.integers(1, most))
    D, E = draw(st.sampled_from([8, 64, 128])), draw(st.sampled_from([8, 64, 128]))
    strategy = draw(st.sampled_from(["auto", "cqs", "tiles"] if T == S else ["auto", "tiles"]))
    mask = draw(masks(T) if T == S else st.one_of(st.none(), st.builds(Causal, st.integers(-S, S))))
    options = {
        "memory": int(2 ** draw(st.floats(21, 28))),
        "strategy": strategy,
        "mask": mask,
        "engine": LocalEngine(draw(st.integers(1, 3))) if draw(st.integers(0, 3)) else ExecutorEngine(EXECUTOR, 2),
        "kernel": draw(st.sampled_from(["auto", "auto", "auto", "blockwise", "reference"])),
        "return_lse": draw(st.booleans()),
        "workers": draw(st.one_of(st.none(), st.none(), st.integers(1, 40))),
    }
    scores = draw(st.sampled_from(SCORES))
    options |= {"bias": ALiBi((0.5,) * H)} if "bias" in scores else scores
    dtype = draw(st.sampled_from(["float32", "float32", "float64", "float16"]))
    shapes = (*batch, H, T, D), (*batch, G, S, D), (*batch, G, S, E)
    return Call(shapes, dtype, draw(st.booleans()), draw(st.sampled_from(["new", "given", "wide", "file"])), options)


@st.composite
def filling_calls(draw: st.DrawFn) -> Call:
    """Draw a call with a budget above 64 MiB that it has some use for: large arrays, of which a mask hides most."""
    G, shared = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 1, 2, 4]))
    D, E = draw(st.sampled_from([32, 64, 128])), draw(st.sampled_from([32, 64, 128]))
    batch = draw(st.sampled_from([(), (), (2,)]))
    n_heads = G * shared * int(np.prod(batch))
    T = int(2 ** draw(st.floats(11, 18)))
    seen = max(int(1e9 / (n_heads * T)), 1)  # keys of each query, so that it takes a second or two
    dtype = draw(st.sampled_from(["float32", "float32", "float64", "float16"]))
    kinds = [SlidingWindow(seen // 2, seen // 2), SlidingWindow(seen) & Causal(), documents_of([seen], T)]
    mask = draw(st.sampled_from(kinds if seen < T else [None, Causal()]))
    assume(n_heads * T * (D + E) * np.dtype(dtype).itemsize < 1e9)
    options = {
        "memory": int(2 ** draw(st.floats(26, 28))),
        "strategy": draw(st.sampled_from(["auto", "cqs", "tiles"])),
        "mask": mask,
        "engine": LocalEngine(2),
        "return_lse": draw(st.booleans()),
        "workers": draw(st.sampled_from([None, None, None, 7, 13])),
    }
    shapes = (*batch, G * shared, T, D), (*batch, G, T, D), (*batch, G, T, E)
    return Call(shapes, dtype, draw(st.booleans()), draw(st.sampled_from(["new", "given", "wide", "file"])), options)
