"""How does text become token ids, and ids text?

One `Tokenizer` over both kinds of files: `tokenizer.json` (library `tokenizers`), preferred where
both exist, and sentencepiece's `tokenizer.model`.  It never changes after loading, so threads may
share it.  Decoding is ours wherever a token stands for the same bytes in every text, so that
`decode` and the incremental `detokenizer.py`, to read next, cannot disagree.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from rtp_jax.errors import CheckpointError, InvalidArgument
from rtp_jax.late_imports import late
from rtp_jax.text.json_backend import JsonBackend
from rtp_jax.text.special_tokens import SpecialTokens, read_special_tokens

sentencepiece = late("rtp_jax.text.sentencepiece_backend")  # and protobuf: few models need it


class Backend(Protocol):
    """What differs between the two kinds of files."""

    vocab_size: int
    special_ids: frozenset[int]
    joins_bytes: bool  # a text is the bytes of its tokens, end to end
    strips_leading_space: bool  # except for one space at the beginning

    def id_of(self, content: str | None) -> int | None:
        """Give the id of a token by its spelling."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool, allow_special: bool) -> list[int]:
        """Encode, with or without giving special strings in the text their meaning."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Decode with the library, special tokens included."""
        ...

    def piece_bytes(self, id: int) -> bytes:
        """Give the bytes a token stands for; none if there is no such token."""
        ...


def load_tokenizer(folder: Path) -> "Tokenizer":
    """Load the tokenizer of a checkpoint folder."""
    tokens = read_special_tokens(folder)
    if (path := folder / "tokenizer.json").exists():
        return Tokenizer(JsonBackend(path, tokens), tokens)
    if (path := folder / "tokenizer.model").exists():
        return Tokenizer(sentencepiece.SentencePieceBackend(path, tokens), tokens)
    raise CheckpointError(
        f"RTPJ-3301 TOKENIZER_MISSING: {folder} has neither tokenizer.json nor tokenizer.model. "
        "Copy one of them, with tokenizer_config.json, from where the model was published."
    )


class Tokenizer:
    """Text to ids and back, for one vocabulary."""

    def __init__(self, backend: Backend, tokens: SpecialTokens):
        self._backend = backend
        self._bytes_of: dict[int, bytes] = {}  # filled as ids are met
        self.vocab_size = backend.vocab_size  # the model may have more rows, as padding
        self.special_ids = backend.special_ids
        self.joins_bytes = backend.joins_bytes
        self.strips_leading_space = backend.strips_leading_space
        self.bos_token, self.eos_token = tokens.bos, tokens.eos
        self.bos_id = backend.id_of(tokens.bos)
        self.eos_id = backend.id_of(tokens.eos)
        self.pad_id = backend.id_of(tokens.pad)
        first = () if self.eos_id is None else (self.eos_id,)
        self.eos_ids = tuple(dict.fromkeys((*first, *tokens.generation_eos_ids)))

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        allow_special: bool = True,
        max_chars: int | None = None,
    ) -> list[int]:
        """Encode a text.

        Args:
          text: any text without lone surrogates, which have no UTF-8.
          add_special_tokens: whether the tokenizer may put its own at the ends, as bos.
          allow_special: whether `<|im_end|>` in the text means the token; False reads it as text.
          max_chars: the longest text allowed, checked before anything is done with it.
        """
        check_text(text, max_chars=max_chars)
        return self._backend.encode(
            text, add_special_tokens=add_special_tokens, allow_special=allow_special
        )

    def decode(
        self,
        ids: Iterable[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Decode ids; those outside of the vocabulary have no text.

        Bytes that are not UTF-8 become U+FFFD, as in sentencepiece.  Spaces around special tokens
        exist only in tokenizers whose decoder puts spaces between tokens; False removes them.
        """
        visible = self.visible(ids, skip_special_tokens=skip_special_tokens)
        if self.joins_bytes:
            text = b"".join(map(self.token_bytes, visible)).decode("utf-8", "replace")
            return text.removeprefix(" ") if self.strips_leading_space else text
        if spaces_between_special_tokens:
            return self._backend.decode(visible)
        return "".join(map(self._backend.decode, self._split_at_special(visible)))

    def visible(self, ids: Iterable[int], *, skip_special_tokens: bool) -> list[int]:
        """Keep the ids that may have text."""
        hidden = self.special_ids if skip_special_tokens else ()
        return [id for id in ids if 0 <= id < self.vocab_size and id not in hidden]

    def token_bytes(self, id: int) -> bytes:
        """Give the bytes of one token, a leading space included; none outside of the vocabulary."""
        known = self._bytes_of.get(id)
        if known is None and 0 <= id < self.vocab_size:
            known = self._backend.piece_bytes(id) if self.joins_bytes else self._decoded_later(id)
            self._bytes_of[id] = known
        return known or b""

    def token_text(self, id: int) -> str:
        """Spell one token, for logprobs; a part of a character reads `bytes:\\xe4\\xb8`."""
        content = self.token_bytes(id)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _decoded_later(self, id: int) -> bytes:
        """Decode a token as it looks after another one, because the first loses its space."""
        alone, twice = self._backend.decode([id]), self._backend.decode([id, id])
        return twice[len(alone) :].encode("utf-8", "replace")

    def _split_at_special(self, ids: Sequence[int]) -> list[list[int]]:
        runs: list[list[int]] = []
        for previous, id in zip([None, *ids], ids, strict=False):
            if not runs or id in self.special_ids or previous in self.special_ids:
                runs.append([])
            runs[-1].append(id)
        return runs


def check_text(text: object, *, max_chars: int | None = None, field: str = "prompt") -> None:
    """Refuse what is not a text, is too long, or cannot be written as UTF-8."""
    if not isinstance(text, str):
        raise InvalidArgument(
            f"RTPJ-3310 TEXT_NOT_A_STRING: {field} is a {type(text).__name__}. Pass a str.",
            field=field,
        )
    if max_chars is not None and len(text) > max_chars:
        raise InvalidArgument(
            f"RTPJ-3311 TEXT_TOO_LONG: {field} has {len(text)} characters, {max_chars} are "
            f"allowed. Shorten it by {len(text) - max_chars}.",
            field=field,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"RTPJ-3312 TEXT_NOT_UNICODE: {field} has a lone surrogate "
            f"(U+{ord(text[error.start]):04X}) at character {error.start}. "
            "Replace it; text.encode('utf-16', 'surrogatepass').decode('utf-16') joins pairs.",
            field=field,
        ) from None
