"""Which tokens of a checkpoint are special, added, first, last or padding?

Hugging Face has two generations of these files.  The newer one lists every added token with its
id in `tokenizer_config.json` (`added_tokens_decoder`); the older one spreads them over
`special_tokens_map.json` and `added_tokens.json`.  Both become one `SpecialTokens`.
Read `json_backend.py` and `sentencepiece_backend.py` next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rtp_jax.text.tokenizer_files import corrupt, read_json

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")  # before and since transformers 5
MAX_ADDED_ID = 1 << 24  # a made-up id must not make anybody allocate a table


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A string that becomes one token before the text around it is encoded."""

    content: str
    id: int | None = None  # None: it takes the id it has in the vocabulary, else the next free one
    special: bool = True
    lstrip: bool = False  # it swallows the spaces before it
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What the config files beside a vocabulary say."""

    added: tuple[AddedToken, ...]
    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None
    tokenizer_class: str
    add_bos: bool | None  # None: the file does not say
    add_eos: bool | None
    legacy: bool  # sentencepiece: a space goes before every piece of text, not only the first
    add_prefix_space: bool
    generation_eos_ids: tuple[int, ...]


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read the config files of either generation; a folder without any has no special tokens."""
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    listed = config.get("added_tokens_decoder")
    if listed is None:
        config = config | read_json(folder / "special_tokens_map.json")
        added = [*_older_added(folder / "added_tokens.json")]
    else:
        added = [*_newer_added(path, listed)]
    named = {name: _token(path, config[name]) for name in NAMED if config.get(name)}
    by_content = {token.content: token for token in added}
    for token in [*named.values(), *_listed(path, config)]:  # whatever has a role is special
        if token.content in by_content:
            token = by_content[token.content]
            token = replace(token, normalized=token.normalized and listed is not None)
        by_content[token.content] = replace(token, special=True)
    content = {name: token.content for name, token in named.items()}
    return SpecialTokens(
        added=tuple(by_content.values()),
        bos=content.get("bos_token"),
        eos=content.get("eos_token"),
        pad=content.get("pad_token"),
        unk=content.get("unk_token"),
        tokenizer_class=str(config.get("tokenizer_class")),
        add_bos=_flag(path, config, "add_bos_token"),
        add_eos=_flag(path, config, "add_eos_token"),
        legacy=_flag(path, config, "legacy") is not False,
        add_prefix_space=_flag(path, config, "add_prefix_space") is not False,
        generation_eos_ids=_generation_eos_ids(folder / "generation_config.json"),
    )


def _newer_added(path: Path, listed: Any) -> Iterator[AddedToken]:
    if not isinstance(listed, dict):
        raise corrupt(path, "added_tokens_decoder is not an object")
    ids = {key: _id(path, int(key) if key.isdecimal() else key) for key in listed}
    for key in sorted(ids, key=ids.__getitem__):
        token = _token(path, listed[key], special=False)
        yield replace(token, id=ids[key])


def _older_added(path: Path) -> Iterator[AddedToken]:
    ids = {content: _id(path, value) for content, value in read_json(path).items()}
    for content in sorted(ids, key=ids.__getitem__):
        yield AddedToken(content, ids[content], special=False, normalized=True)


def _listed(path: Path, config: dict[str, Any]) -> Iterator[AddedToken]:
    for name in LISTS:
        values = config.get(name) or []
        for value in values.values() if isinstance(values, dict) else values:
            yield _token(path, value)


def _token(path: Path, value: Any, *, special: bool = True) -> AddedToken:
    """Accept a token as its bare content, or as an object with its flags."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise corrupt(path, f"a special token is {str(value)[:60]!r}, not a string or an object")
    flags = {
        name: value[name] is True
        for name in ("special", "lstrip", "rstrip", "single_word", "normalized")
        if name in value
    }
    return AddedToken(value["content"], **({"special": special} | flags))


def _id(path: Path, value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_ADDED_ID:
        return value
    raise corrupt(path, f"an added token has the id {str(value)[:60]!r}")


def _flag(path: Path, config: dict[str, Any], name: str) -> bool | None:
    value = config.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise corrupt(path, f"{name} is {str(value)[:60]!r}, not true or false")


def _generation_eos_ids(path: Path) -> tuple[int, ...]:
    value = read_json(path).get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(_id(path, item) for item in values)
