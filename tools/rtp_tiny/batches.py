"""What does one training step see?  Rows of packed documents, some text, some tasks.

Step `n` is a function of (seed, n) alone, so that an interrupted run goes on exactly where it
stopped.  Tasks come plain or as conversations of a few turns; only their answers weigh much in
the loss, because a question's names and numbers cannot be foreseen.
"""

from typing import NamedTuple

import numpy as np
import sentencepiece

from tools.rtp_tiny.tasks import draw_task, render
from tools.rtp_tiny.tokenizer import BOS_ID, END_ID, EOS_ID, PAD_ID

QUESTION_WEIGHT = 0.05
ANSWER_WEIGHT = 3.0
BOS_SHARE = 0.25
CHAT_SHARE = 0.6


class Mixture(NamedTuple):
    """The share of rows that are text, and of each kind among the tasks."""

    text_share: float
    task_shares: dict[str, float]


# The first mixture teaches the language, the others what it left weak: sums, recall, docstrings.
MIXTURES = {
    0: Mixture(
        text_share=0.5,
        task_shares={
            "recall": 0.26,
            "copy": 0.16,
            "sum": 0.18,
            "difference": 0.06,
            "json_write": 0.15,
            "json_read": 0.11,
            "docstring": 0.07,
            "greeting": 0.01,
        },
    ),
    1000: Mixture(
        text_share=0.2,
        task_shares={
            "recall": 0.25,
            "copy": 0.08,
            "sum": 0.36,
            "difference": 0.05,
            "json_write": 0.05,
            "json_read": 0.08,
            "docstring": 0.12,
            "greeting": 0.01,
        },
    ),
    1300: Mixture(
        text_share=0.125,
        task_shares={
            "recall": 0.40,
            "copy": 0.04,
            "sum": 0.27,
            "difference": 0.04,
            "json_write": 0.03,
            "json_read": 0.09,
            "docstring": 0.12,
            "greeting": 0.01,
        },
    ),
}


class Batch(NamedTuple):
    """Arrays [rows, length]; `weights` is the share in the loss of predicting each target."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


class Document(NamedTuple):
    """Tokens of one document and how much each of them counts as a target."""

    tokens: list[int]
    weights: list[float]


def encode_texts(
    tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> list[np.ndarray]:
    """Tokenise each text and close it with the end-of-text token."""
    return [np.array([*ids, EOS_ID], np.int32) for ids in tokenizer.encode(texts)]


def make_batch(
    tokenizer: sentencepiece.SentencePieceProcessor,
    texts: list[np.ndarray],
    *,
    key: tuple[int, int],
    rows: int,
    length: int,
) -> Batch:
    """Build the batch of one step from key = (seed, step)."""
    rng = np.random.default_rng(key)
    lengths = np.array([len(text) for text in texts], float)
    mixture = MIXTURES[max(start for start in MIXTURES if start <= key[1])]
    filled = []
    for row in range(rows):
        if row < round(rows * mixture.text_share):
            filled.append(_text_row(rng, texts, lengths / lengths.sum(), length))
        else:
            filled.append(_task_row(rng, tokenizer, mixture.task_shares, length))
    return Batch(*(np.stack(arrays) for arrays in zip(*filled, strict=True)))


def _text_row(
    rng: np.random.Generator, texts: list[np.ndarray], shares: np.ndarray, length: int
) -> Batch:
    """Cut windows out of documents, each as likely as it is long, until the row is full."""
    documents, missing = [], length + 1
    while missing > 0:
        text = texts[rng.choice(len(texts), p=shares)]
        start = int(rng.integers(-length // 4, max(1, len(text) - length // 4)))
        window = text[max(0, start) :][:missing].tolist()
        documents.append(Document(window, [1.0] * len(window)))
        missing -= len(window)
    return _packed(documents, length)


def _task_row(
    rng: np.random.Generator,
    tokenizer: sentencepiece.SentencePieceProcessor,
    shares: dict[str, float],
    length: int,
) -> Batch:
    documents, missing = [], length + 1
    while missing > 0:
        document = task_document(rng, tokenizer, shares)
        documents.append(document)
        missing -= len(document.tokens)
    return _packed(documents, length)


def task_document(
    rng: np.random.Generator,
    tokenizer: sentencepiece.SentencePieceProcessor,
    shares: dict[str, float],
) -> Document:
    """Draw a plain task, or a conversation of one to three tasks."""
    tokens, weights = [], []
    if rng.random() < BOS_SHARE:
        tokens, weights = [BOS_ID], [0.0]
    chat = rng.random() < CHAT_SHARE
    num_turns = int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1])) if chat else 1
    for _ in range(num_turns):
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        prompt, completion = render(draw_task(kind, rng), chat=chat)
        question = tokenizer.encode(prompt)
        answer = [*tokenizer.encode(completion), END_ID if chat else EOS_ID]
        tokens += question + answer
        weights += [QUESTION_WEIGHT] * len(question) + [ANSWER_WEIGHT] * len(answer)
    return Document(tokens, weights)


def _packed(documents: list[Document], length: int) -> Batch:
    """Lay documents end to end; a document's first token is never a target."""
    tokens = np.full(length + 1, PAD_ID, np.int32)
    segments = np.zeros(length + 1, np.int32)
    positions = np.zeros(length + 1, np.int32)
    weights = np.zeros(length + 1, np.float32)
    at = 0
    for number, document in enumerate(documents, start=1):
        size = min(len(document.tokens), length + 1 - at)
        tokens[at : at + size] = document.tokens[:size]
        segments[at : at + size] = number
        positions[at : at + size] = np.arange(size)
        weights[at + 1 : at + size] = document.weights[1:size]
        at += size
    return Batch(tokens[:-1], tokens[1:], segments[:-1], positions[:-1], weights[1:])
