"""How a plan cuts its problem: what its tasks follow from, and nothing of what they run on."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from cqs.schedule.grain import Grain

__all__ = ["Cut"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Strategy, workers, cover and grain, as of `Plan`.

    Parameters
    ----------
    strategy : {"cqs", "tiles", "ring", "tree"}
        How the score matrix is cut.
    workers : int
        Into how many tasks, for each block of heads.
    base : tuple of int or None
        The difference cover, for "cqs".
    grain : Grain
        How finely the work is cut beyond that.
    """

    strategy: str
    workers: int
    base: tuple[int, ...] | None
    grain: Grain

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self) | {"base": None if self.base is None else list(self.base)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave. What is no cut raises KeyError, TypeError or a CQSError."""
        base = values["base"]
        grain = Grain(**values["grain"])
        return cls(values["strategy"], values["workers"], None if base is None else tuple(base), grain)
