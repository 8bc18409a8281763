"""No program copies the KV pages that devices share; `tests/parallel` runs this."""

import jax
import pytest

from rtp_jax.parallel.axes import MeshShape
from rtp_jax.parallel.devices import DeviceMesh
from rtp_jax.runner import runner as runner_module
from rtp_jax.runner.programs import lowered
from rtp_jax.runner.runner import STATE_SPECS
from rtp_jax.runner.step import State
from tests.runner.test_step_memory import Numbers, make_runner, most_likely_tokens, num_bytes


@pytest.mark.parametrize("kv_dtype", ["int8", pytest.param("float32", marks=pytest.mark.full)])
def test_each_device_updates_its_part_in_place(tiny_model, monkeypatch, kv_dtype):
    monkeypatch.setattr(runner_module, "sample", most_likely_tokens)
    devices = DeviceMesh(jax.devices("cpu")[:4], MeshShape(2, 2))
    runner = make_runner(tiny_model, Numbers("float32", kv_dtype), devices)
    program = runner.programs()[0]
    state = program.arguments[1]
    assert isinstance(state, State)
    part = devices.local(state, STATE_SPECS)
    assert num_bytes(part.kv) * 2 == num_bytes(state.kv)
    memory = lowered(program, devices).compile().memory_analysis()
    assert memory.alias_size_in_bytes == num_bytes(part)
    assert memory.temp_size_in_bytes < num_bytes(part.kv) // 2
