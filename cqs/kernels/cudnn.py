"""The fast kernel for 16-bit CuPy arrays: NVIDIA's cuDNN where it knows the mask, another kernel for what is left."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from cqs.backend import CudaDevice, dtype_of, is_cupy, namespace_of
from cqs.kernels import blockwise, cudnn_graphs
from cqs.kernels.blocks import in_chunks
from cqs.kernels.by_coverage import Part, Shape, cut_by_coverage, part_of
from cqs.kernels.contract import Attend, KeyChunk, Request
from cqs.kernels.cudnn_repair import Repair
from cqs.kernels.region import Region
from cqs.masks.mask import merged
from cqs.partial import Partial, merge_into
from cqs.schedule import BLOCK_BYTES
from cqs.types import Array, Namespace

__all__ = ["attend", "refusal"]

_WIDEST = 256
_SMALL, _JOINED = 4, 32  # blocks: chunks that are joined have at most so many bytes each, and all of them together


def refusal(request: Request) -> str | None:
    """Return why this kernel cannot do what is asked for, and what would help; None if it can.

    The library is loaded only where all else fits.
    """
    p = request.problem
    if not is_cupy(request.xp):
        return "takes arrays of CuPy"
    if p.dtype not in cudnn_graphs.DTYPES:
        return f"takes float16 and bfloat16, not {p.dtype}"
    if any(width % 8 or width > _WIDEST for width in (p.width, p.value_width)):
        return f"takes head widths to {_WIDEST} in multiples of 8, not {p.width} and {p.value_width}"
    if request.has_scores:
        return "scores are changed before the mask"
    if not 2.0**-20 <= p.scale <= 2.0**20:
        return f"takes scales from 2^-20 to 2^20, not {p.scale:g}"
    numbers = [device.index for device in request.devices if isinstance(device, CudaDevice)]
    if not numbers:
        return cudnn_graphs.missing()
    reasons = map(cudnn_graphs.missing, numbers)  # one kernel for all of them
    return next((reason for reason in reasons if reason is not None), None)


def attend(
    q: Array,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
    other: Attend = blockwise.attend,
) -> Partial:
    r"""Compute attention by cuDNN, rectangle by rectangle, and merge the results on the device.

    See `cqs.kernels.Attend` for the arguments and the law, `refusal` for what is taken. Nothing is waited for: the work
    is queued on CuPy's current stream of q's device.

    Parameters
    ----------
    other : Attend
        The kernel that computes what cuDNN has no mask for, `cqs.kernels.by_coverage.Rest`, and whole calls whose
        scores are changed.

    Notes
    -----
    *Memory.* Beyond its arguments and its result a call holds at a time at most the first of these, and the larger of
    the others:

    - chunks that are joined: ``min(32 * block_bytes, bytes of all chunks)``, and 0 where no two neighbours have at most
      ``4 * block_bytes`` each;
    - while a part is computed: its result, ``4 * H * T * (E + 1)``, which is merged in place; copies of what cuDNN
      cannot read where it is, of contiguous arrays none, else ``2 * H * T * D + 2 * G * S * (D + E)``; and what cuDNN
      asks for, which is 256 bytes in every graph for Hopper, and taken to be a MiB;
    - while the rest is computed: the same with the largest rest's T, with what `other` holds instead of copies and
      workspace.

    H and G count the heads of all batch entries. cuDNN's graphs, code on the device, stay for later calls.

    *Values that are not finite.* A key that is hidden by a diagonal still takes part in its tile with weight 0, so an
    infinite or NaN number there can make NaN of rows that do not see it. So the keys and values of parts that have a
    diagonal are looked at once, and if one is not finite, `cqs.kernels.cudnn_repair` computes rows again that are
    not. Keys that no query of a part sees, as padding, are never read by cuDNN.
    """
    xp = namespace_of(q=q)
    *batch, H, T, _ = q.shape
    E = chunks[0].v.shape[-1]
    region = region or Region.whole(T, sum(chunk.k.shape[-2] for chunk in chunks))
    if region.scores is not None:
        return other(q, chunks, scale=scale, region=region, threads=threads, block_bytes=block_bytes)
    with q.device:
        q = _flat(xp, q)
        chunks = [KeyChunk(_flat(xp, chunk.k), _flat(xp, chunk.v)) for chunk in chunks if chunk.k.shape[-2]]
        chunks = _joined(xp, chunks, block_bytes)
        total = _Total.of(xp, q, E)
        cut = cut_by_coverage(region, [chunk.k.shape[-2] for chunk in chunks])
        cut_off = [part.columns for part in cut.parts if part.shape is not Shape.FULL]
        repair = Repair(_columns(chunks, merged(cut_off))) if total.out.size and cut_off else None
        for part in cut.parts if total.out.size else ():
            total.add_part(q, chunks, part, scale, repair)
        for rest in cut.rest if total.out.size else ():
            own = part_of(region, rest.rows, rest.pieces)
            found = other(
                q[:, :, rest.rows.start : rest.rows.stop, :],
                _columns(chunks, rest.pieces),
                scale=scale,
                region=own,
                threads=threads,
                block_bytes=block_bytes,
            )
            total.merge(rest.rows, found)
        total.fill(range(T))
        return Partial(xp.reshape(total.out, (*batch, H, T, E)), xp.reshape(total.lse, (*batch, H, T)))


@dataclass(slots=True)
class _Total:
    """The result so far, `(B, H, T, E)` and `(B, H, T)`, of which some rows are not written yet."""

    xp: Namespace
    out: Array
    lse: Array
    written: list[range] = field(default_factory=list)

    @classmethod
    def of(cls, xp: Namespace, q: Array, E: int) -> "_Total":
        """Allocate it."""
        dtype = dtype_of(xp, "float32")
        out = xp.empty((*q.shape[:-1], E), dtype=dtype, device=q.device)
        return cls(xp, out, xp.empty(q.shape[:-1], dtype=dtype, device=q.device))

    def at(self, rows: range) -> Partial:
        """Return a view of some rows."""
        return Partial(self.out[:, :, rows.start : rows.stop, :], self.lse[:, :, rows.start : rows.stop])

    def add_part(self, q: Array, chunks: Sequence[KeyChunk], part: Part, scale: float, repair: Repair | None) -> None:
        """Compute a part, into its rows where they are new, and else beside them."""
        [(number, columns)] = in_chunks([part.columns], [chunk.k.shape[-2] for chunk in chunks])
        here = slice(columns.start, columns.stop)
        is_new = not any(part.rows.start < rows.stop and rows.start < part.rows.stop for rows in self.written)
        view = self.at(part.rows)
        found = (
            view
            if is_new
            else Partial(*(self.xp.empty(a.shape, dtype=a.dtype, device=a.device) for a in (view.out, view.lse)))
        )
        queries = q[:, :, part.rows.start : part.rows.stop, :]
        keys = KeyChunk(*(array[:, :, here, :] for array in chunks[number]))
        cudnn_graphs.sdpa(queries, *keys, found.out, found.lse, scale=scale, shape=part.shape)
        if repair is not None and part.shape is not Shape.FULL:
            repair.rows(queries, keys, found, scale, part.shape)
        if is_new:
            self.written = list(merged([*self.written, part.rows]))
        else:
            self.merge(part.rows, found)

    def merge(self, rows: range, found: Partial) -> None:
        """Merge a result into some rows."""
        self.fill(rows)
        merge_into(self.xp, [self.at(rows)], [found])

    def fill(self, rows: range) -> None:
        """Write the identity of `merge` to those of the rows that are not written yet."""
        start = rows.start
        for done in [*self.written, range(rows.stop, rows.stop)]:
            if start < (stop := min(done.start, rows.stop)):
                view = self.at(range(start, stop))
                view.out[...], view.lse[...] = 0, -self.xp.inf
            start = max(start, done.stop)
        self.written = list(merged([*self.written, rows]))


def _flat(xp: Namespace, array: Array) -> Array:
    """View `(*B, H, T, D)` with any number of batch dimensions as 4-D."""
    return array if array.ndim == 4 else xp.reshape(array, (prod(array.shape[:-3]), *array.shape[-3:]))


def _joined(xp: Namespace, chunks: Sequence[KeyChunk], block_bytes: int) -> list[KeyChunk]:
    """Put small chunks that follow each other side by side: copying them costs less than a call for each."""
    groups: list[list[KeyChunk]] = []
    n_bytes = n_group = 0
    for chunk in chunks:
        own = chunk.k.nbytes + chunk.v.nbytes
        is_small = own <= _SMALL * block_bytes
        if groups and is_small and n_group and n_bytes + n_group + own <= _JOINED * block_bytes:
            groups[-1].append(chunk)
            n_group += own
        else:
            n_bytes += n_group if groups and len(groups[-1]) > 1 else 0
            groups.append([chunk])
            n_group = own if is_small else 0
    joined = []
    for group in groups:
        k, v = zip(*group, strict=True)
        joined.append(group[0] if len(group) == 1 else KeyChunk(_side_by_side(xp, k), _side_by_side(xp, v)))
    return joined


def _side_by_side(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Concatenate arrays of 16-bit numbers along the tokens, as integers: CuPy has few functions for bfloat16."""
    return xp.concat([array.view(xp.uint16) for array in arrays], axis=-2).view(arrays[0].dtype)


def _columns(chunks: Sequence[KeyChunk], pieces: Sequence[range]) -> list[KeyChunk]:
    """View the keys and values of some pieces of the columns."""
    return [
        KeyChunk(*(array[:, :, part.start : part.stop, :] for array in chunks[number]))
        for number, part in in_chunks(pieces, [chunk.k.shape[-2] for chunk in chunks])
    ]
