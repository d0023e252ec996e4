"""What a kernel is given: queries, and keys and values in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cqs.masks import Mask
from cqs.partial import Partial
from cqs.types import Array

__all__ = ["Attend", "KeyChunk"]


@dataclass(frozen=True, slots=True, eq=False)
class KeyChunk:
    """Consecutive keys with their values, of which the first is token `start`."""

    k: Array
    v: Array
    start: int = 0

    @property
    def tokens(self) -> range:
        """The token numbers of the keys."""
        return range(self.start, self.start + self.k.shape[-2])


class Attend(Protocol):
    """What every kernel is: a pure function from queries and chunks of keys to a partial result.

    *Law.* `attend(q, a + b)` equals `merge(attend(q, a), attend(q, b))` up to rounding, for any lists of chunks a and b.
    """

    def __call__(
        self, q: Array, chunks: Sequence[KeyChunk], *, scale: float, mask: Mask, q_start: int = 0, threads: int = 1
    ) -> Partial:
        """Attend to the chunks.

        Parameters
        ----------
        q : array, `(*B, H, T, D)`
            Queries, of which the first is token `q_start`.
        chunks : sequence of KeyChunk, at least one
            Keys `(*B, G, s, D)` and values `(*B, G, s, E)`, for any s, of the library, device and type of q.
        scale : float
            What scores are multiplied by.
        mask : Mask
            Which keys each query sees, by token number.
        q_start : int
            Token number of the first query.
        threads : int
            How many threads to compute on, where the kernel has threads of its own. The result does not depend on it.

        Returns
        -------
        Partial
            float32, or float64 for float64 inputs.
        """
