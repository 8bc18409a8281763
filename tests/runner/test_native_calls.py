"""Programs call the native kernels that were asked for, and none where they are off."""

import jax
import pytest

from rtp_jax.config import native_cache
from rtp_jax.kernels.native import library
from rtp_jax.runner.programs import Program
from tests.runner.test_step_memory import Numbers, make_runner


def lowered(program: Program) -> str:
    """Return what XLA would compile."""
    return jax.jit(program.function, keep_unused=True).lower(*program.arguments).as_text()


@pytest.mark.parametrize("native", [False, True])
def test_what_another_engine_has_loaded_is_not_called_where_native_is_off(tiny_model, native):
    if reason := library.load(native_cache()):
        pytest.skip(reason)
    programs = make_runner(tiny_model, Numbers("float32", "float32", native=native)).programs()
    step, state = lowered(programs[0]), lowered(programs[-1])
    assert programs[-1].name == "state"
    assert ("rtp_largest" in step, "rtp_unwritten" in state) == (native, native)
    assert native or "rtp_" not in step + state
