"""Writes the goldens of `tests/models/test_goldens.py`: what `transformers` computes in float32.

Run it in an environment of its own, because rtp_jax knows no torch:

    python3.11 -m venv .venv-goldens
    .venv-goldens/bin/pip install torch==2.13.0 transformers==5.23.0 numpy
    .venv-goldens/bin/python tests/golden/make_goldens.py

For each case it writes a config as its author wrote it and as `transformers` saves it (JSON), and
the prompt, the logits of the prompt and of 32 decoded tokens, and 64 greedy ids (NPZ).  Weights
come from `recipe.py`.  Seeds whose greedy path hangs on a near tie are passed over.
"""

import json
from pathlib import Path

import numpy as np
import recipe  # beside this file
import torch
import transformers

FOLDER = Path(__file__).parent
DECODE_STEPS, GREEDY_IDS = 32, 64
SAFE_GAP = 2e-3  # of the largest logit, between the best token and the second: 20 tolerances
COLUMNS = 128  # of a wide vocabulary, so many logits are stored, and what sums up all of them

SMALL = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 80,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MSCALE = {"mscale": 1.2, "mscale_all_dim": 0.6, "beta_fast": 8, "beta_slow": 2, "truncate": False}
NEW_YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 2.0, **MSCALE}
NEW_YARN |= {"original_max_position_embeddings": 96}

CASES = {
    "llama_plain": ("llama", 29, {}),
    "llama_bias_llama3": (
        "llama",
        37,
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "hidden_size": 72,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": LLAMA3,
            "rope_theta": 500000.0,
        },
    ),
    "llama_wide_tied": (
        "llama",
        23,
        {
            "hidden_size": 512,
            "num_attention_heads": 8,
            "num_hidden_layers": 2,
            "intermediate_size": 640,
            "vocab_size": 1500,
            "tie_word_embeddings": True,
            "rope_scaling": None,
        },
    ),
    "llama_linear": ("llama", 41, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "llama_dynamic": (
        "llama",
        18,
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "mistral_window": (
        "mistral",
        45,
        {"sliding_window": 9, "num_attention_heads": 6, "head_dim": 16},
    ),
    "mistral_full": (
        "mistral",
        20,
        {"sliding_window": None, "num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    "mistral_yarn": (
        "mistral",
        50,
        {
            "sliding_window": 33,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "hidden_size": 60,
            "head_dim": 20,
            "rope_scaling": YARN,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_plain": ("qwen2", 31, {"use_sliding_window": False, "rms_norm_eps": 1e-6}),
    "qwen2_windows": (
        "qwen2",
        40,
        {
            "use_sliding_window": True,
            "sliding_window": 12,
            "max_window_layers": 1,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "hidden_size": 48,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_yarn": (
        "qwen2",
        26,
        {"num_attention_heads": 3, "num_key_value_heads": 3, "rope_parameters": NEW_YARN},
    ),
    "qwen3_plain": ("qwen3", 33, {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3_odd_heads": (
        "qwen3",
        22,
        {
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "hidden_size": 52,
            "head_dim": 8,
            "attention_bias": True,
            "rope_scaling": LLAMA3,
        },
    ),
    "qwen3_windows": (
        "qwen3",
        28,
        {
            "head_dim": 32,
            "use_sliding_window": True,
            "sliding_window": 10,
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_theta": 1e6,
        },
    ),
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def main() -> None:
    """Write all cases, and print what they look like."""
    torch.set_num_threads(1)
    for name, (family, length, changes) in CASES.items():
        architecture = CLASSES[family][1].__name__
        config = {"architectures": [architecture], **SMALL, **changes}
        if "rope_parameters" in changes:
            del config["rope_theta"]
        for seed in range(100):
            arrays, saved = golden(family, config, length, seed)
            if arrays is not None:
                break
        else:
            raise SystemExit(f"{name}: every seed has a near tie")
        np.savez(FOLDER / f"{name}.npz", **arrays)
        facts = {
            "config": config,
            "saved": saved,
            "seed": seed,
            "made_with": {"transformers": transformers.__version__, "torch": torch.__version__},
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
        logits = arrays["logits"]
        different = len(set(arrays["greedy"].tolist()))
        print(
            f"{name:20} seed {seed:2}  logits {logits.std():.2f} (max {np.abs(logits).max():.1f})"
            f"  {different} different greedy ids"
        )


@torch.no_grad()
def golden(family: str, config: dict, length: int, seed: int):
    """Run one model, or return None if its greedy path hangs on a near tie."""
    config_class, model_class = CLASSES[family]
    hf_config = config_class(**json.loads(json.dumps(config)), attn_implementation="eager")
    model = model_class(hf_config).eval()
    tied = config["tie_word_embeddings"]
    state = {
        key: torch.from_numpy(recipe.tensor(key, tuple(value.shape), seed))
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()

    ids = recipe.prompt(length, config["vocab_size"], seed)
    output = model(torch.from_numpy(ids)[None].long(), use_cache=True)
    rows, greedy = [output.logits[0].numpy()], []
    for _ in range(GREEDY_IDS):
        last = rows[-1][-1]
        best, second = np.sort(last)[[-1, -2]]
        if best - second < SAFE_GAP * np.abs(last).max():
            return None, None
        greedy.append(int(last.argmax()))
        output = model(torch.tensor([greedy[-1:]]), past_key_values=output.past_key_values)
        rows.append(output.logits[0].numpy())
    logits = np.concatenate(rows)[: length + DECODE_STEPS]
    if len(set(greedy)) < GREEDY_IDS // 4:
        return None, None  # it repeats itself, and would hide mistakes
    columns = np.arange(config["vocab_size"])
    if columns.size > COLUMNS:
        columns = columns[:: columns.size // COLUMNS]
    wide = logits.astype(np.float64)
    arrays = {
        "prompt": ids,
        "columns": columns.astype(np.int32),
        "logits": logits[:, columns],
        "largest": np.abs(logits).max(-1),
        "argmax": logits.argmax(-1).astype(np.int32),
        "logsumexp": np.log(np.exp(wide - wide.max()).sum(-1)) + wide.max(),
        "greedy": np.array(greedy, np.int32),
    }
    saved = json.loads(model.config.to_json_string(use_diff=False))
    saved["architectures"] = config["architectures"]
    return arrays, saved


if __name__ == "__main__":
    main()
