"""Partial results merged on a GPU in one launch: array code would take thirty, and pass over the numbers four times."""

from cqs.cuda.compiling import launch
from cqs.cuda.strides import stacks, steps_of
from cqs.types import Array

__all__ = ["merge_rows"]

_THREADS, _WARP = 256, 32  # of a block, and of those the ones that take a row
_MOST_BLOCKS = 2048


def merge_rows(out: Array, lse: Array, part_out: Array, part_lse: Array) -> None:
    """Merge a partial result into another, in place, on the current stream; nothing is allocated or waited for.

    Parameters
    ----------
    out, part_out : CuPy arrays, `(*L, n, E)`
        Of float32 or float64, with any strides.
    lse, part_lse : CuPy arrays, `(*L, n)`
        Of the same type.
    """
    if not out.size:
        return
    option = "-DREAL=float" if out.itemsize == 4 else "-DREAL=double"
    for total, sums, part, part_sums in stacks(out, lse[..., None], part_out, part_lse[..., None]):
        n_matrices, n_rows, width = total.shape
        launch(
            *("merge_rows.cu", option, "merge_rows"),
            *(min(-(-n_matrices * n_rows * _WARP // _THREADS), _MOST_BLOCKS), _THREADS),
            *(total, *steps_of(total, 3), sums, *steps_of(sums, 2)),
            *(part, *steps_of(part, 3), part_sums, *steps_of(part_sums, 2)),
            *(n_matrices, n_rows, width),
        )
