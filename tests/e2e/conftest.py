"""How each test that uses a pair of workers begins and ends; its file has the fixture `pair`."""

import pytest


@pytest.fixture(autouse=True)
def forgotten(request):
    """Begin with empty prefix caches, and end with nothing left."""
    if "pair" not in request.fixturenames:
        yield
        return
    pair = request.getfixturevalue("pair")
    pair.forget()
    yield
    pair.check_idle()
