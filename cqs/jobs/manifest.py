"""What the directory of a job says of the call that began it."""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any, Self

from cqs.errors import CQSError
from cqs.schedule import Cut

__all__ = ["Manifest"]

_FORMAT = "cqs.job/2"  # another, whenever a plan cuts otherwise or a result is written otherwise
_KINDS = {"identity": dict, "n_tasks": int, "kernel": str, "key": str}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a job is of.

    Parameters
    ----------
    identity : dict
        What decides its results, beside the numbers in the inputs; see `cqs.jobs.identity`.
    inputs : dict
        Of each input, by its name, the SHA-256 of its numbers, and by what its file is known.
    n_tasks : int
        How many results there will be.
    kernel : str
        What computes them.
    cut : Cut
        How the plan cuts the problem.
    key : str
        Which job it is: one that is begun anew at the same place has another, and takes no results of this one.
    """

    identity: dict[str, Any]
    inputs: dict[str, Any]
    n_tasks: int
    kernel: str
    cut: Cut
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_json(self) -> str:
        """Write it as JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"format": _FORMAT} | values | {"cut": self.cut.to_dict()}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            Saying what is wrong with it.
        """
        try:
            values = dict(json.loads(text))
            if values.pop("format", None) != _FORMAT:
                raise ValueError(f"it is not in the format {_FORMAT}")
            if not all(isinstance(values["inputs"][name]["sha256"], str) for name in ("q", "k", "v")):
                raise TypeError("inputs have no hashes")
            if not all(isinstance(values[name], kind) for name, kind in _KINDS.items()):
                raise TypeError("a value has another type")
            return cls(**values | {"cut": Cut.from_dict(values["cut"])})
        except (CQSError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it was written by another cqs, or changed ({type(error).__name__}: {error})") from None
