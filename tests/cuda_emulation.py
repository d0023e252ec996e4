"""What the CUDA kernels of the package do, in NumPy: statement by statement, all rows at once.

`on_cpu` runs the CUDA sources themselves instead, compiled by g++. `use` puts either into a fake GPU.
"""

from collections.abc import Callable
from typing import Any

import cuda_on_cpu
import fake_cupy
import numpy as np
from numpy.lib.stride_tricks import as_strided

_NAMED_ALIKE = "attend_rows", "merge_rows", "scan_values"  # as their files; the others are in softmax_block.cu


def _at(first: np.ndarray, shape: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray:
    """View memory from the first element of an array on, as a kernel does; steps are in elements."""
    return as_strided(first, tuple(map(int, shape)), tuple(int(step) * first.itemsize for step in steps))


def _seen_by(n_rows: int, n_columns: int, bounds: Any, bits: Any, bits_pitch: int) -> np.ndarray:
    """Say which columns each row sees, `(n_rows, n_columns)`."""
    column = np.arange(n_columns)
    if bounds is not None:
        both = _at(bounds, (2, n_rows, 1), (n_rows, 1, 1))
        return (column >= both[0]) & (column < both[1])
    if bits is None:
        return np.ones((n_rows, n_columns), dtype=bool)
    return (_at(bits, (n_rows, bits_pitch), (bits_pitch, 1))[:, column >> 3] >> (column & 7) & 1).astype(bool)


@fake_cupy.kernel("softmax_block", writes=(0, 4, 5, 6, 9), launch=True)
def softmax_block(
    scores: Any, pitch: int, n_rows: int, n_columns: int,
    top: Any, total: Any,
    out: Any, out_step: int, width: int, hold: Any,
    bounds: Any, bits: Any, bits_pitch: int,
    facts: Any, factor: Any, is_first: int,
    grid: Any, **_: Any,
) -> None:  # fmt: skip
    heads = grid[0] // n_rows
    sees = _seen_by(n_rows, n_columns, bounds, bits, bits_pitch)
    own = _at(scores, (heads, n_rows, n_columns), (n_rows * pitch, pitch, 1))
    top, total = (_at(x, (heads, n_rows), (n_rows, 1)) for x in (top, total))

    largest = np.fmax.reduce(np.where(sees, own, -np.inf), axis=-1, initial=-np.inf)

    old_top = np.full_like(top, -np.inf) if is_first else top.copy()
    new_top = np.fmax(old_top, largest)
    shift = np.where(new_top == -np.inf, 0, new_top)
    scale = factor if facts[1] else own.dtype.type(1)
    weight = np.where(sees, np.exp(own - shift[..., None]), 0).astype(own.dtype)
    sums_of_weights = weight.sum(axis=-1)
    own[...] = weight * scale

    rescale = np.where(old_top == new_top, 1, np.exp(old_top - new_top)).astype(own.dtype)
    sums = _at(out, (heads, n_rows, width), (out_step, width, 1))
    if not is_first:
        np.multiply(sums, rescale[..., None], out=sums, where=(rescale != 1)[..., None])
    if hold is not None and facts[0]:
        _at(hold, sums.shape, (n_rows * width, width, 1))[...] = 0 if is_first else sums
    top[...] = new_top
    total[...] = (0 if is_first else total * rescale) + sums_of_weights


@fake_cupy.kernel("repair_values", writes=(9,))
def repair_values(
    weights: Any, weights_step: int, pitch: int, n_matrices: int, n_rows: int, n_columns: int,
    values: Any, values_step: int, values_pitch: int,
    out: Any, out_step: int, width: int, hold: Any, hold_step: int,
    bounds: Any, bits: Any, bits_pitch: int,
    facts: Any,
) -> None:  # fmt: skip
    if not facts[0]:
        return
    sees = _seen_by(n_rows, n_columns, bounds, bits, bits_pitch)
    own = _at(weights, (n_matrices, n_rows, n_columns), (weights_step, pitch, 1))
    value = _at(values, (n_matrices, n_columns, width), (values_step, values_pitch, 1))
    sums = _at(out, (n_matrices, n_rows, width), (out_step, width, 1))
    held = _at(hold, sums.shape, (hold_step, width, 1))
    for matrix, row, e in np.argwhere(~np.isfinite(sums)):
        terms = (own[matrix, row] * value[matrix, :, e])[sees[row]]
        sums[matrix, row, e] = held[matrix, row, e] + terms.sum(dtype=own.dtype)


@fake_cupy.kernel("finish_rows", writes=(0, 5), launch=True)
def finish_rows(
    out: Any, out_step: int, width: int, top: Any, total: Any,
    lse: Any, lse_step: int, n_rows: int, facts: Any, factor: Any,
    grid: Any, **_: Any,
) -> None:  # fmt: skip
    heads = grid[0] // n_rows
    top, total = (_at(x, (heads, n_rows), (n_rows, 1)) for x in (top, total))
    divisor = np.where(total == 0, 1, total).astype(out.dtype)
    scaled = divisor * factor if facts[1] else divisor
    _at(out, (heads, n_rows, width), (out_step, width, 1))[...] /= scaled[..., None]
    lses = np.where(total == 0, -np.inf, top + np.log(divisor))
    _at(lse, (heads, n_rows), (lse_step, 1))[...] = lses


@fake_cupy.kernel("scan_values", writes=(9,))
def scan_values(
    values: Any, n_matrices: int, n_rows: int, width: int,
    matrix_step: int, row_step: int, column_step: int,
    exponent: Any, large: Any, facts: Any,
) -> None:  # fmt: skip
    word = np.dtype(f"u{values.itemsize}").type
    elements = _at(values, (n_matrices, n_rows, width), (matrix_step, row_step, column_step))
    bits = elements.copy().view(word) & word(exponent)
    is_infinite = bits == word(exponent)
    is_large = ~is_infinite & (bits >= word(large))
    if is_infinite.any():
        facts[0] = 1
    if is_large.any():
        facts[1] = 1


@fake_cupy.kernel("attend_rows", writes=(15, 19))
def attend_rows(
    q: Any, q_entry: int, q_head: int, q_row: int, q_column: int,
    k: Any, k_entry: int, k_head: int, k_row: int, k_column: int,
    v: Any, v_entry: int, v_head: int, v_row: int, v_column: int,
    out: Any, out_entry: int, out_head: int, out_row: int,
    lse: Any, lse_entry: int, lse_head: int,
    n_entries: int, n_heads: int, shared: int, n_rows: int, n_columns: int, width: int, value_width: int,
    scale: Any, is_left: int, is_right: int, facts: Any,
) -> None:  # fmt: skip
    if not facts[0]:
        return
    n_kv, lead = n_heads // shared, (n_entries, n_heads, n_rows)
    queries = _at(q, (*lead, width), (q_entry, q_head, q_row, q_column)).astype(np.float32)
    keys = _at(k, (n_entries, n_kv, n_columns, width), (k_entry, k_head, k_row, k_column)).astype(np.float32)
    values = _at(v, (n_entries, n_kv, n_columns, value_width), (v_entry, v_head, v_row, v_column)).astype(np.float32)
    sums, lses = (
        _at(out, (*lead, value_width), (out_entry, out_head, out_row, 1)),
        _at(lse, lead, (lse_entry, lse_head, 1)),
    )
    for b, h, r in np.argwhere(~(np.isfinite(sums).all(axis=-1) & np.isfinite(lses))):
        seen = slice(r if is_left else 0, r + n_columns - n_rows + 1 if is_right else n_columns)
        scores = keys[b, h // shared, seen] @ queries[b, h, r] * scale
        top = np.fmax.reduce(scores, initial=np.float32(-np.inf))
        weights = np.exp(scores - (0 if top == -np.inf else top))
        total = weights.sum()
        sums[b, h, r] = weights / (total if total != 0 else 1) @ values[b, h // shared, seen]
        lses[b, h, r] = -np.inf if total == 0 else (0 if top == -np.inf else top) + np.log(total)


@fake_cupy.kernel("merge_rows", writes=(0, 4))
def merge_rows(
    out: Any, out_matrix: int, out_row: int, out_column: int,
    lse: Any, lse_matrix: int, lse_row: int,
    part: Any, part_matrix: int, part_row: int, part_column: int,
    part_lse: Any, part_lse_matrix: int, part_lse_row: int,
    n_matrices: int, n_rows: int, width: int,
) -> None:  # fmt: skip
    total = _at(out, (n_matrices, n_rows, width), (out_matrix, out_row, out_column))
    own = _at(part, total.shape, (part_matrix, part_row, part_column))
    a = _at(lse, total.shape[:-1], (lse_matrix, lse_row))
    b = _at(part_lse, total.shape[:-1], (part_lse_matrix, part_lse_row))
    top = np.maximum(a, b)
    shift = np.where(top == -np.inf, 0, top)
    share_a, share_b = np.exp(a - shift), np.exp(b - shift)
    divisor = np.maximum(share_a + share_b, 1)
    total[...] = total * (share_a / divisor)[..., None] + own * (share_b / divisor)[..., None]
    a[...] = top + np.log(divisor)


_KERNELS = softmax_block, repair_values, finish_rows, scan_values, attend_rows, merge_rows
NUMPY = {kernel.__name__: kernel for kernel in _KERNELS}


def _on_cpu(name: str) -> Callable[..., None]:
    """Return the kernel itself, run on the CPU, with what the fake wants to know of it."""

    def run(*arguments: Any, grid: Any, block: Any, **_: Any) -> None:
        option = f"-DREAL={'float' if arguments[0].itemsize == 4 else 'double'}"
        if name == "scan_values":
            option = f"-DWORD_BYTES={arguments[0].itemsize}"
        if name == "attend_rows":
            option = f"-DEXPONENT_BITS={5 if arguments[0].dtype == np.float16 else 8}"
        file = f"{name}.cu" if name in _NAMED_ALIKE else "softmax_block.cu"
        cuda_on_cpu.launch(file, option, name, grid[0], block[0], arguments)

    run.writes, run.wants_launch = NUMPY[name].writes, True  # type: ignore[attr-defined]
    return run


ON_CPU = {name: _on_cpu(name) for name in NUMPY}
