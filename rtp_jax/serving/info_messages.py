"""How does what an engine says about itself cross the wire?  Field by field, by the same names."""

from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.sampling_messages import message_of_params, params_of
from rtp_jax.wire import generation_pb2 as pb


def model_info_message(info: ModelInfo) -> pb.GetModelInfoResponse:
    """Spell which model is served."""
    return pb.GetModelInfoResponse(
        name=info.name,
        architecture=info.architecture,
        vocab_size=info.vocab_size,
        max_model_len=info.max_model_len,
        dtype=info.dtype,
        kv_dtype=info.kv_dtype,
        page_size=info.page_size,
        num_pages=info.num_pages,
        eos_token_ids=info.eos_token_ids,
        default_sampling=message_of_params(info.default_sampling_params),
        fingerprint=info.fingerprint,
        max_num_seqs=info.max_num_seqs,
        num_parameters=info.num_parameters,
    )


def loads_message(loads: Loads) -> pb.GetLoadsResponse:
    """Spell how busy an engine is."""
    return pb.GetLoadsResponse(
        num_running=loads.num_running,
        num_waiting=loads.num_waiting,
        num_pages=loads.num_pages,
        num_free_pages=loads.num_free_pages,
        num_cached_pages=loads.num_cached_pages,
        page_size=loads.page_size,
        max_num_seqs=loads.max_num_seqs,
        num_open_requests=loads.num_open_requests,
        num_offers=loads.num_offers,
    )


def model_info_of(message: pb.GetModelInfoResponse) -> ModelInfo:
    """Read which model a worker serves; what it does not say of its engine is empty."""
    return ModelInfo(
        name=message.name,
        architecture=message.architecture,
        vocab_size=message.vocab_size,
        max_model_len=message.max_model_len,
        dtype=message.dtype,
        kv_dtype=message.kv_dtype,
        page_size=message.page_size,
        num_pages=message.num_pages,
        max_num_seqs=message.max_num_seqs,
        eos_token_ids=tuple(message.eos_token_ids),
        default_sampling_params=params_of(
            message.default_sampling, output_kind=OutputKind.CUMULATIVE
        ),
        fingerprint=message.fingerprint,
        epoch="",
        platform="",
        tensor_parallel_size=0,
        num_parameters=message.num_parameters,
        buckets=(),
    )
