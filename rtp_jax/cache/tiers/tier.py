"""What is a tier?  A place from which page records come, and mostly where they can be put.

    holds   how many of some pages it has, as far as it knows    engine's thread: no I/O
    read    their records, in order, each as soon as it is there  a thread for I/O

A tier never raises because of its medium: what is gone, late or broken is not yielded, and whoever
asked computes it.  Who reads what, and when, is decided by `hierarchy.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rtp_jax.page_record import PageRecord
from rtp_jax.request import Request
from rtp_jax.transfer.stop import Stop


@dataclass(frozen=True, slots=True)
class Wanted:
    """Consecutive full pages that a sequence lacks."""

    request: Request
    first: int  # which page of the sequence `keys[0]` is
    parent: bytes  # identity of the page before, or the root
    keys: tuple[bytes, ...]
    packed: tuple[bytes, ...]  # their token ids

    def __len__(self) -> int:
        return len(self.keys)

    def after(self, count: int) -> "Wanted":
        """Return what is left without the first few."""
        if count == 0:
            return self
        before, keys, packed = self.keys[count - 1], self.keys[count:], self.packed[count:]
        return Wanted(self.request, self.first + count, before, keys, packed)

    def upto(self, count: int) -> "Wanted":
        """Return the first few."""
        keys, packed = self.keys[:count], self.packed[:count]
        return Wanted(self.request, self.first, self.parent, keys, packed)

    def accepts(self, at: int, record: PageRecord, *, checked: bool = False) -> bool:
        """Say whether a record is that of page `at`, undamaged; reads it all unless `checked`."""
        parent = self.keys[at - 1] if at else self.parent
        expected = (self.keys[at], parent, self.packed[at])
        found = record.key, record.parent, record.packed
        return found == expected and (checked or record.sound)


class Tier(Protocol):
    """Where records come from."""

    name: str  # host, disk, remote or peer

    def holds(self, wanted: Wanted) -> int:
        """Count the pages from the first on that could be read, as far as is known; no I/O."""
        ...

    def read(self, wanted: Wanted, stop: Stop) -> Iterator[PageRecord]:
        """Yield records in order until one is missing or late, or `stop` is set."""
        ...

    def reject(self, key: bytes) -> None:
        """Learn that the record of a page is broken: it is not to be read again."""
        ...

    def timeout_s(self, num_pages: int) -> float:
        """Say how long a sequence may wait for this many pages."""
        ...

    def checks(self) -> bool:
        """Say whether the digests of what it yields have been checked already."""
        ...

    def compares(self) -> bool:
        """Say whether reading is to be weighed against computing; else it is always preferred."""
        ...


class Store(Tier, Protocol):
    """A tier that can be written."""

    def keeps(self, key: bytes) -> bool:
        """Say whether writing this page would be of no use: it is here, as far as is known."""
        ...

    def write(self, record: PageRecord) -> list[PageRecord]:
        """Keep a record; return what is not here because of it: itself, or others that left."""
        ...

    def forget(self, keys: list[bytes]) -> None:
        """Drop pages that are not to be trusted."""
        ...

    def clear(self) -> None:
        """Drop everything that belongs to this engine alone."""
        ...

    def usage(self) -> tuple[int, int]:
        """Count records and their bytes."""
        ...

    def close(self) -> None:
        """Give resources back."""
        ...


@runtime_checkable
class LastingStore(Store, Protocol):
    """A store whose records are there for the next life of this process."""

    def write_back(self, records: Sequence[PageRecord], until_s: float) -> int:
        """Keep records, the one that was used last first, until a time; count the new ones."""
        ...
