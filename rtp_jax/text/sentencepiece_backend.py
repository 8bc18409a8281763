"""How does a sentencepiece `tokenizer.model` encode and decode?

As transformers' LlamaTokenizer does: added tokens are cut out of the text first, what is between
them goes to sentencepiece, and `legacy` says whether each of those parts gets a space in front
or only the one that begins the text.  Read `tokenizer.py` next.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rtp_jax.text.json_backend import SPACE_PIECE
from rtp_jax.text.special_tokens import AddedToken, SpecialTokens
from rtp_jax.text.tokenizer_files import MAX_TOKENIZER_BYTES, corrupt, parsing, read_checked

ModelProto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
UNKNOWN, CONTROL = 2, 3  # types of pieces in sentencepiece_model.proto


class SentencePieceBackend:
    """A sentencepiece model, with the added tokens of the config files around it."""

    joins_bytes = True

    def __init__(self, path: Path, tokens: SpecialTokens):
        content = read_checked(path, max_bytes=MAX_TOKENIZER_BYTES)
        model = ModelProto()
        with parsing(path):
            model.ParseFromString(content)
        if not model.pieces:
            raise corrupt(path, "it is no sentencepiece model: it has no pieces")
        spaced = model.normalizer_spec.add_dummy_prefix and tokens.add_prefix_space
        with parsing(path):
            self._first = _processor(model, space=spaced)
            self._later = _processor(model, space=spaced and tokens.legacy)
        self.strips_leading_space = spaced
        self._num_pieces = len(model.pieces)
        self._added = {token.content: token for token in _all_added(model, tokens)}
        self._content_of = {token.id: token.content for token in self._added.values()}
        self.vocab_size = max(self._num_pieces, *(id + 1 for id in _ids(self._added.values())))
        self.special_ids = frozenset(_ids(t for t in self._added.values() if t.special))
        self._any_token = _splitter(self._added.values())
        self._plain_token = _splitter(t for t in self._added.values() if not t.special)
        bos, eos = self.id_of(tokens.bos), self.id_of(tokens.eos)
        self._before = [bos] if tokens.add_bos is not False and bos is not None else []
        self._after = [eos] if tokens.add_eos and eos is not None else []

    def id_of(self, content: str | None) -> int | None:
        """Give the id of a token by its spelling."""
        if content in self._added:
            return self._added[content].id
        id = -1 if content is None else self._first.piece_to_id(content)
        return id if id >= 0 and self._first.id_to_piece(id) == content else None

    def encode(self, text: str, *, add_special_tokens: bool, allow_special: bool) -> list[int]:
        """Encode, with or without giving special strings in the text their meaning."""
        splitter = self._any_token if allow_special else self._plain_token
        parts = splitter.split(text) if splitter else [text]  # text, token, text, ..., text
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids += _ids([self._added[part]])
            elif part := self._between(parts, index):
                ids += (self._later if index else self._first).encode_as_ids(part)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def decode(self, ids: list[int]) -> str:
        """Decode, special tokens included."""
        text = b"".join(map(self.piece_bytes, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def piece_bytes(self, id: int) -> bytes:
        """Give the bytes a token stands for; none if there is no such token."""
        if id in self._content_of:
            return self._content_of[id].encode("utf-8", "replace")
        if not 0 <= id < self._num_pieces:
            return b""
        piece = self._first.id_to_piece(id)
        if self._first.is_byte(id):
            return bytes.fromhex(piece[3:5])  # spelled <0xAB>
        return piece.replace(SPACE_PIECE, " ").encode("utf-8", "replace")

    def _between(self, parts: list[str], index: int) -> str:
        """Give a part of the text without the spaces that its neighbours swallow."""
        part = parts[index]
        if index and self._added[parts[index - 1]].rstrip:
            part = part.lstrip()
        if index + 1 < len(parts) and self._added[parts[index + 1]].lstrip:
            part = part.rstrip()
        return part


def _processor(model: Any, *, space: bool) -> sentencepiece.SentencePieceProcessor:
    """Build a processor that puts a space before the text, or one that does not."""
    model.normalizer_spec.add_dummy_prefix = space
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def _all_added(model: Any, tokens: SpecialTokens) -> Iterator[AddedToken]:
    """List the added tokens with their ids: the model's own control pieces, then the configs'."""
    id_of_piece = {piece.piece: id for id, piece in enumerate(model.pieces)}
    for id, piece in enumerate(model.pieces):
        if piece.type in (UNKNOWN, CONTROL):
            yield AddedToken(piece.piece, id)
    next_id = max(len(model.pieces), *(id + 1 for id in (*_ids(tokens.added), -1)))
    for token in tokens.added:
        id = token.id if token.id is not None else id_of_piece.get(token.content)
        if id is None:
            id, next_id = next_id, next_id + 1
        yield replace(token, id=id)


def _ids(tokens: Iterable[AddedToken]) -> list[int]:
    return [token.id for token in tokens if token.id is not None]


def _splitter(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """Match any of the tokens, the longest first."""
    contents = sorted((token.content for token in tokens), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, contents))})") if contents else None
