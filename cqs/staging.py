"""Inputs on their way to a device: copied ahead of what is computed, through slots that are used again and again."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from cqs.backend import Session, Slot, is_out_of_memory, slot_bytes
from cqs.events import BytesUploaded, Emit
from cqs.kernels import KeyChunk
from cqs.reading import Feed, Groups, n_bytes_of
from cqs.schedule import Group, HeadBlock, Read, SlotBytes
from cqs.sources import Source
from cqs.types import Array

__all__ = ["DeviceSource", "Uploads"]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSource:
    """A source whose groups come as copies on a device: for what was not planned, as when a task is divided."""

    source: Source
    session: Session

    def queries(self, group: Group, heads: HeadBlock | None = None) -> Array:
        """Return the group's queries."""
        return self.session.upload(self.source.queries(group, heads))

    def keys(self, group: Group, heads: HeadBlock | None = None) -> KeyChunk:
        """Return the group's keys and values."""
        return KeyChunk(*map(self.session.upload, self.source.keys(group, heads)))


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A slot, and what it counts for: the bytes that it was made for, without what rounds them up."""

    slot: Slot
    n_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Uploaded:
    """Groups in a slot."""

    task: int
    read: Read
    groups: Groups
    place: _Place


class Uploads:
    """A `Feed` of a device: what comes next is copied in while something else is computed.

    All of it is done by the thread that computes, between the kernels that it launches: a launch returns at once.

    Parameters
    ----------
    session : Session
        The open device.
    feed : Feed
        Gives the groups in the memory of the machine.
    order : iterator of (int, Read, int) or None
        Task, what is read for it, and its bytes, in the order of `take`; None where it is not known yet what comes
        next, which nobody waits for, and is asked for again.
    limits : SlotBytes
        Bytes of all slots for keys, and for queries, without what rounds each of them up: to whole blocks, and by a
        token, so that it also holds a group that is longer by one. Only what somebody waits for may exceed them. One
        limit for both would be used up by queries, which are done with soon, and keys of the next task would wait.
    emit : function, optional
        Told of each group that is sent off.
    """

    def __init__(
        self,
        session: Session,
        feed: Feed,
        order: Iterator[tuple[int, Read, int] | None],
        limits: SlotBytes,
        emit: Emit = None,
    ) -> None:
        self._session = session
        self._feed = feed
        self._order = order
        self._limits = {"keys": limits.keys, "queries": limits.queries}
        self._emit = emit
        self._ready: deque[_Uploaded] = deque()
        self._taken: list[_Uploaded] = []
        self._spare: dict[str, list[_Place]] = {"queries": [], "keys": []}  # which differ in size
        self._held = {"queries": 0, "keys": 0}  # bytes of all slots
        self._fetched: tuple[int, Read, Groups | BaseException] | None = None  # from the feed, and in no slot yet
        self._skipped: set[int] = set()

    def take(self, read: Read, task: int) -> Groups:
        """Return groups on the device."""
        while not self._ready:
            self._upload_next(must=True)
        uploaded = self._ready.popleft()
        assert (uploaded.task, uploaded.read) == (task, read), "a worker reads in the order of its plan"
        self._taken.append(uploaded)
        uploaded.place.slot.wait()
        while self._upload_next(only_new=True):
            pass
        return uploaded.groups

    def release(self, groups: Iterable[Groups]) -> None:
        """Let slots be filled again, once what was told to compute so far has been computed; copy what comes next.

        Copying waits for pinned memory, and what is to be computed must not wait with it. So it is begun here, when
        there is something to compute meanwhile, and earlier only in new slots, which would wait for that, too.
        """
        for group in groups:
            uploaded = next((x for x in self._taken if x.groups is group), None)
            if uploaded is not None:
                self._taken.remove(uploaded)
                self._let_go(uploaded)
        while self._upload_next():
            pass

    def skip(self, task: int) -> None:
        """Let go of what was copied for a task, and copy no more for it."""
        self._skipped.add(task)
        for held in self._ready, self._taken:  # taken, and not passed on: waiting for its copy failed
            for uploaded in [x for x in held if x.task == task]:
                held.remove(uploaded)
                self._let_go(uploaded)
        if self._fetched is not None and self._fetched[0] == task:
            groups, self._fetched = self._fetched[2], None
            self._feed.release([] if isinstance(groups, BaseException) else [groups])
        self._feed.skip(task)
        self._drop_spare()  # whoever skips ran out of memory

    def _let_go(self, uploaded: _Uploaded) -> None:
        uploaded.place.slot.free()
        self._spare[uploaded.read.what].append(uploaded.place)

    def _upload_next(self, must: bool = False, only_new: bool = False) -> bool:
        """Copy what comes next, if there is a slot for it; say whether there was anything, and a slot.

        What goes wrong is raised only to whoever waits for it.
        """
        start = perf_counter()
        if self._fetched is None:
            self._fetched = self._fetch()
        if self._fetched is None:
            assert not must, "a worker reads no more than its plan says"
            return False
        task, read, groups = self._fetched
        if isinstance(groups, BaseException):
            if not must:
                return False
            self._fetched = None
            raise groups
        try:
            uploaded = self._uploaded(task, read, groups, must, only_new)
        except BaseException:
            if must:  # whoever waits goes on without these, to what comes after them
                self._fetched = None
                self._feed.release([groups])
            raise
        if uploaded is None:
            return False
        self._fetched = None
        self._feed.release([groups])
        self._ready.append(uploaded)
        if self._emit is not None:
            self._emit(BytesUploaded(task=task, start=start, n_bytes=n_bytes_of(groups)))
        return True

    def _uploaded(self, task: int, read: Read, groups: Groups, must: bool, only_new: bool) -> _Uploaded | None:
        """Send groups off to a slot; None if there is none."""
        arrays = groups if isinstance(groups, KeyChunk) else (groups,)
        place = self._place_of(read.what, arrays, must, only_new)
        if place is None:
            return None
        try:
            filled = place.slot.fill(arrays)
        except Exception as error:
            self._spare[read.what].append(place)
            if must or not is_out_of_memory(error):
                raise
            return None
        return _Uploaded(task, read, KeyChunk(*filled) if read.what == "keys" else filled[0], place)

    def _fetch(self) -> tuple[int, Read, Groups | BaseException] | None:
        """Take what comes next from the feed."""
        for entry in self._order:
            if entry is None:
                return None
            task, read, _ = entry
            if task in self._skipped:
                continue
            try:
                return task, read, self._feed.take(read, task)
            except Exception as error:
                return task, read, error
        return None

    def _place_of(self, what: str, arrays: Sequence[Array], must: bool, only_new: bool) -> _Place | None:
        """Return a slot: one that was used before and is free, or a new one if there is room, or one to wait for."""
        spare, n_bytes = self._spare[what], sum(array.nbytes for array in arrays)
        size, a_token = slot_bytes(arrays), sum(array.nbytes // max(array.shape[-2], 1) for array in arrays)
        fitting = next((place for place in spare if place.slot.size >= size), None)
        has_room = self._held[what] + n_bytes <= self._limits[what]
        if fitting is not None and not only_new and (fitting.slot.is_free() or (must and not has_room)):
            spare.remove(fitting)
            return fitting
        if not (has_room or must):
            return None
        if not has_room:
            self._drop_spare()
        slot = self._new_slot(size + a_token, must)
        if slot is None:
            return None
        self._held[what] += n_bytes
        return _Place(slot, n_bytes)

    def _new_slot(self, size: int, must: bool) -> Slot | None:
        try:
            return self._session.slot(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not must:
                return None
        self._drop_spare()
        return self._session.slot(size)

    def _drop_spare(self) -> None:
        """Give back the memory of slots that nobody uses, once nothing is copied or computed in them."""
        self._session.synchronise()
        for what, spare in self._spare.items():
            self._held[what] -= sum(place.n_bytes for place in spare)
            spare.clear()
