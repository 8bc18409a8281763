"""Files of layers: their bytes are those that the layout's own library writes."""

from pathlib import Path

import numpy as np

from checkpoints_tools.calibration.grid import Kind, plainly
from checkpoints_tools.calibration.kept_layers import LayerFile

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "compressed_tensors.npz")
FLOAT32 = np.dtype(np.float32)


def test_groups_with_zero_points_are_stored_as_the_library_does(tmp_path):
    weight, norm = GOLDEN["weight"], np.arange(5, dtype=np.float32)
    kind = Kind(128, False, FLOAT32)
    modules = {"mlp.down": ("model.layers.0.mlp.down_proj", weight.shape)}
    changed = {"mlp_norm.scale": ("norm.weight", FLOAT32, norm.shape)}
    file, matrix = LayerFile(0, modules, changed, kind), plainly(weight, kind)
    file.write(tmp_path, {"mlp.down": matrix}, {"mlp_norm.scale": norm})
    path, compared = tmp_path / file.name, 0
    for output in (each for made in file.outputs(tmp_path).values() for each in made):
        part = output.name.removeprefix("model.layers.0.mlp.down_proj.")
        if part == output.name:
            continue
        expected = GOLDEN[f"int4_zeros.{part}"]
        found = np.concatenate([*output.make()]).view(output.dtype).reshape(output.shape)
        assert found.dtype == expected.dtype
        # Scales are divided in float64 here and in float32 there, so their last bit may differ.
        rtol = 2e-7 if part == "weight_scale" else 0
        expected = expected.reshape(found.shape)
        np.testing.assert_allclose(found, expected, rtol=rtol, err_msg=part)
        compared += 1
    assert compared == 4
    assert path.stat().st_size == file.num_bytes
    encoded, others = file.read(tmp_path)
    for one, other in zip(encoded["mlp.down"], matrix, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(others["mlp_norm.scale"], norm)
