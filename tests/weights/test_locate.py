"""Models by name: folders, the built-in model, the cache of the hub; anything else is refused."""

import pytest

from rtp_jax.errors import CheckpointError, InvalidArgument, NotFound
from rtp_jax.weights import locate
from rtp_jax.weights.locate import find_model


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path):
    return tmp_path / "hub"


def cached(hub, revision, *, main=None):
    repository = hub / "models--org--name"
    fill(repository / "snapshots" / revision)
    if main is not None:
        fill(repository / "refs")
        (repository / "refs" / "main").write_text(main)
    return repository / "snapshots" / revision


def test_a_folder(tmp_path, hub):
    assert find_model(str(fill(tmp_path / "model")), hub_cache=hub) == tmp_path / "model"


def test_a_folder_of_several_files(tmp_path, hub):
    folder = fill(tmp_path / "model", "config.json", "model.safetensors.index.json")
    assert find_model(str(folder), hub_cache=hub) == folder


def test_a_folder_below_the_home(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "m")
    assert find_model("~/m", hub_cache=hub) == tmp_path / "m"


def test_the_built_in_model(tmp_path, hub, monkeypatch):
    monkeypatch.setitem(locate.BUILT_IN, "rtp-tiny", fill(tmp_path / "assets"))
    assert find_model("rtp-tiny", hub_cache=hub) == tmp_path / "assets"


def test_a_model_in_the_cache(hub):
    cached(hub, "old")
    new = cached(hub, "0a1b2c", main="0a1b2c\n")
    cached(hub, "newest")
    assert find_model("org/name", hub_cache=hub) == new


@pytest.mark.parametrize("main", [None, "gone", "../../..", "\xff", "x" * 90])
def test_a_cache_without_a_usable_reference(hub, main):
    snapshot = cached(hub, "0a1b2c", main=main)
    assert find_model("org/name", hub_cache=hub) == snapshot


def test_a_model_that_is_not_here_says_how_to_get_it(hub):
    with pytest.raises(NotFound, match=r"^RTPJ-3031 MODEL_NOT_FOUND: ") as caught:
        find_model("org/name", hub_cache=hub)
    message = str(caught.value)
    assert "`hf download org/name`" in message
    assert "`huggingface-cli download org/name`" in message
    assert str(hub / "models--org--name") in message
    assert "rtp-tiny" in message


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "nothing", "a/b/c", "x" * 300, "a/" + "y" * 300]
)
def test_a_folder_that_is_not_here(hub, name):
    with pytest.raises(NotFound, match="RTPJ-3031 MODEL_NOT_FOUND"):
        find_model(name, hub_cache=hub)


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "x" * 1025, "\ud800"])
def test_what_is_not_a_name_is_refused(hub, name):
    with pytest.raises(InvalidArgument, match="RTPJ-3030 MODEL_NAME_INVALID"):
        find_model(name, hub_cache=hub)


def test_a_name_that_climbs_is_refused_and_written_anew(tmp_path, hub):
    fill(tmp_path / "model")
    with pytest.raises(InvalidArgument, match="RTPJ-3030") as caught:
        find_model(f"{tmp_path}/x/../model", hub_cache=hub)
    assert str(caught.value).endswith(f"Write {tmp_path / 'model'}.")
    with pytest.raises(InvalidArgument, match="RTPJ-3030"):
        find_model("org/..", hub_cache=hub)


def test_a_file_is_not_a_folder(tmp_path, hub):
    fill(tmp_path, "model.gguf")
    with pytest.raises(InvalidArgument, match="RTPJ-3032 MODEL_IS_A_FILE"):
        find_model(str(tmp_path / "model.gguf"), hub_cache=hub)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "consolidated.00.pth", "model.gguf"])
def test_another_format_is_to_be_converted(tmp_path, hub, other):
    fill(tmp_path / "m", "config.json", other)
    with pytest.raises(CheckpointError, match="RTPJ-3033 FORMAT_UNSUPPORTED") as caught:
        find_model(str(tmp_path / "m"), hub_cache=hub)
    assert other in str(caught.value)
    assert "Convert" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "lacks"),
    [
        (["model.safetensors", "training_args.bin"], "lacks config.json. "),
        (["config.json"], "lacks model.safetensors (or its .index.json). "),
        (["README.md"], "lacks config.json and model.safetensors"),
    ],
)
def test_an_incomplete_folder(tmp_path, hub, names, lacks):
    fill(tmp_path / "m", *names)
    with pytest.raises(CheckpointError, match="RTPJ-3034 MODEL_INCOMPLETE") as caught:
        find_model(str(tmp_path / "m"), hub_cache=hub)
    assert lacks in str(caught.value)


def test_a_config_outside_of_the_folder_is_refused(tmp_path, hub):
    fill(tmp_path, "secret.json")
    fill(tmp_path / "m", "model.safetensors")
    (tmp_path / "m" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="RTPJ-3014 FILE_OUTSIDE"):
        find_model(str(tmp_path / "m"), hub_cache=hub)
