"""Comparing checkpoints: what differs and by how much, and what the models say about a text."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints_tools import text_quality
from checkpoints_tools.text_quality import Window, divergence, measure
from tests.checkpoints_tools.written import every_dtype, run, save
from tests.tiny_model import TEXT, write_tiny_model


@pytest.fixture
def verify(capsys):
    """Run `verify --json` and return its code and its answer."""

    def ask(*arguments) -> tuple[int, dict]:
        code = run("verify", *arguments, "--json")
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return ask


def test_equal_tensors_in_other_files_are_equal(tmp_path, verify):
    save(tmp_path / "a", every_dtype())
    save(tmp_path / "b", every_dtype(), num_files=3)
    code, answer = verify(tmp_path / "a", tmp_path / "b")
    assert (code, answer["equal"], answer["identical"]) == (0, True, 7)


@pytest.mark.capability("checkpoint tools")
def test_every_kind_of_difference_is_named(tmp_path, verify):
    left = {
        "same": np.arange(4, dtype=np.float32),
        "values": np.array([3.0, 4.0], np.float32),
        "shape": np.zeros((2, 3), np.float32),
        "dtype": np.array([1.0, 2.0, 0.3], np.float32),
        "gone": np.zeros(1, np.int64),
        "nan": np.array([np.nan, np.inf, 1.0], np.float32),
    }
    right = {
        "same": left["same"],
        "values": np.array([3.0, 4.5], np.float32),
        "shape": np.zeros((3, 2), np.float32),
        "dtype": left["dtype"].astype(ml_dtypes.bfloat16),
        "new": np.zeros(1, np.int64),
        "nan": np.array([np.nan, np.inf, 2.0], np.float32),
    }
    code, answer = verify(save(tmp_path / "a", left), save(tmp_path / "b", right))
    found = {d.pop("name"): d for d in answer["differences"]}
    assert code == 3
    assert answer["identical"] == 1
    assert found["values"] == {"what": "values", "max_error": 0.5, "relative_error": 0.1}
    assert found["shape"]["what"] == "shape [2, 3] and [3, 2]"
    assert found["dtype"]["what"] == "float32 and bfloat16"
    assert found["dtype"]["max_error"] == pytest.approx(
        abs(float(left["dtype"][2]) - float(right["dtype"][2])), rel=1e-5
    )
    assert found["gone"]["what"] == "missing in B"
    assert found["new"]["what"] == "missing in A"
    assert found["nan"]["max_error"] == 1.0
    assert found.keys() == {"values", "shape", "dtype", "gone", "new", "nan"}


def test_an_error_may_be_accepted_but_no_missing_tensor(tmp_path, verify):
    left = {"a": np.array([3.0, 4.0], np.float32)}
    save(tmp_path / "a", left)
    save(tmp_path / "b", {"a": np.array([3.0, 4.5], np.float32)})
    assert verify(tmp_path / "a", tmp_path / "b", "--max-error", 0.11)[0] == 0
    assert verify(tmp_path / "a", tmp_path / "b", "--max-error", 0.09)[0] == 3
    save(tmp_path / "c", {**left, "b": left["a"]})
    assert verify(tmp_path / "c", tmp_path / "a", "--max-error", 9)[0] == 3
    save(tmp_path / "d", {"a": np.array([3.0, np.nan], np.float32)})
    code, answer = verify(tmp_path / "a", tmp_path / "d", "--max-error", 9)
    (difference,) = answer["differences"]
    assert (code, difference["relative_error"]) == (3, None)
    assert "not all differences are finite" in difference["what"]


def test_people_are_told_the_worst_first(tmp_path, capsys):
    left = {f"t{i}": np.ones(3, np.float32) for i in range(30)}
    right = {name: array + 0.01 * int(name[1:]) for name, array in left.items()}
    assert run("verify", save(tmp_path / "a", left), save(tmp_path / "b", right)) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 30 tensors are identical"
    assert "t29: values: largest difference 0.29, relative 0.29" in lines[1]
    assert lines[-1] == "  and 9 more"


def test_one_checkpoint_needs_a_manifest(tmp_path, capsys):
    assert run("verify", save(tmp_path / "a", every_dtype())) == 2
    assert "RTPJ-3616 NOTHING_TO_COMPARE" in capsys.readouterr().err


def test_companions_are_verified_too(tmp_path, capsys):
    assert run("convert", save(tmp_path / "a", every_dtype()), tmp_path / "b", "--to", "orbax") == 0
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert run("verify", tmp_path / "b") == 3
    assert "tokenizer.json has sha256" in capsys.readouterr().err


def test_measures_are_what_they_are_called():
    random = np.random.default_rng(0)
    p, q = (random.dirichlet(np.ones(5), 6) for _ in range(2))
    said = [0, 1, 2, 3, 4, 0]

    def window(rows):
        likely = [{i: math.log(x) for i, x in enumerate(row)} for row in rows]
        return Window([table[i] for i, table in zip(said, likely, strict=True)], likely)

    found = measure([window(p)], [window(q)])
    expected = [
        np.exp(-np.mean([np.log(row[i]) for row, i in zip(x, said, strict=True)])) for x in (p, q)
    ]
    assert found["perplexity"] == pytest.approx(expected)
    assert found["greedy_agreement"] == (p.argmax(1) == q.argmax(1)).mean()
    assert found["kl"] == pytest.approx(np.sum(p * np.log(p / q)) / 6)
    assert found["tokens"] == 6


def test_divergence_of_a_part_is_never_more_than_the_whole():
    random = np.random.default_rng(1)
    for _ in range(50):
        p, q = random.dirichlet(np.ones(8)), random.dirichlet(np.ones(8))
        top = [{int(i): math.log(x[i]) for i in np.argsort(x)[-4:]} for x in (p, q)]
        whole = float(np.sum(p * np.log(p / q)))
        assert -1e-9 <= divergence(*top) <= whole + 1e-9


def test_models_are_compared_by_a_text(tmp_path, tiny_model, verify, program_cache):
    text = tmp_path / "text.txt"
    text.write_text(2 * TEXT)
    other = write_tiny_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    random = np.random.default_rng(0)
    noisy = {
        n: (a + 0.01 * random.standard_normal(a.shape)).astype(a.dtype) for n, a in tensors.items()
    }
    save_file(noisy, other / "model.safetensors")
    options = ["--text", text, "--window", 64, "--max-tokens", 150]
    options += ["--compile-cache", program_cache]
    code, answer = verify(tiny_model, other, *options, "--text-only")
    assert code == 0
    found = answer["text"]
    assert found["tokens"] == 147  # of three windows, each without its first token
    assert 0 < found["kl"] < 0.5
    assert 0.3 < found["greedy_agreement"] < 1
    assert 0.8 < found["perplexity_ratio"] < 1.25


def test_a_text_of_equal_models_does_not_excuse_tensors(tmp_path, tiny_model, verify, monkeypatch):
    said = {"tokens": 9, "perplexity": [4.0, 5.0], "greedy_agreement": 0.9, "kl": 0.1}
    monkeypatch.setattr(text_quality, "measure", lambda *_: said)
    monkeypatch.setattr(text_quality, "_spoken", lambda *_: [])
    (tmp_path / "text").write_text(TEXT)
    other = write_tiny_model(tmp_path / "other", seed=1)
    for code, options in {
        3: [],
        0: [
            "--text-only",
            "--max-kl",
            0.11,
            "--min-agreement",
            0.9,
            "--max-perplexity-ratio",
            1.25,
        ],
    }.items():
        assert verify(tiny_model, other, "--text", tmp_path / "text", *options)[0] == code
    for limit in (("--max-kl", 0.09), ("--min-agreement", 0.91), ("--max-perplexity-ratio", 1.24)):
        options = ["--text", tmp_path / "text", "--text-only", *limit]
        code, answer = verify(tiny_model, tiny_model, *options)
        assert (code, answer["text"]["passed"]) == (3, False)


@pytest.mark.parametrize(
    ("text", "options", "error"),
    [
        (b"x", [], "RTPJ-3618 TEXT_OPTIONS_INVALID"),
        (b"long enough", ["--window", 1], "RTPJ-3618 TEXT_OPTIONS_INVALID"),
        (b"\xff\xfe", [], "RTPJ-3619 TEXT_NOT_UTF8"),
    ],
)
def test_texts_that_tell_nothing_are_refused(tmp_path, tiny_model, capsys, text, options, error):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    assert run("verify", tiny_model, tiny_model, "--text", path, *options) == (
        1 if text[0] == 255 else 2
    )
    assert error in capsys.readouterr().err


def test_a_text_that_is_not_there_is_refused(tmp_path, tiny_model, capsys):
    assert run("verify", tiny_model, tiny_model, "--text", tmp_path / "none.txt") == 1
    assert "RTPJ-3635 TEXT_UNREADABLE" in capsys.readouterr().err
