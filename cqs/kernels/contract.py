"""What every kernel is given and gives back."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cqs.backend import Device
from cqs.kernels.region import Region
from cqs.partial import Partial
from cqs.problem import AttentionProblem
from cqs.schedule import BLOCK_BYTES
from cqs.types import Array, Namespace

__all__ = ["Attend", "KeyChunk", "Request"]


class Request(NamedTuple):
    """What a kernel would have to do, by which it says whether it can.

    Parameters
    ----------
    xp : namespace
        Of the arrays that it would be given.
    problem : AttentionProblem
        With type, widths and mask.
    has_scores : bool
        Whether scores are changed before the mask.
    devices : tuple of Device
        That it would run on; none for the device that is current.
    """

    xp: Namespace
    problem: AttentionProblem
    has_scores: bool
    devices: tuple[Device, ...] = ()


class KeyChunk(NamedTuple):
    """Some keys and their values: `(*B, G, s, D)` and `(*B, G, s, E)` for any s."""

    k: Array
    v: Array


class Attend(Protocol):
    """A pure function from queries and chunks of keys to a partial result.

    *Law.* Where all is visible, `attend(q, a + b)` equals `merge(attend(q, a), attend(q, b))` up to rounding, for any
    lists of chunks a and b: attention maps the joining of lists to `merge`.
    """

    def __call__(
        self,
        q: Array,
        chunks: Sequence[KeyChunk],
        *,
        scale: float,
        region: Region | None = None,
        threads: int = 1,
        block_bytes: int = BLOCK_BYTES,
    ) -> Partial:
        """Attend to the chunks.

        Parameters
        ----------
        q : array, `(*B, H, T, D)`
            Queries.
        chunks : sequence of KeyChunk, at least one
            Keys and values, side by side, of the library, device and type of q; H is a multiple of G.
        scale : float
            What scores are multiplied by.
        region : Region, optional
            Which tokens the rows and columns are, and what is visible; by default all of it.
        threads : int
            How many threads to compute on, where the kernel has threads of its own. The result does not depend on it.
        block_bytes : int
            About how large a block of scores may be, where the kernel works in blocks. It decides in which order
            numbers are added. `cqs.schedule.scratch_bytes` says what a call holds.

        Returns
        -------
        Partial
            In float32, or float64 for float64 inputs.
        """
