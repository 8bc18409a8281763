"""Whatever a body holds, the HTTP door answers it or says what is wrong; the engine stays whole."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtp_jax.serving.http_requests import CHAT, COMPLETION, NEUTRAL
from tests.engine.workload import check_idle
from tests.serving.http_client import ask
from tests.serving.started import Servers

FIELDS = sorted(CHAT | COMPLETION | NEUTRAL.keys())
SCALARS = st.sampled_from([None, True, False, -1, 0, 1, 2, 10**9, 10**30, 0.5, -3.5, 1e300])
SCALARS |= st.sampled_from(["", "a", "\ud800", "5", "auto", "none", "text", "x" * 300])
NAMES = st.sampled_from(
    ["", "1", "5", "-1", "999999999", "role", "content", "type", "include_usage"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5)
PATHS = {
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}


@pytest.fixture(scope="module")
def url(real_engine):
    started = Servers()
    yield started.start(real_engine, http_port=0).url
    started.stop()
    check_idle(real_engine)


@pytest.mark.parametrize("path", PATHS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=BODIES)
def test_any_body_is_answered(url, path, body):
    answer = ask(url + path, PATHS[path] | body)
    if answer.status == 200:
        return
    assert answer.status in (400, 404), (answer.text, body)
    error = json.loads(answer.text)["error"]
    assert error["message"].startswith(error["code"]), error
