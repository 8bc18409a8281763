"""The memory plan adds up, lowers the context by itself, and refuses with numbers that work."""

import dataclasses
import subprocess
import sys

import pytest

from rtp_jax.config import CacheConfig, ModelConfig, SchedulerConfig
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.runner.memory_plan import GIB, MIB, MemoryPlan, plan_memory
from rtp_jax.runner.workspace import ModelMemory

SIZES = ModelMemory(
    weight_bytes=100 * MIB,
    num_layers=4,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    hidden_size=512,
    mlp_size=1024,
    vocab_size=32_000,
    max_positions=4096,
    itemsize=4,
    kv=kv_layers(4, "float32"),
)
# A token: 4 layers x 2 x 2 heads x 64 x 4 bytes = 4096 bytes; a page of 16: 65536.
PAGE = 65_536
# 512 tokens x (4 x 512 + 2 x (8 + 2) x 64 + 3 x 1024) x 4 bytes
ACTIVATIONS = 512 * 6400 * 4
LOGITS = 64 * 32_000 * 4 * 2
# Rows of all 8 buckets: a bit mask of the vocabulary, 1024 biases with their ids, 128 ids.
OPTIONS = (8 + 8 + 8 + 16 + 24 + 40 + 64 + 64) * 4 * (1000 + 2 * 1024 + 128) + 8 * 3
TOKENIZER, PROGRAMS, PROCESS = 320 * 32_000, 8 * 17_000_000, 210_000_000
REST = OPTIONS + TOKENIZER + PROGRAMS + PROCESS


def plan(available: int = 8 * GIB, sizes: ModelMemory = SIZES, **options) -> MemoryPlan:
    """Plan with flat options."""
    sections = {"model": ModelConfig, "cache": CacheConfig, "scheduler": SchedulerConfig}
    chosen = {
        name: section(**{key: options.pop(key) for key in names(section) & options.keys()})
        for name, section in sections.items()
    }
    platform = options.pop("platform", "cpu")
    assert not options
    return plan_memory(sizes, **chosen, platform=platform, free_device_bytes=available)


def names(section: type) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}


def history(length: int) -> int:
    return 65 * (length + 1) * 4


def test_the_parts_add_up():
    found = plan(8 * GIB, max_model_len=1024)
    assert dict(found.workspace) == {
        "activations": ACTIVATIONS,
        "logits": LOGITS,
        "history": history(1024),
        "options": OPTIONS,
        "tokenizer": TOKENIZER,
        "programs": PROGRAMS,
        "process": PROCESS,
    }
    assert (found.page_size, found.page_bytes, found.max_model_len) == (16, PAGE, 1024)
    assert found.num_pages == 1 + 64 * (1024 // 16) * 2  # of use: twice what all sequences need
    assert found.free_bytes == 8 * GIB - 100 * MIB - found.workspace_bytes - found.kv_bytes


def test_what_lies_on_the_device_and_what_the_process_takes():
    found = plan(8 * GIB, max_model_len=1024)
    assert found.array_bytes == 100 * MIB + history(1024) + OPTIONS + found.kv_bytes
    assert found.total_bytes == 8 * GIB - found.free_bytes
    assert found.after_compiling_bytes == found.total_bytes + 190_000_000
    on_gpu = plan(8 * GIB, max_model_len=1024, platform="cuda")
    assert on_gpu.after_compiling_bytes == on_gpu.total_bytes


def test_fewer_programs_and_no_tokenizer_take_less():
    one = dict(plan(deterministic=True, skip_tokenizer_init=True).workspace)
    assert (one["programs"], one["tokenizer"]) == (17_000_000, 0)


def test_without_prefix_caching_fewer_pages_are_of_use():
    assert plan(max_model_len=1024, enable_prefix_caching=False).num_pages == 1 + 64 * 64
    assert plan(max_model_len=100, max_num_seqs=2, page_size=16).num_pages == 1 + 2 * 7 * 2


def test_the_default_is_a_quarter_of_the_limit_and_at_most_4_gib():
    assert plan(4 * GIB).num_pages == GIB // PAGE
    larger = dataclasses.replace(SIZES, max_positions=65_536)
    assert plan(64 * GIB, larger).num_pages == 4 * GIB // PAGE
    assert "the smaller of 4 GiB and a quarter of the limit" in plan(4 * GIB).table()


def test_less_is_left_than_a_quarter():
    available = 600 * MIB
    room = available - 100 * MIB - ACTIVATIONS - LOGITS - history(4096) - REST
    found = plan(available)
    assert found.num_pages == room // PAGE
    assert 0 <= found.free_bytes < PAGE


def test_a_gpu_has_larger_pages_and_gives_nine_tenths():
    available = 8 * GIB
    larger = dataclasses.replace(SIZES, max_positions=131_072)
    found = plan(available, larger, platform="cuda")
    workspace = ACTIVATIONS + 64 * 32_000 * 4 * 5 + history(131_072) + OPTIONS + GIB
    room = available - 100 * MIB - workspace
    assert found.page_size == 64
    assert found.num_pages == room * 9 // 10 // (64 * 4096)


def test_the_context_lowers_itself_and_says_so():
    found = plan(8 * GIB, num_pages=101)
    assert found.max_model_len == 1600
    assert dict(found.workspace)["history"] == history(1600)
    assert found.notes[-1] == (
        "max_model_len: 4096 needs 256 pages, 100 fit (100 x 65536 bytes: num_pages=101);"
        " lowered to 1600"
    )
    assert found.notes[-1] in found.table()


def test_a_context_that_was_asked_for_is_refused_with_fixes_that_work():
    with pytest.raises(InvalidArgument) as caught:
        plan(8 * GIB, max_model_len=4096, kv_memory=100 * PAGE + 17)
    assert str(caught.value) == (
        "RTPJ-2103 KV_PAGES_INSUFFICIENT: max_model_len=4096 needs 256 pages, 99 fit (99 x 65536"
        " bytes: kv_memory=6553617). Lower max_model_len to <= 1584, or raise kv_memory to >="
        " 16842752, or set kv_dtype=bfloat16 (199 fit)."
    )
    assert caught.value.field == "max_model_len"
    assert plan(max_model_len=1584, kv_memory=100 * PAGE + 17).num_pages == 100
    assert plan(max_model_len=4096, kv_memory=16_842_752).num_pages == 257
    half = dataclasses.replace(SIZES, kv=kv_layers(4, "bfloat16"))
    assert plan(sizes=half, max_model_len=199 * 16, kv_memory=100 * PAGE).num_pages == 200


def test_the_fix_names_num_pages_where_these_were_given():
    with pytest.raises(InvalidArgument, match=r"<= 16, or raise num_pages to >= 257\.$"):
        plan(max_model_len=4096, num_pages=2)
    assert plan(max_model_len=4096, num_pages=257).max_model_len == 4096


def test_weights_that_do_not_fit_are_refused_with_the_numbers():
    needed = 100 * MIB + ACTIVATIONS + LOGITS + history(4096) + REST + 2 * PAGE
    assert plan(needed).num_pages == 2
    with pytest.raises(FailedPrecondition) as caught:
        plan(needed - 1)
    message = str(caught.value)
    assert message.startswith(f"RTPJ-2104 MODEL_TOO_LARGE: the model needs {needed} bytes (weights")
    assert f"{needed - 1} are available. Use a machine with 1 bytes more" in message


@pytest.mark.parametrize(
    ("options", "range_"),
    [
        ({"kv_memory": PAGE}, rf"between {2 * PAGE} and \d+\.$"),
        ({"kv_memory": 80 * GIB}, rf"between {2 * PAGE} and \d+\.$"),
        ({"num_pages": 10**9}, r"between 2 and \d+\.$"),
    ],
)
def test_kv_memory_that_does_not_fit_is_refused_with_the_range(options, range_):
    with pytest.raises(InvalidArgument, match=range_) as caught:
        plan(**options)
    assert caught.value.id == "RTPJ-2105"
    (name,) = options
    most = int(str(caught.value).rstrip(".").rsplit(" ", 1)[1])
    assert plan(**{name: most}).free_bytes < 2 * PAGE


def test_more_than_the_model_knows_is_refused():
    with pytest.raises(InvalidArgument, match=r"RTPJ-2106 .* Lower max_model_len to <= 4096"):
        plan(max_model_len=4097)


def test_the_table_is_for_reading():
    table = plan(8 * GIB, max_model_len=1024).table().splitlines()
    assert table[0].split() == ["available", "8192.0", "MiB", "cpu"]
    assert table[1].split() == ["weights", "100.0", "MiB"]
    assert table[9].startswith("KV pages")
    assert table[9].endswith("8193 pages of 16 tokens, 65536 bytes each")
    assert table[10].startswith("together")
    assert [line.split()[0] for line in table[2:9]] == [
        "activations",
        "logits",
        "history",
        "options",
        "tokenizer",
        "programs",
        "process",
    ]


def test_planning_imports_no_jax():
    code = "import sys, rtp_jax.runner.memory_plan; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_tiers_below_take_memory_of_the_host():
    wide = plan(8 * GIB, max_model_len=1024)
    tiers = {"kv_host_bytes": GIB, "kv_staging_bytes": 100 * MIB}
    found = plan(8 * GIB, max_model_len=1024, **tiers)
    assert dict(found.workspace)["host KV"] == GIB
    assert dict(found.workspace)["staging"] == 200 * MIB
    assert found.total_bytes - wide.total_bytes == found.kv_bytes - wide.kv_bytes + GIB + 200 * MIB
    assert found.free_bytes >= 0
    on_gpu = plan(8 * GIB, max_model_len=1024, platform="cuda", **tiers)
    assert "host KV" not in dict(on_gpu.workspace)
    assert dict(on_gpu.workspace)["staging"] == 200 * MIB
