"""Which layers keep KV in fewer bits: the fewest bytes within the budget, by what was measured."""

import json
from pathlib import Path

import pytest

from bench.quality.kv_choices import compare, rank_layers
from bench.quality.models import RTP_TINY, write_outliers
from rtp_jax.config import EngineConfig
from rtp_jax.engine.kv_choice import choose, choose_kv_layers, read_windows
from rtp_jax.errors import InvalidArgument
from rtp_jax.kernels.pages import ROUNDINGS
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.runner.device import find_devices
from rtp_jax.serving.main import main
from rtp_jax.text.tokenizer import load_tokenizer
from rtp_jax.weights.locate import find_model

HELD_OUT = json.loads((Path(__file__).parents[2] / "tools/rtp_tiny/held_out.json").read_text())
COSTS = [  # of each layer, in int8 and in fp8
    {"int8": 0.5, "fp8": 0.4},
    {"int8": 0.1, "fp8": 0.2},
    {"int8": 0.3, "fp8": 0.9},
    {"int8": 0.2, "fp8": 0.2},
]


class Sums:
    """A model whose divergences add up, times a factor where several layers are rounded."""

    def __init__(self, factor: float = 1.0):
        self.factor, self.asked = factor, []

    def __call__(self, schemes):
        self.asked.append(list(schemes))
        costs = [cost[s] for cost, s in zip(COSTS, schemes, strict=True) if s != "plain"]
        return sum(costs) * (self.factor if len(costs) > 1 else 1)


@pytest.mark.parametrize(
    ("budget", "factor", "chosen"),
    [
        (0.05, 1, ["plain", "plain", "plain", "plain"]),
        (0.1, 1, ["plain", "int8", "plain", "plain"]),
        (0.31, 1, ["plain", "int8", "plain", "int8"]),
        (0.61, 1, ["plain", "int8", "int8", "int8"]),
        (1.01, 1, ["fp8", "int8", "int8", "int8"]),
        (1.01, 2, ["plain", "int8", "plain", "int8"]),  # together they cost more than their sum
        (1.01, 0.5, ["fp8", "int8", "int8", "int8"]),
    ],
)
def test_as_many_layers_as_the_budget_allows(budget, factor, chosen):
    measure = Sums(factor)
    schemes, divergence, ranking = choose(measure, 4, budget)
    assert schemes == chosen
    assert divergence == measure(chosen) <= budget
    assert list(ranking.alone) == COSTS
    assert len(measure.asked) <= 2 * 4 + 4


@pytest.fixture(scope="module")
def setting(tmp_path_factory, program_cache):
    """Run the command once, over a part of the held-out text; give what it printed."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(HELD_OUT))
    return ["kv-layers", "rtp-tiny", "--text", str(file), "--characters", "1500"]


@pytest.mark.capability("quantized KV")
def test_the_command_prints_a_setting_within_the_budget(setting, capsys, program_cache):
    options = ["--compile-cache", str(program_cache), "--deterministic"]
    assert main([*setting, "--budget", "0.00004", *options]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["layer", *ROUNDINGS[1:], "chosen"]
    alone = [(float(row[1]), float(row[2]), row[3]) for row in rows[1:5]]
    # fp8 rounds to 4 bits, int8 to 8 of the largest: a layer of this model minds fp8 more.
    assert all(0 < int8 < fp8 for int8, fp8, _ in alone)
    together, (name, words) = float(rows[5][1]), rows[6]
    assert 0 < together <= 0.00004
    assert name == "kv_layers:"
    # What it is served in keeps the other layers, although it is measured in float32.
    served = find_devices(None).best_dtype
    chosen = kv_layers(4, served, words)
    assert [scheme.name for scheme in chosen.schemes] == [scheme for _, _, scheme in alone]
    taken = [int8 for int8, _, scheme in alone if scheme == "int8"]
    left = [int8 for int8, _, scheme in alone if scheme == served]
    assert len(taken) + len(left) == 4
    assert max(taken) <= min(left)
    # In bfloat16 layers alone would seem to cost twice as much as together, or more.
    assert together == pytest.approx(sum(taken), rel=0.25)


@pytest.mark.capability("quantized KV")
def test_where_layers_differ_no_other_choice_of_the_same_bytes_is_better(tmp_path, program_cache):
    model = str(write_outliers(RTP_TINY, tmp_path / "model", layers=(0, 2), factor=32.0))
    options = {"compile_cache": str(program_cache), "deterministic": True}
    ranking = rank_layers(model, [HELD_OUT[17][:700]], **options)
    assert ranking.best == ["fp8", "int8", "int8", "int8"]
    rows = compare(model, ranking, [HELD_OUT[18][:700]], sample=0, **options)
    assert [len(row.rivals) for row in rows] == [7, 23, 31, 15]  # all there are
    assert [row.better for row in rows] == [[]] * 4
    uniform = rows[3].fixed()
    assert rows[3].divergence < 0.8 * min(uniform["first in int8"], uniform["first in fp8"])


def test_what_is_chosen_here_may_not_be_given():
    for options in ({"kv_dtype": "int8"}, {"kv_layers": "0:fp8"}):
        config = EngineConfig.from_options(**options)
        with pytest.raises(InvalidArgument, match=r"RTPJ-1101 CONFIG_INVALID: kv_.*left out"):
            choose_kv_layers("rtp-tiny", config, ["text"], budget=1.0, progress=print)


def test_text_is_read_in_windows_and_must_be_there(tmp_path, capsys):
    tokenizer = load_tokenizer(find_model("rtp-tiny", hub_cache=tmp_path))
    windows = read_windows(tokenizer, ["word " * 1200, ""])
    assert [len(window) <= 512 for window in windows] == [True] * len(windows)
    assert sum(map(len, windows)) == len(tokenizer.encode("word " * 1200))
    for texts, reader in (([""], tokenizer), ([], tokenizer), (["text"], None)):
        with pytest.raises(InvalidArgument, match="RTPJ-1103 CALIBRATION_TEXT_INVALID"):
            read_windows(reader, texts)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for file in ("bytes", "no-such"):
        assert main(["kv-layers", "rtp-tiny", "--text", str(tmp_path / file)]) == 2
        assert "RTPJ-1103 CALIBRATION_TEXT_INVALID: text=" in capsys.readouterr().err
    assert main(["kv-layers", "rtp-tiny", "--text", "x", "--budget", "-1"]) == 2
    assert "RTPJ-5501" in capsys.readouterr().err
