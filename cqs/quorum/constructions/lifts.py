"""Lifting a cover by a ruler: from Z_v to any modulus up to 2 L v + 1, and a little beyond."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.construction import Construction, registered
from cqs.quorum.constructions.amendments import Repaired
from cqs.quorum.constructions.cut import best_moves
from cqs.quorum.constructions.moves import move
from cqs.quorum.constructions.repair import repair
from cqs.quorum.constructions.wichmann_rulers import reach_of_ruler
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.hall import cover_steps, covers
from cqs.quorum.proof import Step

__all__ = ["Lift", "lift", "partial_lift"]

_N_MOVES = 8  # that are tried for a partial lift


@registered
@dataclass(frozen=True, slots=True)
class Lift:
    r"""Copies of a cover of Z_v, one at each mark of a ruler whose unit is v.

    Parameters
    ----------
    cover : Construction
        Of a cover D of Z_v.
    ruler : tuple of int
        Marks R, in increasing order from 0.
    modulus : int
        W.

    Notes
    -----
    *Theorem.* Let D cover Z_v, as integers 0..v-1, and let the ruler R measure every length up to L. Then
    :math:`D + v R` covers Z_W for every :math:`W \le 2 L v + 1`.

    *Proof.* Every residue is x or -x for an integer :math:`0 \le x \le L v`. D has a, b with
    :math:`a - b \equiv x \pmod v`, and :math:`-v < a - b < v`. So :math:`x = (a - b) + v t` with
    :math:`0 \le t \le L`, since :math:`v t > x - v \ge -v` and :math:`v t < x + v \le (L + 1) v`; and t is a difference
    of two marks.

    With a perfect D of :math:`\sqrt v` elements the lift has about :math:`|R| / \sqrt{2 L} \cdot \sqrt W`: 1.155 for
    R = {0, 1, 4, 6}. Beyond :math:`2 L v + 1` the same proof covers every x up to L v, and some more.

    References
    ----------
    J. Leech, *On the representation of 1, 2, ..., n by differences*, Journal of the London Mathematical Society 31
    (1956) 160-169, multiplies difference bases so; S. W. Golomb's rulers are the case of marks that never repeat.
    """

    kind: ClassVar[str] = "lift"

    cover: Construction
    ruler: tuple[int, ...]
    modulus: int

    def elements(self) -> tuple[int, ...]:
        """Return a + v r for all a and r, modulo W. O(m)."""
        v = self.cover.modulus
        return tuple(sorted({(a + v * r) % self.modulus for a in self.cover.elements() for r in self.ruler}))

    def steps(self) -> Iterator[Step]:
        """Yield: the cover, what the ruler measures, and how far that reaches."""
        v, W, L = self.cover.modulus, self.modulus, reach_of_ruler(self.ruler)
        yield Step(f"D is a cover of Z_{v}: {self.cover}", check=lambda: covers(self.cover))
        yield from cover_steps(self.cover)
        yield Step(
            f"the ruler R = {self.ruler} measures every length from 1 to {L}",
            rf"\{{1, \dots, {L}\}} \subseteq R - R",
            lambda: {b - a for a, b in combinations(self.ruler, 2)} >= set(range(1, L + 1)),
        )
        is_whole = 2 * L * v + 1 >= W
        sign = r"\le" if is_whole else ">"
        yield Step(
            f"so D + {v} R reaches every x from 0 to L v = {L * v}"
            + (f", which is half of the way around Z_{W}" if is_whole else f", of {W // 2} that it takes for Z_{W}"),
            rf"x = (a - b) + {v}\,(r - r'), \quad W = {W} {sign} 2 L v + 1 = {2 * L * v + 1}",
            lambda: (L * v >= W // 2) is is_whole,
        )

    def __str__(self) -> str:
        return f"lift of Z_{self.cover.modulus} ({self.cover}) by the ruler {self.ruler}"


def lift(cover: DifferenceCover, ruler: tuple[int, ...], W: int) -> DifferenceCover:
    """Return the cover D + v R of Z_W; see `Lift`.

    Parameters
    ----------
    cover : DifferenceCover
        D, of Z_v.
    ruler : tuple of int
        R, marks in increasing order from 0, that measure every length up to L.
    W : int
        At most 2 L v + 1.

    Returns
    -------
    DifferenceCover
        Of at most `cover.size * len(ruler)` elements. O(W + m^2).

    Raises
    ------
    QuorumError
        If W is too large, or the ruler does not begin at 0 or does not increase.

    Examples
    --------
    >>> from cqs.quorum import difference_cover
    >>> lift(difference_cover(7), (0, 1, 4, 6), 85).size
    12
    """
    W, most = _checked(cover, ruler, W)
    if most < W:
        remedy = "use a longer ruler, a cover of a larger modulus, or `partial_lift`"
        raise QuorumError.of("W", f"be at most 2 L v + 1 = {most}", W, remedy)
    return DifferenceCover.by(Lift(cover.construction, ruler, W))


def partial_lift(
    cover: DifferenceCover, ruler: tuple[int, ...], W: int, most_added: int | None = None
) -> DifferenceCover | None:
    r"""Return D + v R with elements added until it covers Z_W, where W may be larger than 2 L v + 1.

    Parameters
    ----------
    cover, ruler, W
        As for `lift`, but that W has no limit.
    most_added : int, optional
        Give up and return None where more would have to be added; by default never.

    Notes
    -----
    What is beyond the ruler's reach is reached in part, and how much of it depends on which integers stand for the
    elements of D. So D is moved first, multiplied and shifted as `best_moves` finds it best. Then elements are added,
    one at a time, each the one that reaches most of what is left.

    The ruler may have gaps, or none of the small lengths: what counts is what it measures around the circle. One that
    is a cover of Z_k, as {0, 1, 6, 8, 18} is of Z_21, gives almost a cover near W = k v, and a `product` there.

    If the last of its marks goes around, and :math:`\sigma = v \max R - W` lies between -v and v, one element is saved:
    D has a, b with :math:`a - b \equiv \sigma`, and cut open such that these are equal, a is the same residue as the
    copy of b at that mark. So R = {0, 16, 17, 28, 36, 42, 46, 49, 51, 73}, which measures 1 to 37 and is, modulo 73,
    nine marks that cover Z_73 and one of them again, gives 10 (q + 1) - 1 elements for 72 v < W < 74 v.
    """
    W, reach = _checked(cover, ruler, W)
    moves = [(t, s) for _, t, s in best_moves(cover, ruler, W)[:_N_MOVES]] if reach < W else [(1, 0)]
    around = cover.modulus * ruler[-1] - W
    if 0 < abs(around) < cover.modulus:
        a, b = cover.witness(around)
        moves.insert(0, (1, -(b if around > 0 else a) % cover.modulus))
    best: DifferenceCover | None = None
    for factor, shift in moves:
        moved = cover if (factor, shift) == (1, 0) else move(cover, factor, shift)
        lifted = Lift(moved.construction, ruler, W)
        added = repair(W, lifted.elements(), most_added)
        if added is not None:
            best = DifferenceCover.by(Repaired(lifted, added) if added else lifted)
            most_added = len(added) - 1
            if not added:
                break
    return best


def _checked(cover: DifferenceCover, ruler: tuple[int, ...], W: int) -> tuple[int, int]:
    W = whole_number("W", W, 1, "W is the number of workers", QuorumError)
    if not ruler or ruler[0] != 0 or list(ruler) != sorted(set(ruler)):
        raise QuorumError.of("ruler", "be marks in increasing order from 0", ruler, "for example (0, 1, 4, 6)")
    return W, 2 * reach_of_ruler(ruler) * cover.modulus + 1
