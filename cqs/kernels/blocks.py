"""How a kernel walks over a strip: rows by rows, and for each the blocks of keys that those rows see. Integers only.

Small runs of keys are gathered into blocks of full size, because a matrix product of a few dozen columns costs
nearly as much as one of a few hundred; empty rectangles are left out, and only partial ones are marked for masking.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cqs.masks import Coverage, Mask

__all__ = ["KeyBlock", "Piece", "even_cuts", "key_blocks"]

_FINEST = 128  # a partly masked run of keys is halved down to this width, to find the part that needs no mask


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive keys `start` to `stop - 1` of chunk `chunk`, in the chunk's own counting."""

    chunk: int
    start: int
    stop: int
    masked: bool

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class KeyBlock:
    """The keys of one matrix product: pieces that stand side by side in its columns."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def is_one_run(self) -> bool:
        """Whether the keys lie side by side in one chunk already, so that nothing needs gathering."""
        pairs = zip(self.pieces, self.pieces[1:], strict=False)
        return all(a.chunk == b.chunk and a.stop == b.start for a, b in pairs)

    def masked_columns(self) -> Iterator[tuple[int, Piece]]:
        """Return, for each piece that needs the mask, its first column and the piece."""
        column = 0
        for piece in self.pieces:
            if piece.masked:
                yield column, piece
            column += len(piece)


def even_cuts(n: int, most: int) -> list[range]:
    """Cut 0..n-1 into the fewest ranges of at most `most`, of sizes that differ by at most 1.

    >>> even_cuts(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    parts = -(-n // most)
    return [range(i * n // parts, (i + 1) * n // parts) for i in range(parts)]


def key_blocks(rows: range, chunks: Sequence[range], mask: Mask, width: int) -> list[KeyBlock]:
    """Pack the keys that queries `rows` see into blocks of at most `width` keys.

    Parameters
    ----------
    rows : range
        Token numbers of the queries.
    chunks : sequence of range
        Token numbers of the keys of each chunk.
    mask : Mask
        Which keys each query sees.
    width : int
        Most keys a block may have.
    """
    pieces = [piece for c, tokens in enumerate(chunks) for piece in _visible_pieces(rows, c, tokens, tokens, mask)]
    n_blocks = -(-sum(len(piece) for piece in pieces) // width)
    total = sum(len(piece) for piece in pieces)
    blocks: list[KeyBlock] = []
    current: list[Piece] = []
    taken = 0  # keys in finished blocks and in `current`
    for piece in pieces:
        while len(piece):
            end = (len(blocks) + 1) * total // n_blocks  # where the current block is full
            cut = min(piece.stop, piece.start + end - taken)
            current.append(Piece(piece.chunk, piece.start, cut, piece.masked))
            taken += cut - piece.start
            piece = Piece(piece.chunk, cut, piece.stop, piece.masked)
            if taken == end:
                blocks.append(KeyBlock(tuple(current)))
                current = []
    return blocks


def _visible_pieces(rows: range, chunk: int, tokens: range, part: range, mask: Mask) -> Iterator[Piece]:
    """Drop what is empty, and halve what is partial until only its finest parts still are."""
    coverage = mask.classify(rows, part)
    if coverage is Coverage.EMPTY:
        return
    partial = coverage is Coverage.PARTIAL
    if partial and len(part) > _FINEST:
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            yield from _visible_pieces(rows, chunk, tokens, half, mask)
    else:
        yield Piece(chunk, part.start - tokens.start, part.stop - tokens.start, partial)
