"""Which sampling options a model wants when a request says nothing: `generation_config.json`."""

from pathlib import Path

from rtp_jax.errors import CheckpointError, RtpError
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.weights.files import read_json

TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def default_params(folder: Path) -> SamplingParams:
    """Read the model's defaults; as in vLLM, `do_sample` is not looked at."""
    path = folder / "generation_config.json"
    if not path.exists():
        return SamplingParams()
    config = read_json(path)
    options = {name: config[name] for name in TAKEN if config.get(name) is not None}
    try:
        return SamplingParams(**options)
    except RtpError as error:
        raise CheckpointError(
            f"RTPJ-3108 GENERATION_CONFIG_INVALID: {path.name} has {error.field}="
            f"{config.get(error.field)!r}, which no request could ask for. Mend the file."
        ) from error
