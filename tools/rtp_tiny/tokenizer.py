"""How does text become the tokens of rtp-tiny?  A sentencepiece BPE model that loses nothing.

Text is not normalised: newlines, tabs and runs of spaces survive, and what the vocabulary lacks
becomes bytes.  Digits stand alone, which makes sums learnable.  `tokenizer.json` holds the same
model for readers without sentencepiece.  One limit is sentencepiece's own: U+2581, its sign for a
space, comes back as a space.
"""

import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers

VOCAB_SIZE = 2048
PAD, UNKNOWN, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
PAD_ID, UNKNOWN_ID, BOS_ID, EOS_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID, END_ID = range(8)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: list[str], path: Path) -> None:
    """Train on `texts` and write `tokenizer.model`; sentencepiece is deterministic."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        character_coverage=0.9995,
        max_sentence_length=100_000,
        user_defined_symbols=[SYSTEM, USER, ASSISTANT, END, "\n", "\t"],
        pad_id=PAD_ID,
        unk_id=UNKNOWN_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        num_threads=2,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Read `tokenizer.model` and check that the ids above are its ids."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert processor.piece_to_id(END) == END_ID
    assert processor.eos_id() == EOS_ID
    return processor


def write_tokenizer_json(processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    """Write the same model in the format of the `tokenizers` library."""
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(
        vocab=vocab,
        merges=_merges(processor, vocab),
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=True,
    )
    fast = tokenizers.Tokenizer(model)
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Only these four vanish when special tokens are skipped; the others are ordinary text.
    special = [PAD, UNKNOWN, BOS, EOS, SYSTEM, USER, ASSISTANT, END]
    fast.add_special_tokens([_added(piece) for piece in special])
    fast.add_tokens([_added("\n"), _added("\t")])
    fast.save(str(path))


def write_tokenizer_config(path: Path, *, max_length: int) -> None:
    """Write `tokenizer_config.json`, chat template included."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    path.write_text(json.dumps(config, indent=2) + "\n")


def _added(piece: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(piece, normalized=False)


def _merges(
    processor: sentencepiece.SentencePieceProcessor, vocab: dict[str, int]
) -> list[tuple[str, str]]:
    """List the pairs that sentencepiece may join, best first: a higher score joins earlier."""
    ranked = []
    for piece, index in vocab.items():
        if processor.is_control(index) or processor.is_byte(index) or len(piece) < 2:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-processor.get_score(index), vocab[left], vocab[right]))
    by_id = list(vocab)
    return [(by_id[left], by_id[right]) for _, left, right in sorted(ranked)]
