"""When do two pages hold the same KV?  When their identities are equal.

The identity of a full page is a keyed 128-bit BLAKE2b over typed fields, each with its length, so
that no two different lists of fields spell the same bytes:

    root    = hash(model epoch, KV scheme, page size, adapter, its version, cache salt)
    page[i] = hash(page[i - 1] or root, token ids of the page, media digests)

Whatever holds for a whole sequence is in its root and thereby in each of its pages.  Adapters and
media are reserved: their fields are there, and empty.  Read next: `prefix_index.py`.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

DIGEST_BYTES = 16
MAX_KEY_BYTES = 64  # of BLAKE2b
# The type of each field; a number is never used again for anything else.
PARENT, TOKENS, EPOCH, SCHEME, PAGE_SIZE, ADAPTER, ADAPTER_VERSION, MEDIA, SALT = range(1, 10)


class PageIdentity:
    """Makes the identities of one engine's pages; equal arguments make equal identities."""

    def __init__(self, key: bytes, *, page_size: int, model_epoch: str, kv_scheme: str):
        if len(key) > MAX_KEY_BYTES:
            key = blake2b(key).digest()
        self.page_size = page_size
        self._hash = blake2b(key=key, digest_size=DIGEST_BYTES)
        self._engine = b"".join(
            (
                _field(EPOCH, model_epoch.encode()),
                _field(SCHEME, kv_scheme.encode()),
                _field(PAGE_SIZE, str(page_size).encode()),
            )
        )
        self._pack = struct.Struct(f"<{page_size}I").pack
        self._parent_head = _head(PARENT, DIGEST_BYTES)
        self._tokens_head = _head(TOKENS, 4 * page_size)
        self._media = _field(MEDIA, b"")

    def root(self, *, cache_salt: str = "", adapter: str = "", adapter_version: str = "") -> bytes:
        """Return the parent of a sequence's first page."""
        own = (
            _field(ADAPTER, adapter.encode()),
            _field(ADAPTER_VERSION, adapter_version.encode()),
            _field(SALT, cache_salt.encode()),
        )
        return self._digest(self._engine + b"".join(own))

    def pack(self, token_ids: Sequence[int]) -> bytes:
        """Spell the token ids of a page as bytes."""
        return self._pack(*token_ids)

    def page(self, parent: bytes, packed: bytes) -> bytes:
        """Return the identity of a page, given its parent's and its packed token ids."""
        return self._digest(
            b"".join((self._parent_head, parent, self._tokens_head, packed, self._media))
        )

    def _digest(self, fields: bytes) -> bytes:
        hasher = self._hash.copy()
        hasher.update(fields)
        return hasher.digest()


@dataclass(slots=True)
class PageChain:
    """The identities of a sequence's full pages, in order; each is computed once."""

    identity: PageIdentity
    root: bytes
    keys: list[bytes] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)  # token ids, compared on a hit

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add the next pages: token ids of one or more whole pages."""
        size, identity = self.identity.page_size, self.identity
        assert len(token_ids) % size == 0, f"{len(token_ids)} ids are no whole pages of {size}"
        parent = self.keys[-1] if self.keys else self.root
        for start in range(0, len(token_ids), size):
            packed = identity.pack(token_ids[start : start + size])
            parent = identity.page(parent, packed)
            self.keys.append(parent)
            self.packed.append(packed)

    def copy(self) -> "PageChain":
        """Return a chain that goes on by itself."""
        return PageChain(self.identity, self.root, self.keys.copy(), self.packed.copy())

    def __len__(self) -> int:
        return len(self.keys)


def _head(kind: int, length: int) -> bytes:
    return struct.pack("<BQ", kind, length)


def _field(kind: int, value: bytes) -> bytes:
    return _head(kind, len(value)) + value
