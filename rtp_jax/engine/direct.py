"""Do pages travel by jax's transfer server?  If the engine was told so, and if that works here."""

from rtp_jax.config import EngineConfig
from rtp_jax.engine.transfer import exchanges_pages
from rtp_jax.errors import InvalidArgument
from rtp_jax.runner.direct_server import JaxEnd, unavailable
from rtp_jax.transfer.direct_choice import Direct
from rtp_jax.transfer.direct_give import Giving
from rtp_jax.transfer.direct_take import Taking


def check_transport(config: EngineConfig) -> None:
    """Refuse a transport that does not go with the rest of a config, before anything is loaded.

    Raises:
      FailedPrecondition: it was asked for and cannot be had.
    """
    if config.transfer.kv_transport == "grpc":
        return
    if not exchanges_pages(config):
        raise unavailable("the engine exchanges no pages without a role and enable_prefix_caching")
    if config.transfer.transfer_tls_ca is not None:
        raise unavailable("it does not encrypt, and transfer_tls_ca asks for TLS")


def check_room(config: EngineConfig, page_bytes: int) -> None:
    """Refuse a transport without room for one page, over which nothing would ever go.

    Raises:
      InvalidArgument: kv_transport_bytes is less than a page has.
    """
    transfer = config.transfer
    if transfer.kv_transport != "grpc" and transfer.kv_transport_bytes < page_bytes:
        raise InvalidArgument(
            f"RTPJ-4316 KV_TRANSPORT_TOO_SMALL: kv_transport_bytes={transfer.kv_transport_bytes},"
            f" and a page has {page_bytes} bytes: none would ever go by kv_transport="
            f"{transfer.kv_transport}. Raise kv_transport_bytes, or leave kv_transport out.",
            field="kv_transport_bytes",
        )


def direct_of(config: EngineConfig) -> Direct | None:
    """Start the transfer server of an engine, or return None for one that uses gRPC alone.

    Raises:
      FailedPrecondition: jax cannot start it here.
    """
    transfer = config.transfer
    if transfer.kv_transport == "grpc":
        return None
    end = JaxEnd(transfer.kv_transport_host)
    giving = Giving(end, max_bytes=transfer.kv_transport_bytes, keep_s=transfer.transfer_lease_s)
    return Direct(end, giving, Taking(end, max_stuck=transfer.kv_transport_stuck))
