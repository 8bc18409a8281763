"""Every error has one id, one name, an entry in the docs and a test that triggers it."""

import re
from pathlib import Path

import pytest

from rtp_jax import errors
from tools.error_table import PAGE, completed, raised, raised_in, rows

TESTS = Path(__file__).parent
# Errors that no test triggers yet.  This list only shrinks: an id that a test names must leave it.
UNTRIGGERED: set[str] = set()


def ids_in_tests() -> set[str]:
    """List the ids that some test expects, by id or by name."""
    files = [file for file in TESTS.rglob("*.py") if file != Path(__file__)]
    text = "\n".join(file.read_text() for file in files)
    mentioned = set(re.findall(r"RTPJ-\d{4}|\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", text))
    return {error.id for error in raised() if {error.id, error.name} & mentioned}


def test_an_id_has_one_name_and_a_name_one_id():
    pairs = {(error.id, error.name) for error in raised()}
    assert len({id for id, _ in pairs}) == len({name for _, name in pairs}) == len(pairs), pairs


def test_an_id_has_one_kind():
    kinds = {(error.id, error.kind) for error in raised() if error.kind}
    assert len({id for id, _ in kinds}) == len(kinds), sorted(kinds)


def test_every_error_is_documented():
    documented = {(id, cells[0]) for id, cells in rows(PAGE.read_text()).items()}
    assert documented == {(error.id, error.name) for error in raised()}, "run tools/error_table.py"


def test_every_row_of_the_table_is_complete_and_true():
    table = rows(PAGE.read_text())
    assert [id for id, cells in table.items() if len(cells) != 4 or not all(cells)] == []
    kinds = {kind.value for kind in errors.Kind}
    assert [id for id, cells in table.items() if cells[1] not in kinds] == []
    raised_as = {error.id: error.kind for error in raised()[::-1] if error.kind}
    assert [id for id, kind in raised_as.items() if table[id][1] != kind] == []


def test_every_error_is_triggered_by_a_test():
    assert {error.id for error in raised()} - ids_in_tests() == UNTRIGGERED


@pytest.mark.smoke
def test_an_error_knows_its_id_name_and_kind():
    error = errors.NotFound("RTPJ-9999 NOTHING_HERE: no such thing. Make one.", field="model")
    assert (error.id, error.name, error.field) == ("RTPJ-9999", "NOTHING_HERE", "model")
    assert error.kind is errors.Kind.NOT_FOUND
    assert isinstance(error, LookupError)


EXAMPLE = '''
"""A docstring may say RTPJ-9001 NOT_THIS_ONE."""
def check(path, size):
    raise errors.NotFound(f"RTPJ-9002 TOO_BIG: {path} has {size} bytes. Shrink it. Or not.")

def corrupt(path):
    return spelled("RTPJ-9003 CORRUPT", path)
'''


def test_ids_are_found_with_their_kind_and_words(tmp_path):
    (tmp_path / "x.py").write_text(EXAMPLE)
    first, second = raised_in(tmp_path / "x.py", tmp_path)
    assert (first.id, first.name, first.kind) == ("RTPJ-9002", "TOO_BIG", "not_found")
    assert first.where == "x.py:4"
    assert (second.id, second.kind) == ("RTPJ-9003", "")
    table = completed({"RTPJ-9003": ["OLD_NAME", "internal", "kept", "words"]}, [first, second])
    assert table["RTPJ-9002"][2:] == ["… has … bytes", "Shrink it. Or not."]
    assert table["RTPJ-9003"] == ["CORRUPT", "internal", "kept", "words"]
