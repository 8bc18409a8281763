"""Small real tokenizers, trained when a test asks for them: one of every kind we load."""

import io
import json
import random
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog. It didn't stop; why would it?\n",
    "def add(a, b):\n    return a + b  # twice 12345 + 67890\n\n",
    "\u5feb\u901f\u7684\u68d5\u8272\u72d0\u72f8\u8df3\u8fc7\u4e86\u61d2\u72d7\u3002 "
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\n",
    "emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 "
    "caf\u00e9 cafe\u0301 na\u00efve \u0928\u092e\u0938\u094d\u0924\u0947\n",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! "
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd\n",
]
CHAT = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
STRANGE = "\U0001f9ff\u1f0b1\U00020bb7 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"  # in no vocabulary


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def byte_level(folder: Path) -> Path:
    """Qwen-like: byte-level BPE in tokenizer.json, added tokens in the newer config."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(TEXT, trainer)
    library.add_special_tokens(CHAT)
    library.add_tokens(["<think>"])
    library.save(str(folder / "tokenizer.json"))
    added = {
        str(id): {"content": token.content, "special": token.special}
        for id, token in library.get_added_tokens_decoder().items()
    }
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    write_json(folder / "tokenizer_config.json", config | {"added_tokens_decoder": added})
    return folder


def byte_fallback(folder: Path) -> Path:
    """Llama-2-like: sentencepiece rules written as tokenizer.json, with the older config files."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    spaced = " ".join(TEXT).replace(" ", "\u2581")
    pieces += sorted({char for char in spaced if char.isalnum() or char in ".,\u2581"})
    vocabulary = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for left, right in ["\u2581t", "\u2581T", "he", "in", "re", "\u2581q", "\u00e9\u2581"]:
        merges.append((left, right))
        vocabulary.setdefault(left + right, len(vocabulary))
    library = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    write_json(folder / "special_tokens_map.json", names | {"unk_token": "<unk>"})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    write_json(folder / "added_tokens.json", {"<|user|>": len(vocabulary)})
    return folder


def metaspace(folder: Path) -> Path:
    """T5-like: a decoder that is not one byte string for each token."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(TEXT * 20, trainer)
    library.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "unk_token": "<unk>"})
    return folder


def sentencepiece_bpe(folder: Path, *, legacy: bool = False) -> Path:
    """Llama-2's own format: tokenizer.model with byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<tool>"],
        control_symbols=["<|im_start|>", "<|im_end|>"],
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"legacy": legacy, "add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", config | names)
    return folder


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "sentencepiece": sentencepiece_bpe,
}


def random_texts(seed: int, count: int) -> list[str]:
    """Texts that mix scripts, spaces and strings that look like special tokens."""
    pick = random.Random(seed)
    source = [
        *" ".join(TEXT).split(" "),
        "",
        " ",
        "\n",
        "  ",
        "\t",
        STRANGE,
        "<s>",
        *CHAT,
        "\u2581",
    ]
    return [
        pick.choice(["", " "]).join(pick.choices(source, k=pick.randrange(1, 12)))
        for _ in range(count)
    ]
