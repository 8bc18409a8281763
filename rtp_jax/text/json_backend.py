"""How does a `tokenizer.json` encode and decode? (library `tokenizers`)

Most decoders only join bytes: every token stands for some bytes wherever it appears.  Those are
recognised here, because they can be detokenized one token at a time, exactly and cheaply; for all
others the library decodes.  Read `tokenizer.py` next, which hides the difference.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from rtp_jax.errors import CheckpointError
from rtp_jax.text.special_tokens import AddedToken, SpecialTokens
from rtp_jax.text.tokenizer_files import MAX_TOKENIZER_BYTES, corrupt, parsing, read_checked

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how byte fallback spells a byte
# Classes of transformers 4 in which add_bos_token counts beside a tokenizer.json; in others, and in
# transformers 5, the file alone decides.  DeepSeek V3 gets its bos so.
FLAG_CLASSES = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"}
SPACE_PIECE = "\u2581"  # how sentencepiece spells a space


class JsonBackend:
    """A `tokenizer.json`, with the special tokens of the config files added to it."""

    def __init__(self, path: Path, tokens: SpecialTokens):
        content = read_checked(path, max_bytes=MAX_TOKENIZER_BYTES)
        with parsing(path):
            self._library = tokenizers.Tokenizer.from_buffer(content)
            self._library.no_truncation()  # a prompt is never cut silently
            self._library.no_padding()
            _add(self._library, path, tokens.added)
            _set_ends(self._library, tokens)
            vocabulary = self._library.get_vocab(with_added_tokens=True)
            decoder = self._library.decoder
            spelling = json.loads(decoder.__getstate__()) if decoder else None
        if not vocabulary:
            raise corrupt(path, "its vocabulary is empty")
        self.vocab_size = max(vocabulary.values()) + 1
        added = self._library.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._spelling = _recognise(spelling)
        self.joins_bytes = self._spelling is not None
        self.strips_leading_space = self._spelling == "spaces stripped"

    def id_of(self, content: str | None) -> int | None:
        """Give the id of a token by its spelling."""
        return None if content is None else self._library.token_to_id(content)

    def encode(self, text: str, *, add_special_tokens: bool, allow_special: bool) -> list[int]:
        """Encode, with or without giving special strings in the text their meaning."""
        library = self._library if allow_special else self._plain
        return library.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int]) -> str:
        """Decode with the library, special tokens included."""
        return self._library.decode(ids, skip_special_tokens=False)

    def piece_bytes(self, id: int) -> bytes:
        """Give the bytes a token stands for; none if there is no such token."""
        piece = self._library.id_to_token(id)
        if piece is None:
            return b""
        if self._spelling == "byte level":
            try:
                return bytes(map(_byte_of_char().__getitem__, piece))
            except KeyError:  # an added token, spelled as it is
                return piece.encode("utf-8", "replace")
        if match := BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(match[1])
        return piece.replace(SPACE_PIECE, " ").encode("utf-8", "replace")

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """Copy the tokenizer, because reading special strings as text is a switch on the object."""
        plain = tokenizers.Tokenizer.from_str(self._library.to_str())
        plain.encode_special_tokens = True
        return plain


def _add(library: tokenizers.Tokenizer, path: Path, added: tuple[AddedToken, ...]) -> None:
    """Add what the config files know and the tokenizer does not, in the order of ids."""
    known = {token.content: token for token in library.get_added_tokens_decoder().values()}
    for token in sorted(added, key=lambda token: (token.id is None, token.id or 0)):
        there = known.get(token.content)
        if there is None or (token.special and not there.special):
            library.add_tokens([_to_library(token)])
        if token.id is not None and library.token_to_id(token.content) != token.id:
            raise CheckpointError(
                f"RTPJ-3306 TOKENIZER_CONFLICT: the config files beside {path} give "
                f"{token.content!r} the id {token.id}, and it is "
                f"{library.token_to_id(token.content)} there. Take all files from one release."
            )


def _to_library(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _set_ends(library: tokenizers.Tokenizer, tokens: SpecialTokens) -> None:
    """Let add_bos_token and add_eos_token overrule the file, for the classes that read them."""
    if tokens.tokenizer_class.removesuffix("Fast") not in FLAG_CLASSES:
        return
    if tokens.add_bos is None and tokens.add_eos is None:
        return
    bos = tokens.bos if tokens.add_bos is not False else None
    eos = tokens.eos if tokens.add_eos else None
    pieces = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single=pieces,
        special_tokens=[(piece, library.token_to_id(piece)) for piece in (bos, eos) if piece],
    )


def _recognise(decoder: Any) -> str | None:
    """Name the rule by which tokens become bytes, or None if it is not one byte string each."""
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    types = [step["type"] for step in steps]
    if types == ["ByteLevel"]:
        return "byte level"
    if types[:3] != ["Replace", "ByteFallback", "Fuse"]:
        return None
    if (steps[0]["pattern"], steps[0]["content"]) != ({"String": SPACE_PIECE}, " "):
        return None
    if types[3:] == []:
        return "spaces"
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return "spaces stripped" if steps[3:] == [strip] else None


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """Give the alphabet of byte-level BPE: visible Latin-1 as it is, the rest from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + i): byte for i, byte in enumerate(hidden)
    }
