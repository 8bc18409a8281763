"""A model small enough for any test: two random Qwen3 layers and a byte-level tokenizer, seeded.

Its words mean nothing, but it is a complete Hugging Face folder: `write_tiny_model` makes the same
bytes on every machine.  Vocabulary ids past the tokenizer's are padding, as real checkpoints have.
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": 1,
}
# Of a model that nobody runs: enough to plan, describe or refuse one.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
TOKENIZER_SIZE = 440  # so that 72 ids of the model's vocabulary are padding
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """\
The page pool knows which pages are free. A request becomes a sequence, and a sequence owns pages.
The scheduler picks the sequences of a step; the runner computes the step; commit takes its tokens.
Whoever asks for the sum of two and three is told that it is five, and that seven is a prime number.
A prefix that was seen before is not computed again: its pages are found by their identity.
Nothing flows back except through commit, and nobody waits for a slow reader of the stream.
"""


def write_tiny_model(folder: Path, *, seed: int = 0, **sizes: int) -> Path:
    """Write config, weights and tokenizer of the tiny model into a folder, and return it.

    `sizes` are values of its `config.json` that shall be others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | sizes
    save_file(weights(np.random.default_rng(seed), config), folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "chat_template": CHAT_TEMPLATE}
    for name, content in {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [1], "pad_token_id": 0},
        "tokenizer_config.json": settings,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    return folder


def weights(rng: np.random.Generator, config: dict = CONFIG) -> dict[str, np.ndarray]:
    """Draw every tensor of the checkpoint, under its Hugging Face name."""
    hidden, mlp, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, shared = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        inside = {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (query, hidden),
            "self_attn.k_proj.weight": (shared, hidden),
            "self_attn.v_proj.weight": (shared, hidden),
            "self_attn.o_proj.weight": (hidden, query),
            "self_attn.q_norm.weight": (size,),
            "self_attn.k_norm.weight": (size,),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (mlp, hidden),
            "mlp.up_proj.weight": (mlp, hidden),
            "mlp.down_proj.weight": (hidden, mlp),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in inside.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}
    return {name: draw(rng, name, shape) for name, shape in shapes.items()}


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw one tensor so that activations keep their size and some tokens are clearly likelier."""
    noise = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        return np.float32(1 + 0.1 * noise)
    gain = 3.0 if name == "lm_head.weight" else 1.0
    return np.float32(gain * noise / np.sqrt(shape[-1]))


def tokenizer() -> tokenizers.Tokenizer:
    """Train a byte-level BPE on a few sentences; any text can be spelled in it."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    library.train_from_iterator([TEXT], trainer)
    return library
