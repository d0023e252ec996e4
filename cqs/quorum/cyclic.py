"""The cyclic quorum set of a difference cover, and the closed form of who owns which pair."""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from cqs.errors import QuorumError
from cqs.quorum.choice import difference_cover
from cqs.quorum.cover import DifferenceCover

__all__ = ["CyclicQuorumSet"]


@dataclass(frozen=True, slots=True, init=False)
class CyclicQuorumSet:
    """The W translates D + i of a difference cover D, with one owner for each pair of residues.

    Worker i holds the groups `quorum(i)` = D + i. Because D is a difference cover, every two groups g and h lie
    together in some quorum, so a worker that holds both can compare them without asking anyone.

    Parameters
    ----------
    W : int
        The number of workers, groups and quorums.
    base : iterable of int, optional
        A difference cover of Z_W; by default the smallest known, `difference_cover(W)`.

    Raises
    ------
    QuorumError
        If `base` is not a difference cover, or none is known for W.

    Notes
    -----
    *Ownership.* For each difference d = 1 .. ceil(W/2) - 1 one pair (a, b) of elements with a - b = d is chosen,
    once. Worker i then owns both tiles of the pair {a + i, b + i}. What is left differs by parity:

    * W odd: worker i owns the diagonal tile of group c + i, for one c in D;
    * W even: with a - b = W/2, worker i < W/2 owns both tiles of {a + i, b + i}, and worker i + W/2, which holds the
      same two groups, owns their two diagonal tiles.

    So every one of the W^2 tiles has exactly one owner, who holds both of its groups, and everybody owns exactly W
    tiles. Under a causal mask a pair is one full tile and a diagonal half a tile, so loads stay equal: exactly for
    odd W, within a factor 1 + 2/(W n) for even W with n tokens a group. The paper's word for the removal of what others
    own is self-distillation; here nobody ever computes a tile that is not theirs.

    References
    ----------
    W.-S. Luk and T.-T. Wong, *Two new quorum based algorithms for distributed mutual exclusion*, Proceedings of the
    17th International Conference on Distributed Computing Systems (1997) 100-106, for the quorums.

    C. J. Kleinheksel and A. K. Somani, *Efficient distributed all-pairs algorithms: Management using optimal cyclic
    quorums*, IEEE Transactions on Parallel and Distributed Systems 29 (2018) 391-404, for pairs held together.

    Examples
    --------
    >>> quorums = CyclicQuorumSet(7)
    >>> quorums.quorum(5)
    (1, 5, 6)
    >>> quorums.holders(2, 4), quorums.owner(2, 4)
    ((1,), 1)
    >>> quorums.tiles(0)
    ((0, 0), (0, 1), (0, 3), (1, 0), (1, 3), (3, 0), (3, 1))
    """

    cover: DifferenceCover
    # _pairs[d - 1] = (a, b) with a - b = d mod W, for d = 1 .. W // 2; it follows from the cover
    _pairs: tuple[tuple[int, int], ...] = field(repr=False, compare=False)

    def __init__(self, W: int, base: Iterable[int] | None = None) -> None:
        cover = difference_cover(W) if base is None else DifferenceCover.of(W, base)
        W = cover.modulus
        first: dict[int, tuple[int, int]] = {}
        for a, b in product(cover.base, repeat=2):
            first.setdefault((a - b) % W, (a, b))
        object.__setattr__(self, "cover", cover)
        object.__setattr__(self, "_pairs", tuple(first[d] for d in range(1, W // 2 + 1)))

    @property
    def modulus(self) -> int:
        """W, the number of workers and of groups."""
        return self.cover.modulus

    @property
    def base(self) -> tuple[int, ...]:
        """The difference cover D, which is the quorum of worker 0."""
        return self.cover.base

    def quorum(self, i: int) -> tuple[int, ...]:
        """Return the groups that worker i holds, D + i modulo W, in increasing order."""
        W = self.modulus
        return tuple(sorted((a + self._worker(i)) % W for a in self.base))

    def holders(self, g: int, h: int) -> tuple[int, ...]:
        """Return the workers that hold both groups g and h, in increasing order: never none. O(m)."""
        W, elements = self.modulus, set(self.base)
        g, h = self._group("g", g), self._group("h", h)
        return tuple(sorted((g - a) % W for a in self.base if (h - g + a) % W in elements))

    def owner(self, g: int, h: int) -> int:
        """Return the one worker that owns the tile (query group g, key group h). O(1)."""
        W = self.modulus
        g, h = self._group("g", g), self._group("h", h)
        d = (g - h) % W
        if d == 0:
            return self._diagonal_owner(g)
        if 2 * d > W:  # the pair {g, h} is listed under the smaller of its two differences
            g, h, d = h, g, W - d
        a, _ = self._pairs[d - 1]
        i = (g - a) % W
        if 2 * d == W and 2 * i >= W:  # {a + i, b + i} is the same pair as for i - W/2
            i = (h - a) % W
        return i

    def tiles(self, i: int) -> tuple[tuple[int, int], ...]:
        """Return the W tiles (query group, key group) that worker i owns, in increasing order. O(W)."""
        return tuple(sorted(self._tiles(self._worker(i))))

    def ownership(self) -> npt.NDArray[np.int64]:
        """Return the W x W matrix whose entry (g, h) is the owner of that tile. For pictures and lessons."""
        W = self.modulus
        matrix = np.empty((W, W), dtype=np.int64)
        for i in range(W):
            for g, h in self._tiles(i):
                matrix[g, h] = i
        return matrix

    def _tiles(self, i: int) -> Iterator[tuple[int, int]]:
        W = self.modulus
        for d, (a, b) in enumerate(self._pairs, start=1):
            g, h = (a + i) % W, (b + i) % W
            if 2 * d < W or 2 * i < W:
                yield from ((g, h), (h, g))
            else:  # the second half of the workers take diagonals in place of the pair at distance W/2
                yield from ((g, g), (h, h))
        if W % 2 == 1:
            c = (self.base[0] + i) % W
            yield (c, c)

    def _diagonal_owner(self, g: int) -> int:
        W = self.modulus
        if W % 2 == 1:
            return (g - self.base[0]) % W
        a, b = self._pairs[W // 2 - 1]
        i = (g - a) % W
        if 2 * i >= W:
            i = (g - b) % W
        return i + W // 2

    def _worker(self, i: int) -> int:
        return self._index("i", i, "a worker")

    def _group(self, name: str, value: int) -> int:
        return self._index(name, value, "a group")

    def _index(self, name: str, value: int, what: str) -> int:
        rule = f"be {what} in 0..{self.modulus - 1}"
        try:
            index = operator.index(value)
        except TypeError:
            index = -1
        if not 0 <= index < self.modulus:
            raise QuorumError.of(name, rule, repr(value), "reduce it modulo W")
        return index
