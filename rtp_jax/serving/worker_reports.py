"""How does a router read what workers report?  Messages to the plain data of `router/facts.py`."""

from rtp_jax.router.facts import (
    EventKind,
    PageEvent,
    PageEvents,
    PageHashing,
    Role,
    StepSample,
    Tier,
    WorkerFacts,
    WorkerLoad,
)
from rtp_jax.wire import router_pb2 as pb

TIER_OF = {pb.TIER_DEVICE: Tier.DEVICE, pb.TIER_HOST: Tier.HOST, pb.TIER_DISK: Tier.DISK}
KIND_OF = {
    pb.PageEvent.KIND_INSERTED: EventKind.INSERTED,
    pb.PageEvent.KIND_EVICTED: EventKind.EVICTED,
    pb.PageEvent.KIND_CLEARED: EventKind.CLEARED,
}


def facts_of(message: pb.WorkerFacts, address: str) -> WorkerFacts:
    """Read who a worker is; its id is the address at which this router knows it.

    One that exchanges pages has a layout, and does so at that address unless it names another.
    """
    return WorkerFacts(
        id=address,
        address=address,
        epoch=message.epoch,
        role=Role(message.role),
        hashing=PageHashing(
            message.page_key, message.model_epoch, message.kv_scheme, message.page_size
        ),
        num_pages=message.num_pages,
        max_num_seqs=message.max_num_seqs,
        max_num_batched_tokens=message.max_num_batched_tokens,
        max_model_len=message.max_model_len,
        model=message.model,
        layout=message.layout,
        kv_address=message.kv_address or (address if message.layout else ""),
        prefix_caching=message.prefix_caching,
        version=message.version,
    )


def load_of(message: pb.WorkerLoad) -> WorkerLoad:
    """Read how busy a worker is."""
    return WorkerLoad(
        num_running=message.num_running,
        num_waiting=message.num_waiting,
        num_free_pages=message.num_free_pages,
        num_cached_pages=message.num_cached_pages,
        prefill_tokens=message.prefill_tokens,
        decode_tokens=message.decode_tokens,
        num_decoding=message.num_decoding,
        draining=message.draining,
        steps=[
            StepSample(each.prefill_tokens, each.num_decoding, each.context_tokens, each.seconds)
            for each in message.steps
        ],
    )


def events_of(message: pb.PageEvents) -> PageEvents:
    """Read what happened to a worker's pages; what is not known here makes no page known."""
    return PageEvents(
        message.first_event,
        [
            PageEvent(KIND_OF[each.kind], TIER_OF[each.tier], each.key)
            if each.kind in KIND_OF and each.tier in TIER_OF
            else PageEvent(EventKind.EVICTED, Tier.DISK, each.key)
            for each in message.events
        ],
        snapshot=message.snapshot,
        more=message.more,
    )
