"""A published batch: an index and a body of events that are framed already.

Every event in the body stands as field 1 of WatchSessionResponse and StreamRunResponse: tag 0x0a, length, bytes. So an
edge filters by slicing and relays without decoding, and two bodies joined are again a valid response.

Layout, little-endian: committed last_sequence u64, count u32, then `count` entries of (sequence u64 or 0, kind u16,
length u32 with the framing, run id 16 bytes or zeros), then the body.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

__all__ = ["Entry", "LiveBatch", "frame_event"]

_HEADER = struct.Struct("<QI")
_ENTRY = struct.Struct("<QHI16s")
_NO_RUN = bytes(16)
# Filters whose result a batch keeps: nearly all watchers have one of a few.
_KEPT = 4


class Entry(NamedTuple):
    """One event of a batch: `body` is its framed bytes."""

    sequence: int
    kind: int
    run: bytes
    body: bytes


def frame_event(data: bytes) -> bytes:
    """An event's bytes as field 1 of a streamed response."""
    size = len(data)
    out = bytearray(b"\x0a")
    while size > 0x7F:
        out.append((size & 0x7F) | 0x80)
        size >>= 7
    out.append(size)
    out += data
    return bytes(out)


class LiveBatch:
    """Events that travel together. `first` and `last` are its durable numbers, 0 when it has none."""

    __slots__ = ("_selected", "count", "entries", "first", "last", "last_sequence", "live", "size")

    def __init__(self, last_sequence: int, entries: Sequence[Entry]) -> None:
        self.last_sequence = last_sequence
        self.entries = entries
        self.count = len(entries)
        self.size = sum(len(entry.body) for entry in entries)
        numbers = [entry.sequence for entry in entries if entry.sequence]
        self.first = numbers[0] if numbers else 0
        self.last = numbers[-1] if numbers else 0
        self.live = len(entries) - len(numbers)
        self._selected: dict[tuple[frozenset[int] | None, bytes | None, bool], tuple[bytes, int, int]] = {}

    @classmethod
    def of(cls, last_sequence: int, events: Iterable[tuple[int, int, UUID | None, bytes]]) -> "LiveBatch":
        """From (sequence, kind, run, serialized event)."""
        return cls(
            last_sequence,
            [
                Entry(sequence, kind, run.bytes if run else _NO_RUN, frame_event(data))
                for sequence, kind, run, data in events
            ],
        )

    def encode(self) -> bytes:
        """As it travels through Redis."""
        index = [_ENTRY.pack(entry.sequence, entry.kind, len(entry.body), entry.run) for entry in self.entries]
        return b"".join([_HEADER.pack(self.last_sequence, len(index)), *index, *[entry.body for entry in self.entries]])

    @classmethod
    def decode(cls, frame: bytes) -> "LiveBatch":
        """The reverse of `encode`. Raises ValueError for anything else."""
        try:
            last_sequence, count = _HEADER.unpack_from(frame)
            start = _HEADER.size
            at = start + count * _ENTRY.size
            entries = []
            for sequence, kind, size, run in _ENTRY.iter_unpack(frame[start:at]):
                entries.append(Entry(sequence, kind, run, frame[at : at + size]))
                at += size
        except struct.error as error:
            raise ValueError("not a live batch") from error
        if at != len(frame):
            raise ValueError("not a live batch: its length is wrong")
        return cls(last_sequence, entries)

    def after(self, sequence: int) -> "LiveBatch":
        """The batch without durable events up to `sequence`."""
        if not self.first or self.first > sequence:
            return self
        return LiveBatch(self.last_sequence, [e for e in self.entries if not e.sequence or e.sequence > sequence])

    def select(self, kinds: frozenset[int] | None, run: bytes | None, *, deltas: bool) -> tuple[bytes, int, int]:
        """What a watcher with these filters gets: joined bytes, how many events, how many of them live.

        Kept for the newest few combinations, so that watchers that have the same share it.
        """
        key = (kinds, run, deltas)
        found = self._selected.get(key)
        if found is None:
            chosen = [
                entry
                for entry in self.entries
                if (deltas or entry.sequence)
                and (kinds is None or entry.kind in kinds)
                and (run is None or entry.run == run)
            ]
            live = sum(1 for entry in chosen if not entry.sequence)
            found = (b"".join([entry.body for entry in chosen]), len(chosen), live)
            if len(self._selected) >= _KEPT:
                del self._selected[next(iter(self._selected))]
            self._selected[key] = found
        return found
