"""Attention for models of Hugging Face's `transformers`, which then hold no T x S scores.

`register()` makes cqs an implementation that a model can be told to use, as in
`model.set_attn_implementation("cqs")`. Causal masks, sliding windows, chunks, packed texts and padding become rules
(`cqs.masks`), and cost no array either; whatever else a model builds is taken as the boolean array that it would give
PyTorch.
"""

from collections.abc import Callable
from functools import cache, reduce
from importlib import import_module
from typing import Any, cast

import numpy as np

import cqs.api
import cqs.autograd
from cqs.engines import as_engine
from cqs.errors import BackendError, DTypeError, OptionError
from cqs.masks import Causal, Dense, Documents, KeyLengths, Mask, NoMask, SlidingWindow
from cqs.masks.mask import Integers
from cqs.schedule import Scheduler
from cqs.types import Array

__all__ = ["register"]

_ALL = 2**60  # keys on one side of a query, which are farther than any is
# tensors that layers are given beside those that attention is made of, and which do not change it
_HARMLESS = ("position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "num_items_in_batch", "labels")
_OTHERWISE = "such a model needs another implementation of attention"
_OLDEST, _INSTALL = (5, 4), "pip install 'transformers>=5.4' torch"
_OPTIONS = ("workers", "memory", "strategy", "engine")


def register(name: str = "cqs", **options: Any) -> None:
    """Make cqs an attention implementation of `transformers`, 5.4 or newer.

    Parameters
    ----------
    name : str
        By which models are told to use it.
    **options
        `workers`, `memory`, `strategy` or `engine`, as of `cqs.attention`, for every call. A budget is that of one
        layer's attention.

    Raises
    ------
    BackendError
        If transformers is not installed, or too old.
    OptionError
        If there is no such option, or it cannot have that value.

    Notes
    -----
    Masks, grouped heads, soft caps, sink logits and position biases are those of the model. Where gradients are
    recorded it is `cqs.autograd.attention`. It refuses dropout, and gives no weights: see `cqs.attention_map`.

    Examples
    --------
    >>> cqs.huggingface.register(memory="2 GiB")  # doctest: +SKIP
    >>> model.set_attn_implementation("cqs")  # doctest: +SKIP
    """
    unknown = next((option for option in options if option not in _OPTIONS), None)
    if unknown is not None:
        raise OptionError.of(unknown, f"be one of {', '.join(_OPTIONS)}", repr(options[unknown]), "leave it out")
    if not isinstance(name, str) or not name:
        raise OptionError.of("name", "be a name", repr(name), "as in 'cqs'")
    Scheduler(options.get("workers"), options.get("strategy", "auto"), options.get("memory"))
    as_engine(options.get("engine"))
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise BackendError.of("transformers", "be installed", "none that is", _INSTALL) from None
    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST:
        raise BackendError.of("transformers", "be 5.4 or newer", transformers.__version__, _INSTALL)
    torch = import_module("torch")
    transformers.AttentionInterface.register(name, torch.compiler.disable(_attention(options)))
    transformers.AttentionMaskInterface.register(name, torch.compiler.disable(mask_of))


def _attention(options: dict[str, Any]) -> Callable[..., tuple[Array, None]]:
    """Return the function that a model's layers call."""

    def attention(
        module: Any,
        query: Array,
        key: Array,
        value: Array,
        attention_mask: Array | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        softcap: float | None = None,
        s_aux: Array | None = None,
        position_bias: Array | None = None,
        **others: Any,
    ) -> tuple[Array, None]:
        """Compute attention of `(B, H, T, D)`, `(B, G, S, D)` and `(B, G, S, E)`; return it as `(B, T, H, E)`."""
        import torch

        if dropout:
            remedy = "set the model's `attention_dropout` to 0, or call `model.eval()`"
            raise OptionError.of("dropout", "be 0, since cqs computes exact attention", dropout, remedy)
        unknown = [name for name, x in others.items() if isinstance(x, torch.Tensor) and name not in _HARMLESS]
        if unknown:
            rule = "be left out, which may change attention as cqs does not know"
            raise OptionError.of(unknown[0], rule, f"one of {type(module).__name__}", _OTHERWISE)
        mask, bias = _carried(attention_mask, query.shape[-2], key.shape[-2]), position_bias
        if mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
            mask = Causal() if query.shape[-2] > 1 else None
        elif isinstance(mask, torch.Tensor) and mask.dtype != torch.bool:
            if not mask.dtype.is_floating_point:
                rule, remedy = "be booleans, or numbers to add to scores", "convert it first, as in `mask.bool()`"
                raise DTypeError.of("attention_mask", rule, str(mask.dtype), remedy)
            mask, bias = None, mask if bias is None else bias + mask
        given = {"bias": bias, "sink_logits": s_aux}
        arrays = [query, key, value, *(x for x in given.values() if x is not None)]
        if torch.is_grad_enabled() and any(x.requires_grad for x in arrays):
            attend: Callable[..., Array] = cqs.autograd.attention
        else:
            attend = cqs.api.attention
            query, key, value = (x.detach() for x in (query, key, value))
            given = {name: None if x is None else x.detach() for name, x in given.items()}
        how = {"mask": mask, "scale": scaling, "softcap": softcap or None}
        return attend(query, key, value, **how, **given, **options).transpose(1, 2).contiguous(), None

    return attention


def mask_of(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    **how: Any,
) -> Array:
    """Return what layers are given as their mask: a tensor `(B, 1, T, S)` without data, see `_carrier`.

    What it carries is a rule, if one is known, or else the boolean tensor that PyTorch would be given. The arguments
    are those that `transformers` gives to `sdpa_mask`.
    """
    queries = range(int(q_offset), int(q_offset) + q_length)
    return _carrier(queries, range(int(kv_offset), int(kv_offset) + kv_length), **how)


def _carrier(queries: range, keys: range, **how: Any) -> Array:
    """Return a boolean tensor without data that has the mask of some tokens as its attribute; its slices have theirs.

    A model that does not go through the attention interface, but adds the mask to scores of its own, then fails, and
    does not go on with a mask of another kind than it takes. It may take some of the queries, or of the keys.
    """
    import torch

    mask = _mask(queries, keys, **how)
    shape = (how["batch_size"], 1, len(queries), len(keys)) if isinstance(mask, Mask) else mask.shape
    carrier: Array = torch.empty(shape, dtype=torch.bool, device="meta").as_subclass(_carriers())
    carrier.cqs_mask = mask

    def part(rows: slice, columns: slice) -> Array:
        return _carrier(queries[rows], keys[columns], **how)

    carrier.cqs_part = part
    return carrier


@cache
def _carriers() -> Any:
    """Return the type of what `_carrier` returns."""
    import torch

    class MaskCarrier(torch.Tensor):
        """Tensors without data, whose slices along queries and keys carry masks, too."""

        def __getitem__(self, index: Any) -> Any:
            found, part, cuts = super().__getitem__(index), getattr(self, "cqs_part", None), _slices(index, self.ndim)
            if part is None or cuts is None or found.shape[:2] != self.shape[:2]:
                return found
            return part(*cuts[2:])

    return MaskCarrier


def _slices(index: Any, n_axes: int) -> tuple[slice, ...] | None:
    """Return the slice along each axis that an index stands for; None if it is anything but slices of step 1."""
    cuts = list(index) if isinstance(index, tuple) else [index]
    place = next((n for n, cut in enumerate(cuts) if cut is ...), len(cuts))
    cuts[place : place + 1] = [slice(None)] * (n_axes - len(cuts) + (place < len(cuts)))
    is_sliced = all(isinstance(cut, slice) and cut.step in (None, 1) for cut in cuts)
    return tuple(cuts) if is_sliced else None


def _mask(
    queries: range,
    keys: range,
    *,
    batch_size: int,
    mask_function: Callable[..., Any],
    attention_mask: Array | None = None,
    **others: Any,
) -> Mask | Array:
    """Return the mask of some tokens, as of `mask_of`."""
    theirs = import_module("transformers.masking_utils")
    rule = _rule(mask_function, queries, keys)
    if rule is None:
        others |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        where = {"q_offset": queries.start, "kv_offset": keys.start, "attention_mask": attention_mask}
        sizes = {"batch_size": batch_size, "q_length": len(queries), "kv_length": len(keys)}
        found: Array = theirs.sdpa_mask(**sizes, **where, mask_function=mask_function, **others)
        return found
    if attention_mask is not None:
        padded = theirs.prepare_padding_mask(attention_mask, len(keys), keys.start)[:, keys.start : keys.stop]
        padding = _of_keys(padded.bool())
        rule = rule if padding is None else _both(rule, padding)
    return rule


def _carried(mask: Array | None, n_queries: int, n_keys: int) -> Mask | Array | None:
    """Return what a tensor of `mask_of` carries, unless the model has made another tensor of it."""
    if mask is None or mask.device.type != "meta":
        return mask
    carried: Mask | Array | None = getattr(mask, "cqs_mask", None)
    if carried is None or tuple(mask.shape[-2:]) != (n_queries, n_keys):
        remedy = f"with checkpoints, use `use_reentrant=False`; if the model changes it, {_OTHERWISE}"
        got = f"one of shape {tuple(mask.shape)} for {n_queries} queries and {n_keys} keys"
        raise BackendError.of("attention_mask", "be the one that cqs made, as it was", got, remedy)
    return carried


def _rule(function: Callable[..., Any], queries: range, keys: range) -> Mask | None:
    """Return the rule that a mask function of `transformers` stands for, or None if it is none that is known.

    What it is a function of are numbers of tokens, those of `queries` and `keys`.
    """
    theirs, offset = import_module("transformers.masking_utils"), queries.start - keys.start
    if function is theirs.causal_mask_function:
        return Causal(offset)
    if function is theirs.bidirectional_mask_function:
        return NoMask()
    code = getattr(function, "__code__", None)  # which all have that one function made, and no other has
    held = dict(zip(code.co_freevars, function.__closure__ or (), strict=True)) if code is not None else {}
    if code is theirs.and_masks().__code__:
        rules = [_rule(part, queries, keys) for part in held["mask_functions"].cell_contents]
        known, everything = [rule for rule in rules if rule is not None], cast(Mask, NoMask())
        return reduce(_both, known, everything) if len(known) == len(rules) else None
    width = held["sliding_window"].cell_contents if "sliding_window" in held else 0
    if code is theirs.sliding_window_overlay(1).__code__ and width > 0:
        return SlidingWindow(width - 1, _ALL, offset)
    if code is theirs.sliding_window_bidirectional_overlay(1).__code__ and width >= 0:
        return SlidingWindow(width, width, offset)
    if code is theirs.chunked_overlay(1, None).__code__:
        size, padding = held["chunk_size"].cell_contents, held["left_padding"].cell_contents.cpu().numpy()[:, None]
        return _of_segments(*((np.arange(x.start, x.stop) - padding) // size for x in (queries, keys)))
    if code is theirs.packed_sequence_mask_function(None).__code__:
        numbers = held["packed_sequence_mask"].cell_contents.cpu().numpy()
        if max(queries.stop, keys.stop) <= numbers.shape[1]:
            return _of_segments(*(numbers[:, x.start : x.stop] for x in (queries, keys)))
    return None


def _of_segments(of_queries: Integers, of_keys: Integers) -> Mask | None:
    """Return the mask of tokens that see their own segment, whose number rises, `(B, tokens)`; None if they differ.

    A mask of documents is the same for all batch entries.
    """
    for numbers in (of_queries, of_keys):
        if (numbers != numbers[:1]).any() or (np.diff(numbers[0]) < 0).any():
            return None
    numbers = np.union1d(of_queries[0], of_keys[0])
    lengths = [
        np.searchsorted(own[0], numbers, "right") - np.searchsorted(own[0], numbers) for own in (of_queries, of_keys)
    ]
    return Documents(*(tuple(own.tolist()) for own in lengths))


def _both(a: Mask, b: Mask) -> Mask:
    """Return `a & b`, as one rule if there is one."""
    if NoMask() in (a, b):
        return b if a == NoMask() else a
    if isinstance(a, SlidingWindow) and isinstance(b, Causal) and a.offset == b.offset:
        return SlidingWindow(a.left, 0, a.offset)
    return a & b


def _of_keys(counts: Array) -> Mask | None:
    """Return the mask of keys that count, `(B, S)`, of which padding does not; None if all do."""
    found = counts.cpu().numpy()
    n, S = found.sum(axis=-1), found.shape[-1]
    if (n == S).all():
        return None
    if (found == (np.arange(S) < n[:, None])).all():
        return KeyLengths(n)
    if (found == (np.arange(S) >= S - n[:, None])).all():
        return ~KeyLengths(S - n)
    return Dense(found[:, None, None, :])
