"""What is to be computed: shapes, data type, scale and mask, checked before anything is allocated."""

import math
import operator
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Self

from cqs.checks import true_or_false
from cqs.errors import BackendError, DTypeError, OptionError, ShapeError
from cqs.masks import Causal, Mask, NoMask, mask_from_dict
from cqs.masks.per_head import as_mask
from cqs.types import Array, DType

__all__ = ["DTYPES", "AttentionProblem", "bytes_of", "dtype_name"]

# data type -> (bytes an element, the type that scores and sums are kept in)
DTYPES: dict[str, tuple[int, str]] = {
    "float16": (2, "float32"),
    "bfloat16": (2, "float32"),
    "float32": (4, "float32"),
    "float64": (8, "float64"),
}


def dtype_name(array: Array) -> str:
    """Return the name of an array's data type without its library: 'float32' for `torch.float32`."""
    return _name(type(array.dtype).__module__, array.dtype)


@lru_cache(maxsize=64)
def _name(_: str, dtype: DType) -> str:  # the library keeps types of different libraries from being compared
    return str(dtype).rsplit(".", maxsplit=1)[-1]  # NumPy takes 10 us to say it


def bytes_of(array: Array) -> int:
    """Return the bytes of an array's elements; not every library has `nbytes`."""
    n_bytes: int = math.prod(array.shape) * DTYPES[dtype_name(array)][0]
    return n_bytes


@dataclass(frozen=True, slots=True)
class AttentionProblem:
    """One attention call without its arrays: integers, names, a scale and a mask.

    The letters are those of `cqs.types`: `q` is `(*batch, H, T, D)`, `k` is `(*batch, G, S, D)`, `v` is
    `(*batch, G, S, E)`, and the result is `(*batch, H, T, E)`.
    """

    batch: tuple[int, ...]
    n_heads: int
    n_kv_heads: int
    n_queries: int
    n_keys: int
    width: int
    value_width: int
    dtype: str
    scale: float
    mask: Mask

    @classmethod
    def of(
        cls,
        q: Array,
        k: Array,
        v: Array,
        *,
        mask: Mask | Array | None = None,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Self:
        """Read the problem off three arrays, or anything else with `shape` and `dtype`.

        Parameters
        ----------
        q, k, v : array
            `(*B, H, T, D)`, `(*B, G, S, D)` and `(*B, G, S, E)`, with H a multiple of G, of one data type:
            float16, bfloat16, float32 or float64. T, S and batch dimensions may be 0.
        mask : Mask, optional
            What each query sees; by default everything.
        is_causal : bool
            Short for `mask=Causal()`: query i sees keys j <= i.
        scale : float, optional
            What scores are multiplied by; by default `1 / sqrt(D)`.

        Raises
        ------
        ShapeError, DTypeError, OptionError
            Saying which argument broke which rule.
        """
        arrays = {"q": q, "k": k, "v": v}
        shapes = {name: _checked_shape(name, array) for name, array in arrays.items()}
        _check_shapes(shapes)
        _check_dtypes({name: dtype_name(array) for name, array in arrays.items()})
        (*batch, H, T, D), (*_, G, S, _), (*_, E) = shapes.values()
        return cls(
            batch=tuple(batch),
            n_heads=H,
            n_kv_heads=G,
            n_queries=T,
            n_keys=S,
            width=D,
            value_width=E,
            dtype=dtype_name(q),
            scale=_checked_scale(scale, D),
            mask=_checked_mask(mask, is_causal).bind(tuple(batch), H, T, S),
        )

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of q, k and v."""
        keys = (*self.batch, self.n_kv_heads, self.n_keys)
        return {
            "q": (*self.batch, self.n_heads, self.n_queries, self.width),
            "k": (*keys, self.width),
            "v": (*keys, self.value_width),
        }

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The result's shape, `(*B, H, T, E)`."""
        return (*self.batch, self.n_heads, self.n_queries, self.value_width)

    @property
    def lse_shape(self) -> tuple[int, ...]:
        """The log-sum-exp's shape, `(*B, H, T)`."""
        return self.out_shape[:-1]

    @property
    def accumulator_dtype(self) -> str:
        """The type of scores, sums, partial results and lse: float64 for float64, else float32."""
        return DTYPES[self.dtype][1]

    @property
    def itemsize(self) -> int:
        """Bytes of one input element."""
        return DTYPES[self.dtype][0]

    @property
    def n_batch_heads(self) -> int:
        """How many independent (batch, query head) attentions there are."""
        return math.prod(self.batch) * self.n_heads

    @property
    def n_pairs(self) -> int:
        """The number of visible (query, key) pairs of one head, or of all that the mask differs between."""
        return self.mask.count(range(self.n_queries), range(self.n_keys))

    def flops(self, n_pairs: int) -> int:
        """Return the multiplications and additions of both matrix products over the pairs that a mask counts."""
        n_heads = self.n_batch_heads // max(math.prod(self.mask.lead), 1)  # that share a mask
        return 2 * n_pairs * (self.width + self.value_width) * n_heads

    def input_bytes(self, n_queries: int, n_keys: int) -> int:
        """Return the bytes of that many queries of every query head, and keys and values of every key head."""
        per_query, per_key = self.n_heads * self.width, self.n_kv_heads * (self.width + self.value_width)
        return math.prod(self.batch) * self.itemsize * (n_queries * per_query + n_keys * per_key)

    def row_bytes(self, dtype: str, n_sums: int) -> int:
        """Return the bytes of one query's result, of one head: the output in some type, and n numbers beside it."""
        return self.value_width * DTYPES[dtype][0] + n_sums * DTYPES[self.accumulator_dtype][0]

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as plain JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"batch": list(self.batch), "mask": self.mask.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        problem = cls(**(values | {"batch": tuple(values["batch"]), "mask": mask_from_dict(values["mask"])}))
        inputs = {name: SimpleNamespace(shape=x, dtype=problem.dtype) for name, x in problem.input_shapes.items()}
        _check_shapes({name: _checked_shape(name, x) for name, x in inputs.items()})
        _check_dtypes({name: dtype_name(x) for name, x in inputs.items()})
        return problem


def _checked_shape(name: str, array: Array) -> tuple[int, ...]:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        remedy = "give an array, or another object that has both"
        raise BackendError.of(name, "have a shape and a dtype", type(array).__name__, remedy)
    try:
        shape = tuple(operator.index(n) for n in array.shape)
    except TypeError:
        shape = (-1,)
    if min(shape, default=0) < 0:
        rule, got = "have axes whose lengths are whole numbers of at least 0", f"shape {tuple(array.shape)}"
        raise ShapeError.of(name, rule, got, "as in (8, 1000, 64): heads, tokens, width")
    return shape


def _check_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if len(shape) < 3:
            remedy = "add a heads axis, `x[None]`, for a single head"
            raise ShapeError.of(name, "have the form (..., heads, tokens, width)", f"shape {shape}", remedy)
    q, k, v = shapes["q"], shapes["k"], shapes["v"]
    for name, shape in (("k", k), ("v", v)):
        if shape[:-3] != q[:-3]:
            remedy = "expand or reshape so that all three agree"
            raise ShapeError.of(name, f"have the batch dimensions of `q`, {q[:-3]}", f"shape {shape}", remedy)
    if q[-1] != k[-1]:
        remedy = "queries and keys share one width; only values may have another"
        raise ShapeError.of("k", f"have the width of `q`, {q[-1]}", f"shape {k}", remedy)
    if q[-1] < 1 or v[-1] < 1 or q[-3] < 1 or k[-3] < 1:
        name, shape = next((n, s) for n, s in shapes.items() if s[-1] < 1 or s[-3] < 1)
        raise ShapeError.of(
            name, "have at least one head and a width of at least 1", f"shape {shape}", "check its axes"
        )
    if k[-3:-1] != v[-3:-1]:
        remedy = "each key belongs to one value"
        raise ShapeError.of("v", f"have the heads and tokens of `k`, {k[-3:-1]}", f"shape {v}", remedy)
    if q[-3] % k[-3] != 0:
        remedy = "each key/value head serves an equal number of query heads (GQA)"
        raise ShapeError.of("q", f"have a multiple of the {k[-3]} heads of `k`", f"{q[-3]} heads", remedy)


def _check_dtypes(names: dict[str, str]) -> None:
    for name, dtype in names.items():
        if dtype not in DTYPES:
            rule = f"have one of the types {', '.join(DTYPES)} in native byte order"
            raise DTypeError.of(name, rule, dtype, f"convert it first, as in `{name}.astype('float32')`")
    for name in ("k", "v"):
        if names[name] != names["q"]:
            remedy = "convert one of them; nothing is cast silently"
            raise DTypeError.of(name, f"have the data type of `q`, {names['q']}", names[name], remedy)


def _checked_scale(scale: float | None, D: int) -> float:
    if scale is None:
        return 1 / math.sqrt(D)
    try:
        value = math.nan if isinstance(scale, (str, bool)) else float(scale)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise OptionError.of("scale", "be a finite number", repr(scale), "leave it out for 1/sqrt(width)")
    return value


def _checked_mask(mask: Mask | Array | None, is_causal: bool) -> Mask:
    is_causal = true_or_false("is_causal", is_causal, "for an offset use `mask=Causal(offset)`")
    if mask is None:
        return Causal() if is_causal else NoMask()
    if is_causal:
        remedy = "give `mask=Causal()` or `is_causal=True`, not both"
        raise OptionError.of("mask", "be left out when `is_causal=True`", repr(mask), remedy)
    return as_mask("mask", mask)
