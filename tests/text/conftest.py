"""One tokenizer of every kind, made once."""

from pathlib import Path

import pytest

from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.tiny import KINDS


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in KINDS.items()}


@pytest.fixture(scope="session")
def tokenizers(folders) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request, tokenizers) -> Tokenizer:
    return tokenizers[request.param]
