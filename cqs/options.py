"""The keyword arguments that several calls take, as type checkers are to know them: `cqs.attention` describes them."""

from concurrent.futures import Executor
from typing import TypedDict

from cqs.engines import Engine
from cqs.events import Emit
from cqs.masks import Mask
from cqs.scores import ALiBi
from cqs.types import Array

__all__ = ["Options"]


class Options(TypedDict, total=False):
    """What may be given to `cqs.attention` and to `cqs.attention_backward` beside arrays."""

    workers: int | None
    memory: int | str | None
    mask: Mask | Array | None
    is_causal: bool
    scale: float | None
    softcap: float | None
    bias: Array | ALiBi | None
    kernel: str
    engine: Engine | Executor | None
    strategy: str
    on_event: Emit
