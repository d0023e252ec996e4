"""Random attention problems, drawn by hypothesis."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from cqs.kernels import KERNELS
from cqs.masks import And, Documents, Mask, Not, Or

ON_NUMPY = sorted(name for name, kernel in KERNELS.items() if kernel.takes(np))  # kernels that take NumPy arrays
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


@dataclass(frozen=True)
class Problem:
    """Arrays and options of one call."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float
    is_causal: bool
    workers: int

    def __repr__(self) -> str:
        shapes = f"q {self.q.shape}, k {self.k.shape}, v {self.v.shape}, {self.q.dtype}"
        return f"Problem({shapes}, scale={self.scale}, is_causal={self.is_causal}, workers={self.workers})"

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "is_causal": self.is_causal}


def odd_qkv() -> list[np.ndarray]:
    """Queries, keys and values of a grouped-query call, of no round number of tokens."""
    rng = np.random.default_rng(3)
    shapes = (4, 331, 16), (2, 331, 16), (2, 331, 24)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def dout_for(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A gradient of the output."""
    return np.random.default_rng(1).standard_normal((*q.shape[:-1], v.shape[-1])).astype(q.dtype)


def fitted(mask: Mask, T: int, S: int) -> Mask:
    """The mask with its documents cut short where they have more tokens than there are."""
    match mask:
        case And(left, right) | Or(left, right):
            return type(mask)(fitted(left, T, S), fitted(right, T, S))
        case Not(negated):
            return Not(fitted(negated, T, S))
        case Documents(lengths, None):
            return Documents(cut(lengths, min(T, S)))
        case Documents(lengths, key_lengths):
            return Documents(cut(lengths, T), cut(key_lengths, S))
    return mask


def cut(lengths: tuple[int, ...], n: int) -> list[int]:
    ends = np.minimum(np.cumsum([0, *lengths]), n)
    return np.diff(ends).tolist()


@st.composite
def problems(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    scales: tuple[float, ...] = (1.0, 10.0, 1e3),
    value_magnitudes: tuple[float, ...] = (1e-30, 1e-3, 1.0, 1e30),
) -> Problem:
    """Draw shapes, options and magnitudes; the numbers themselves come from a seeded generator."""
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    batch = draw(st.sampled_from([(), (2,), (2, 1)]))
    G = draw(st.integers(1, 3))
    H = G * draw(st.integers(1, 3))
    T = draw(st.integers(1, 150))
    S = T if draw(st.booleans()) else draw(st.integers(1, 150))
    D, E = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    magnitude = draw(st.sampled_from([1e-3, 1.0, 10.0]))
    values = draw(st.sampled_from(value_magnitudes if dtype.itemsize > 2 else (1e-3, 1.0, 1e3)))
    scale = draw(st.sampled_from((D**-0.5, *scales)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q = (magnitude * rng.standard_normal((*batch, H, T, D))).astype(dtype)
    k = rng.standard_normal((*batch, G, S, D)).astype(dtype)
    v = (values * rng.standard_normal((*batch, G, S, E))).astype(dtype)
    return Problem(q, k, v, scale, draw(st.booleans()), draw(st.integers(1, 60)))
