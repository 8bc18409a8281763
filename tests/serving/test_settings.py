"""Settings: flag before environment before file before default, and nothing unknown."""

import dataclasses

import pytest
import yaml

from rtp_jax.errors import InvalidArgument
from rtp_jax.serving.settings import Settings, gather, knobs, read_file


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes) -> str:
        path = tmp_path / "serve.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def test_who_is_heard_first(file):
    path = file("model: rtp-tiny\nport: 1\nmax_num_seqs: 2\nhost: ::1\n")
    environment = {"port": "3", "max_num_seqs": "4", "config": path}
    settings = gather({"port": "5", "seed": None}, environment)
    sources = {name: (each.value, each.source) for name, each in settings.of.items()}
    assert sources["port"] == (5, "flag --port")
    assert sources["max_num_seqs"] == (4, "environment RTP_JAX_MAX_NUM_SEQS")
    assert sources["host"] == ("::1", f"file {path}")
    assert sources["seed"] == (0, "default")
    assert (settings.model, settings.server().port) == ("rtp-tiny", 5)
    assert settings.engine_options() == {"max_num_seqs": 4}


def test_a_flag_names_another_file(file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("port: 7\n")
    settings = gather({"config": str(other)}, {"config": file("port: 1\n")})
    assert settings.server().port == 7


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("metrics_port", "none", None),
        ("metrics_port", "9", 9),
        ("insecure", "YES", True),
        ("insecure", "0", False),
        ("drain_timeout_s", "1.5", 1.5),
        ("max_queue_s", "null", None),
        ("platform", "None", None),
        ("platform", "cpu", "cpu"),
        ("compile_cache", "", ""),
        ("host", "none", "none"),
    ],
)
def test_text_becomes_a_value(name, text, value):
    assert gather({}, {name: text}).of[name].value == value
    assert gather({name: text}, {}).of[name].value == value


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ({"port": "many"}, {}, "RTPJ-1202 SETTING_UNREADABLE: --port is 'many'"),
        ({}, {"insecure": "perhaps"}, "RTPJ-1202.*RTP_JAX_INSECURE is 'perhaps'"),
        ({"drain_timeout_s": ""}, {}, "RTPJ-1202"),
        ({}, {"prot": "3"}, "RTPJ-1001.*RTP_JAX_PROT.*Did you mean RTP_JAX_PORT"),
        ({"port": "-1"}, {}, "RTPJ-1101 CONFIG_INVALID: port=-1"),
        ({"port": "99999"}, {}, "RTPJ-1101"),
        ({"drain_timeout_s": "nan"}, {}, "RTPJ-1101"),
        ({"max_request_s": "inf"}, {}, "RTPJ-1101"),
        ({"dtype": "float8"}, {}, "RTPJ-1101 CONFIG_INVALID: dtype='float8'"),
        ({"max_num_seqs": "0"}, {}, "RTPJ-1101"),
        ({"metrics_compat": "x"}, {}, "RTPJ-1101"),
    ],
)
def test_what_is_wrong_is_said(flags, environment, words):
    with pytest.raises(InvalidArgument, match=words):
        check(gather(flags, environment))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot: 1\n", "RTPJ-1001.*prot.*Did you mean port"),
        ("- a\n", "RTPJ-1203 SETTINGS_FILE_INVALID.*holds a list"),
        ("port: [\n", "RTPJ-1203.*is not YAML"),
        ("!!python/object/apply:os.system ['true']\n", "RTPJ-1203.*is not YAML"),
        (b"\xff\xfe\x00", "RTPJ-1203"),
        ("[" * 5000, "RTPJ-1203"),
        (b"# " + b"x" * (1 << 20), "RTPJ-1203.*bytes"),
        ("port: '1'\n", "RTPJ-1101 CONFIG_INVALID: port='1'"),
        ("insecure: 1\n", "RTPJ-1101"),
        ("port: true\n", "RTPJ-1101"),
        ("1: 2\n", "RTPJ-1001"),
    ],
)
def test_a_wrong_file_is_said(file, content, words):
    with pytest.raises(InvalidArgument, match=words):
        check(gather({"config": file(content)}, {}))


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(InvalidArgument, match="RTPJ-1203"):
            gather({"config": str(path)}, {})


def test_an_empty_file_says_nothing(file):
    assert read_file(file(""), known=[]) == {}
    assert read_file(file("# nothing\n"), known=[]) == {}


def test_a_model_must_be_named():
    with pytest.raises(InvalidArgument, match="RTPJ-1201 MODEL_NOT_GIVEN"):
        _ = gather({}, {}).model


def test_passwords_are_not_shown():
    shown = gather({"kv_remote_url": "redis://user:secret@host:6379/0"}, {}).describe()
    assert "redis://user:***@host:6379/0" in shown
    assert "secret" not in shown


def test_what_is_shown_can_be_read_again(file):
    shown = gather({"port": "5", "host": "::1"}, {"json_logs": "true"}).describe()
    assert "# flag --port" in shown
    read_back = yaml.safe_load(shown)
    assert (read_back["port"], read_back["host"], read_back["json_logs"]) == (5, "::1", True)
    again = gather({"config": file(shown)}, {})
    assert {name: again.of[name].value for name in read_back} == read_back
    of_router = yaml.safe_load(gather({"policy": "affinity"}, {}).describe(route=True))
    assert of_router["policy"] == "affinity"
    assert {*read_back, *of_router} == {*again.of}


def test_every_knob_has_words_and_a_good_default():
    check(gather({}, {}))
    for knob in knobs().values():
        assert knob.metadata["help"]
        assert knob.default is not dataclasses.MISSING


def check(settings: Settings) -> None:
    """Check all sections, as `serve` does."""
    settings.server()
    settings.engine_options()
