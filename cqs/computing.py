"""How a worker computes one task: what it reads, what it keeps, and what it does when memory runs out."""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import cast

from cqs.backend import dtype_of, is_out_of_memory, namespace_of
from cqs.events import Emit, TaskRetried, TileDone
from cqs.kernels import Attend, KeyChunk, Region, attend_per_head
from cqs.masks import Coverage
from cqs.partial import Partial, merge_into
from cqs.problem import AttentionProblem
from cqs.reading import Direct, Feed
from cqs.schedule import Bundle, Grain, Group, Read, Strip, Task, divide, even_cuts, parts_of
from cqs.scores import Scores
from cqs.sources import Source
from cqs.types import Array

__all__ = ["Computation", "joined"]

_log = logging.getLogger("cqs")


@dataclass(frozen=True, slots=True)
class Computation:
    """What computing a task takes; see `cqs.Worker`."""

    problem: AttentionProblem
    attend: Attend
    scores: Scores | None
    grain: Grain
    source: Source
    threads: int
    emit: Emit

    def partials(self, task: Task, feed: Feed) -> tuple[Partial, ...]:
        """Compute a task, and whatever does not fit in parts; return the result of each strip."""
        if self.grain.keys is not None:
            return tuple(self._strips(task, feed))
        done: list[Partial] = []
        try:
            for partials in self._bundles(task, feed):
                done += partials
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = repr(error)
        else:
            return tuple(done)
        feed.skip(task.index)  # no frame of the failure is alive here, nor what it held
        return (*done, *self._divided(_rest(task, len(done)), reason))

    def _bundles(self, task: Task, feed: Feed) -> Iterator[list[Partial]]:
        """Read the task's keys, keep them, and yield the results of its strips, bundle by bundle."""
        held: dict[Group, KeyChunk] = {}
        queries: list[Array] = []
        try:
            for key in task.key_groups:
                held[key] = cast(KeyChunk, feed.take(Read("keys", key, task.heads), task.index))
            for bundle in task.bundles:
                queries += (feed.take(Read("queries", s.query, task.heads), task.index) for s in bundle.strips)
                partial = self._attend(task, bundle, queries, [held[key] for key in bundle.keys])
                feed.release(queries)
                queries.clear()
                yield list(_rows_of(partial, bundle))
        finally:
            feed.release([*held.values(), *queries])

    def _strips(self, task: Task, feed: Feed) -> Iterator[Partial]:
        """Yield the results of strips whose keys are streamed."""
        for strip in task.strips:
            try:
                yield self._streamed(task, strip, feed)
                continue
            except Exception as error:  # its queries and their sums do not fit, since steps look after themselves
                if not is_out_of_memory(error):
                    raise
                reason = repr(error)
            feed.skip(task.index)
            feed = Direct(self.source, self.emit)
            yield from self._divided(_of_strip(task, strip), reason)

    def _streamed(self, task: Task, strip: Strip, feed: Feed) -> Partial:
        """Read a strip's queries, keep them, and merge the results of its keys, which are read part by part."""
        assert self.grain.keys is not None
        group, most_rows, most_keys = strip.query, self.grain.rows or len(strip.query), self.grain.keys
        queries: Array = feed.take(Read("queries", group, task.heads), task.index)
        try:
            total = self._nothing(queries)
            for part in (part for key in strip.keys for part in parts_of(key, most_keys)):
                chunk = self._taken(task, part, feed)
                try:
                    for cut in even_cuts(len(group), most_rows):
                        here = slice(cut.start, cut.stop)
                        rows = Group(group.index, group.start + cut.start, group.start + cut.stop)
                        found = self._step(task, Strip(rows, (part,)), queries[..., here, :], chunk)
                        if found is not None:
                            merge_into(namespace_of(q=queries), [total.at(..., here)], [found])
                        del found
                finally:
                    feed.release([] if chunk is None else [chunk])
                    del chunk
            return total
        finally:
            feed.release([queries])

    def _nothing(self, queries: Array) -> Partial:
        """Return the partial result of queries that have met no key."""
        xp, p = namespace_of(q=queries), self.problem
        return Partial.empty(
            xp, (*queries.shape[:-1], p.value_width), dtype_of(xp, p.accumulator_dtype), queries.device
        )

    def _taken(self, task: Task, keys: Group, feed: Feed) -> KeyChunk | None:
        """Take keys that are streamed; None if there is no memory for so many at once."""
        try:
            return cast(KeyChunk, feed.take(Read("keys", keys, task.heads), task.index))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _step(self, task: Task, strip: Strip, queries: Array, chunk: KeyChunk | None) -> Partial | None:
        """Compute some rows against some keys, in parts if need be; return None if none sees any."""
        step, reason = _of_strip(task, strip), "its keys could not be read"
        if self.problem.mask.classify(strip.query.tokens, strip.keys[0].tokens) is Coverage.EMPTY:
            self._tell(task, step.bundles[0], perf_counter())
            return None
        if chunk is not None:
            try:
                return self._attend(task, step.bundles[0], [queries], [chunk])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = repr(error)
        (partial,) = self._divided(step, reason)
        return partial

    def _divided(self, task: Task, reason: str, depth: int = 1) -> tuple[Partial, ...]:
        """Compute a task that did not fit in parts, and parts of parts."""
        parts = divide(task)
        if len(parts) == 1:
            raise MemoryError(f"there is no memory for {next(task.tiles)}, which cannot be divided: {reason}")
        _log.warning("task %d ran out of memory and is divided (depth %d): %s", task.index, depth, reason)
        if self.emit is not None:
            self.emit(TaskRetried(task=task.index, start=perf_counter(), depth=depth, reason=reason))
        results = []
        for part in parts:
            done: list[Partial] = []
            try:
                for partials in self._bundles(part, Direct(self.source, self.emit)):
                    done += partials
                results.append((part, tuple(done)))
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = repr(error)
            rest = _rest(part, len(done))
            results.append((part, (*done, *self._divided(rest, reason, depth + 1))))
        return joined(task, results)

    def _attend(self, task: Task, bundle: Bundle, queries: list[Array], chunks: list[KeyChunk]) -> Partial:
        """Call the kernel."""
        start, xp = perf_counter(), namespace_of(q=queries[0])
        found = attend_per_head(
            self.attend,
            queries[0] if len(queries) == 1 else xp.concat(queries, axis=-2),
            chunks,
            scale=self.problem.scale,
            region=Region(
                queries=tuple(strip.query.tokens for strip in bundle.strips),
                keys=tuple(group.tokens for group in bundle.keys),
                mask=self.problem.mask,
                foreign=bundle.foreign,
                scores=self.scores,
            ),
            threads=self.threads,
            block_bytes=self.grain.block_bytes,
            heads=task.heads,
        )
        self._tell(task, bundle, start)
        return found

    def _tell(self, task: Task, bundle: Bundle, start: float) -> None:
        if self.emit is not None:
            n_rows, n_columns = sum(len(s.query) for s in bundle.strips), sum(map(len, bundle.keys))
            self.emit(TileDone(task=task.index, start=start, n_rows=n_rows, n_columns=n_columns))


def _rows_of(partial: Partial, bundle: Bundle) -> Iterator[Partial]:
    """Yield the result of each strip of a bundle."""
    first = 0
    for strip in bundle.strips:
        rows = slice(first, first + len(strip.query))
        yield partial.at(..., rows)
        first = rows.stop


def _of_strip(task: Task, strip: Strip) -> Task:
    """Return the part of a task that is one strip."""
    return Task(task.index, (Bundle((strip,), strip.keys, frozenset()),), task.heads)


def _rest(task: Task, n_done: int) -> Task:
    """Return the task without the bundles of its first strips."""
    bundles, n = list(task.bundles), 0
    while bundles and n < n_done:
        n += len(bundles.pop(0).strips)
    return Task(task.index, tuple(bundles), task.heads)


def joined(task: Task, results: Sequence[tuple[Task, Sequence[Partial]]]) -> tuple[Partial, ...]:
    """Merge the results of parts of a task into those of its strips, in the order of the parts."""
    xp = namespace_of(out=results[0][1][0].out)
    totals = {}
    for strip in task.strips:
        out = results[0][1][0].out
        shape = (*out.shape[:-2], len(strip.query), out.shape[-1])
        totals[strip.query.start] = Partial.empty(xp, shape, out.dtype, out.device)
    starts = sorted(totals)
    for part, partials in results:
        for strip, partial in zip(part.strips, partials, strict=True):
            start = starts[bisect_right(starts, strip.query.start) - 1]
            rows = slice(strip.query.start - start, strip.query.stop - start)
            merge_into(xp, [totals[start].at(..., rows)], [partial])
    return tuple(totals[strip.query.start] for strip in task.strips)
