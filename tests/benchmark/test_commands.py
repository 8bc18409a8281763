"""`rtp-jax bench`: command lines, what they print, what they write, how they refuse."""

import argparse
import json
import shutil
import sys
import threading
from importlib.util import find_spec

import pytest

from rtp_jax.benchmark import sweep
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.serving.bench_engine import add_engine, settings_for
from rtp_jax.serving.bench_latency import Stream, round_figures
from rtp_jax.serving.flags import parse
from rtp_jax.serving.main import main

ENGINE = ["--deterministic", "--dtype=float32", "--max-model-len=96", "--num-pages=99"]
ENGINE += ["--max-num-seqs=8", "--max-num-batched-tokens=32"]  # one step to compile
SPREAD = {"p50", "p95", "p99", "mean", "min", "max"}


def ended(arguments: list[str]) -> int | str | None:
    """Run a command line and return its exit code."""
    try:
        return main(["bench", *arguments])
    except SystemExit as exit_:
        return exit_.code


def written(path) -> dict:
    """Read a record and check what every record has."""
    record = json.loads(path.read_text())
    assert record["machine"]["cores"] >= 1
    assert {"python", "rtp_jax", "numpy"} <= record["versions"].keys()
    assert record["date"].startswith("20")
    return record


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "required: KIND"),
        (["--help"], 0, "throughput"),
        (["speed"], 2, "invalid choice"),
        (["serve", "--help"], 0, "--concurrency"),
        (["serve"], 2, "--target"),
        (["latency", "m", "--bacth", "1"], 2, "RTPJ-1001 .*--batch"),
        (["latency", "m", "--batch", "0"], 2, "RTPJ-5501 BENCH_OPTION_INVALID: --batch"),
        (["latency", "m", "--output-tokens", "1"], 2, "RTPJ-5501 .*--output-tokens"),
        (["latency", "m", "--dtype", "int3"], 2, "RTPJ-1101"),
        (["latency", "m", "--json", "no/such/folder/x"], 1, "RTPJ-5507 BENCH_FILE_UNWRITABLE"),
        (["latency", "no-model"], 1, "RTPJ-3031"),
        (["throughput", "m", "--length-scale", "2"], 2, "RTPJ-5502 BENCH_OPTIONS_CONTRADICT"),
        (["throughput", "m", "--trace", "no/such"], 2, "RTPJ-5503 TRACE_INVALID"),
        (["throughput", "m", "--shared-prefix", "2"], 2, "RTPJ-5501 .*--shared-prefix"),
        (["serve", "--target", "ftp://x"], 2, "RTPJ-5501 .*--target"),
        (["serve", "--target", "grpc://127.0.0.1:1"], 1, "RTPJ-5504 TARGET_UNREACHABLE"),
        (["serve", "--target", "grpc://x", "--replay"], 2, "RTPJ-5502 .*--replay"),
        (["serve", "--target", "grpc://x", "--time-scale", "2"], 2, "RTPJ-5502 .*--time-scale"),
        (["serve", "--target", "grpc://x", "--tls-ca", "pyproject.toml"], 2, "RTPJ-5502 .*tls-ca"),
        (["serve", "--target", "grpc://x", "--extra-body", "{}"], 2, "RTPJ-5502 .*--extra-body"),
        (["serve", "--target", "http://x", "--extra-body", "[]"], 2, "RTPJ-5501 .*--extra-body"),
        (["serve", "--target", "http://x", "--extra-body", "{"], 2, "RTPJ-5501 .*--extra-body"),
        (["serve", "--target", "grpc://x", "--as-text"], 2, "RTPJ-5502 .*--as-text"),
        (["serve", "--target", "grpc://x", "--temperature", "3"], 2, "RTPJ-5501 .*--temperature"),
        (["serve", "--target", "grpc://x", "--rate", "inf"], 2, "RTPJ-5501 .*--rate"),
        (["serve", "--target", "grpc://x", "--vocab-size", "x"], 2, "RTPJ-5501 .*--vocab-size"),
        (["load", "--target", "grpc://x"], 2, "RTPJ-5502 .*--rates and --concurrencies"),
        (["load", "--target", "grpc://x", "--rates", "3"], 2, "RTPJ-5501 .*--rates"),
        (["load", "--target", "grpc://x", "--rates", "1,x"], 2, "RTPJ-5501 .*--rates"),
        (["load", "--target", "x", "--rates", "1,2", "--plot", "x.gif"], 2, "RTPJ-5501 .*--plot"),
    ],
)
def test_how_a_measurement_is_refused(capsys, arguments, code, words):
    assert ended(arguments) == code
    shown = capsys.readouterr()
    with pytest.raises(ValueError, match=words):
        raise ValueError(" ".join((shown.out + shown.err).split()))
    assert "Traceback" not in shown.err


def test_trace_options_that_contradict(tmp_path, capsys):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"input_length": 5, "timestamp": 0}\n')
    target = ["serve", "--target", "grpc://x", "--trace", str(trace)]
    for more in (
        ["--prompt-tokens", "3"],
        ["--shared-prefix", "0.5"],
        ["--replay", "--rate", "1"],
        ["--num-requests", "2"],
    ):
        assert ended([*target, *more]) == 2
        assert "RTPJ-550" in capsys.readouterr().err
    trace.write_text('{"prompt": "spelled out"}\n')
    assert ended(["throughput", "m", "--trace", str(trace), "--rounds", "2"]) == 2
    assert "RTPJ-5502" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bare_model(tiny_model, tmp_path_factory) -> str:
    """Return a checkpoint without a tokenizer."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, folder)
    return str(folder)


@pytest.mark.capability("benchmarks")
def test_latency_of_a_real_engine(bare_model, program_cache, tmp_path, capsys):
    path = tmp_path / "latency.json"
    options = [f"--compile-cache={program_cache}", *ENGINE]
    arguments = ["--batch", "2", "--prompt-tokens", "40", "--output-tokens", "50"]
    arguments += ["--rounds", "3", "--json", str(path)]
    assert ended(["latency", bare_model, *options, *arguments]) == 0
    record = written(path)
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "ttft_s", "tpot_s"):
        low, high = record["ranges"][name]
        assert 0 < low <= record[name] <= high
    assert [each["cached_tokens"] for each in record["rounds"]] == [0, 0, 0]
    assert record["prefill_tokens_per_s"] <= 80 / record["ttft_s"]
    # Two sequences of one token a step each, while both decode.
    assert record["decode_tokens_per_s"] == pytest.approx(2 / record["tpot_s"], rel=0.5)
    assert record["engine"]["dtype"] == "float32"
    assert record["settings"]["skip_tokenizer_init"] is True
    assert record["options"] == {
        "batch": 2,
        "prompt_tokens": 40,
        "output_tokens": 50,
        "rounds": 3,
    }
    assert "decode, tokens/s" in capsys.readouterr().out


def test_decoding_is_timed_while_the_whole_batch_decodes():
    """Steps of 10 ms; the second request begins two steps later and is read 1 ms later."""
    first = Stream(5, [0.05 + 0.01 * i for i in range(7)], [1] * 7)
    second = Stream(5, [0.071 + 0.01 * i for i in range(7)], [1] * 7)
    found = round_figures([first, second])
    assert found["prefill_tokens_per_s"] == pytest.approx(10 / 0.071)
    assert found["ttft_s"] == pytest.approx((0.05 + 0.071) / 2)
    assert found["tpot_s"] == pytest.approx(0.01)
    # From 0.071 to 0.110: four steps begun, two tokens each; all but 1 ms of them is inside.
    assert found["decode_tokens_per_s"] == pytest.approx(8 / 0.039)
    early = Stream(5, [0.012, 0.022], [1, 1])  # six more steps until the second begins, so 7 tokens
    with pytest.raises(InvalidArgument, match=r"RTPJ-5509 BATCH_NEVER_WHOLE.*tokens to about 14"):
        round_figures([early, second])


def test_throughput_of_a_real_engine(bare_model, program_cache, tmp_path, capsys):
    path, trace = tmp_path / "throughput.json", tmp_path / "t.jsonl"
    options = [f"--compile-cache={program_cache}", *ENGINE, "--json", str(path)]
    arguments = ["--num-requests", "9", "--prompt-tokens", "uniform:33:60"]
    arguments += ["--output-tokens", "5", "--shared-prefix", "0.5", "--rounds", "2"]
    assert ended(["throughput", bare_model, *options, *arguments]) == 0
    record = written(path)
    assert record["output_tokens"] == 45
    assert 33 * 9 <= record["prompt_tokens"] <= 60 * 9
    assert record["requests_per_s"] == pytest.approx(9 / record["duration_s"], rel=0.5)
    assert len(record["rounds"]) == 2
    assert record["workload"]["prompt_tokens"] == "uniform:33:60"
    assert "requests_per_s" in capsys.readouterr().out
    trace.write_text('{"prompt_token_ids": [5, 6, 7], "output_length": 3}\n')
    assert ended(["throughput", bare_model, *options, "--trace", str(trace)]) == 0
    record = written(path)
    assert (record["output_tokens"], record["workload"]["num_requests"]) == (3, 1)


def test_settings_that_nobody_chose_suit_the_measurement():
    def chosen(arguments: list[str], **how) -> dict[str, object]:
        parser = argparse.ArgumentParser()
        add_engine(parser, rounds=1)
        settings = settings_for(parse(parser, ["m", *arguments]), **how)
        return settings.engine_options()

    assert chosen([], with_text=False) == {"skip_tokenizer_init": True}
    assert chosen([], with_text=True, num_seqs=64) == {}
    assert chosen(["--seed", "4"], with_text=True, num_seqs=65) == {"seed": 4, "max_num_seqs": 65}
    arguments = ["--no-skip-tokenizer-init", "--max-num-seqs", "2"]
    assert chosen(arguments, with_text=False, num_seqs=99) == {
        "skip_tokenizer_init": False,
        "max_num_seqs": 2,
    }


def test_a_server_driven_over_grpc(grpc_server, tmp_path, capsys):
    path = tmp_path / "serve.json"
    target = ["serve", "--target", f"grpc://{grpc_server.address}", "--json", str(path)]
    arguments = ["--num-requests", "8", "--prompt-tokens", "20", "--output-tokens", "6"]
    arguments += ["--concurrency", "3", "--slo", "ttft=5,tpot=5"]
    assert ended([*target, *arguments]) == 0
    record = written(path)
    assert (record["num_completed"], record["output_tokens"]) == (8, 48)
    assert (record["prompt_tokens"], record["cached_tokens"]) == (160, 24)
    assert record["goodput"]["share"] == 1.0
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "message_gap_s"):
        assert record[name].keys() == SPREAD
    assert record["load"] == {"concurrency": 3, "rate": None, "replay": False}
    assert record["server"]["server"].startswith("rtp_jax")
    shown = capsys.readouterr().out
    assert "8 of 8 requests completed" in shown
    assert "goodput (ttft <= 5 s, tpot <= 5 s)" in shown


def test_a_server_driven_over_http_by_a_trace(http_server, tmp_path, capsys):
    trace, path = tmp_path / "t.jsonl", tmp_path / "serve.json"
    lines = [
        {"timestamp": 100 * i, "input_length": 64, "output_length": 32, "hash_ids": [0]}
        for i in range(4)
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    http_server.joined = 2
    arguments = ["--trace", str(trace), "--replay", "--time-scale", "0.1", "--length-scale", "0.25"]
    target = ["--target", http_server.url, "--json", str(path)]
    assert ended(["serve", *target, *arguments]) == 0
    record = written(path)
    assert (record["model"], record["num_completed"], record["output_tokens"]) == ("letters", 4, 32)
    assert record["num_without_itl"] == 4
    assert record["duration_s"] >= 0.03
    bodies = http_server.seen[1:]  # the first one warms up
    assert [body["max_tokens"] for body in bodies] == [8] * 4
    assert len({tuple(body["prompt"]) for body in bodies}) == 1
    assert len(bodies[0]["prompt"]) == 16
    assert "TTFT" in capsys.readouterr().out


def test_prompts_as_text_and_bearer_tokens(http_server, tiny_model, tmp_path):
    (tmp_path / "token").write_text("a-secret-token\n")
    arguments = ["--target", http_server.url, "--token-file", str(tmp_path / "token")]
    arguments += ["--tokenizer", str(tiny_model), "--as-text", "--num-requests", "2"]
    assert ended(["serve", *arguments]) == 0
    assert {type(body["prompt"]) for body in http_server.seen} == {str}
    assert http_server.headers[0]["Authorization"] == "Bearer a-secret-token"


def test_a_vocabulary_that_nobody_knows(http_server, capsys):
    http_server.card = {"id": "x"}
    assert ended(["serve", "--target", http_server.url]) == 2
    assert "RTPJ-5505 VOCABULARY_UNKNOWN" in capsys.readouterr().err
    assert ended(["serve", "--target", http_server.url, "--vocab-size", "9"]) == 0


def test_a_server_that_still_starts(http_server):
    card, http_server.card = http_server.card, "not yet"
    arguments = ["serve", "--target", http_server.url, "--num-requests", "1"]
    assert ended(arguments) == 1
    threading.Timer(0.3, setattr, (http_server, "card", card)).start()
    assert ended([*arguments, "--wait", "30"]) == 0


def test_when_nothing_completes(http_server, tmp_path, capsys):
    http_server.refuse = 503, {"error": {"message": "RTPJ-4003 DRAINING: no."}}
    path = tmp_path / "x.json"
    assert ended(["serve", "--target", http_server.url, "--json", str(path)]) == 1
    assert "RTPJ-5510 NOTHING_COMPLETED: all 100" in capsys.readouterr().err
    assert written(path)["failures"] == {"RTPJ-4003 DRAINING": 100}


@pytest.mark.parametrize(
    ("loads", "name", "values"),
    [
        (["--rates", "200,50"], "rate", [50, 200]),
        (["--concurrencies", "4,1,2"], "concurrency", [1, 2, 4]),
    ],
)
def test_a_sweep(grpc_server, tmp_path, capsys, loads, name, values):
    path = tmp_path / "load.json"
    arguments = ["--target", f"grpc://{grpc_server.address}", "--json", str(path)]
    arguments += ["--num-requests", "10", "--prompt-tokens", "9", "--slo", "ttft=9"]
    first = len(grpc_server.engine.seen)
    assert ended(["load", *arguments, "--output-tokens", "3", *loads]) == 0
    record = written(path)
    assert record["load"] == name
    assert [point[name] for point in record["points"]] == values
    assert [point["num_completed"] for point in record["points"]] == [10] * len(values)
    if name == "rate":  # ten arrivals: the gaps of one seed, scaled
        slow, fast = (point["duration_s"] for point in record["points"])
        assert slow > 2 * fast
    prompts = [tuple(each["prompt"]) for each in grpc_server.engine.seen[first + 1 :]]
    assert len(set(prompts)) == 10 * len(values)  # no load finds those of another in a cache
    table = capsys.readouterr().out.strip().splitlines()
    assert len(table) == 1 + len(values)
    assert table[0].split()[0] == name


def test_plots_without_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FailedPrecondition, match="RTPJ-5508 MATPLOTLIB_ABSENT"):
        sweep.check_plot("x.png")


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib, extra bench, is absent")
def test_a_plot(grpc_server, tmp_path):
    path = tmp_path / "load.svg"
    arguments = ["--target", f"grpc://{grpc_server.address}", "--concurrencies", "1,2"]
    arguments += ["--num-requests", "3", "--prompt-tokens", "9"]
    arguments += ["--slo", "ttft=9", "--plot", str(path)]
    assert ended(["load", *arguments]) == 0
    assert path.stat().st_size > 10_000
    dead = {"rate": 9, "num_completed": 0, "ttft_s": None, "tpot_s": None, "message_gap_s": None}
    sweep.plot(str(tmp_path / "x.png"), [dead | {"output_tokens_per_s": 0.0}], "rate", "nothing")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
