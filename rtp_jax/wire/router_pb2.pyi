from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
TIER_UNSPECIFIED: Tier
TIER_DEVICE: Tier
TIER_HOST: Tier
TIER_DISK: Tier

class WatchRequest(_message.Message):
    __slots__ = ("epoch", "from_event", "period_s")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FROM_EVENT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_S_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    from_event: int
    period_s: float
    def __init__(self, epoch: _Optional[str] = ..., from_event: _Optional[int] = ..., period_s: _Optional[float] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("facts", "load", "events")
    FACTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    facts: WorkerFacts
    load: WorkerLoad
    events: PageEvents
    def __init__(self, facts: _Optional[_Union[WorkerFacts, _Mapping]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., events: _Optional[_Union[PageEvents, _Mapping]] = ...) -> None: ...

class WorkerFacts(_message.Message):
    __slots__ = ("epoch", "role", "model", "layout", "page_size", "page_key", "model_epoch", "kv_scheme", "max_model_len", "max_num_seqs", "num_pages", "max_num_batched_tokens", "kv_address", "version", "prefix_caching", "fingerprint")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    KV_SCHEME_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    role: str
    model: str
    layout: bytes
    page_size: int
    page_key: bytes
    model_epoch: str
    kv_scheme: str
    max_model_len: int
    max_num_seqs: int
    num_pages: int
    max_num_batched_tokens: int
    kv_address: str
    version: str
    prefix_caching: bool
    fingerprint: str
    def __init__(self, epoch: _Optional[str] = ..., role: _Optional[str] = ..., model: _Optional[str] = ..., layout: _Optional[bytes] = ..., page_size: _Optional[int] = ..., page_key: _Optional[bytes] = ..., model_epoch: _Optional[str] = ..., kv_scheme: _Optional[str] = ..., max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., num_pages: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., kv_address: _Optional[str] = ..., version: _Optional[str] = ..., prefix_caching: _Optional[bool] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("num_running", "num_waiting", "num_free_pages", "num_cached_pages", "prefill_tokens", "decode_tokens", "num_decoding", "draining", "steps")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_PAGES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    num_free_pages: int
    num_cached_pages: int
    prefill_tokens: int
    decode_tokens: int
    num_decoding: int
    draining: bool
    steps: _containers.RepeatedCompositeFieldContainer[StepSample]
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_free_pages: _Optional[int] = ..., num_cached_pages: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., decode_tokens: _Optional[int] = ..., num_decoding: _Optional[int] = ..., draining: _Optional[bool] = ..., steps: _Optional[_Iterable[_Union[StepSample, _Mapping]]] = ...) -> None: ...

class StepSample(_message.Message):
    __slots__ = ("prefill_tokens", "num_decoding", "context_tokens", "seconds")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    num_decoding: int
    context_tokens: int
    seconds: float
    def __init__(self, prefill_tokens: _Optional[int] = ..., num_decoding: _Optional[int] = ..., context_tokens: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class PageEvents(_message.Message):
    __slots__ = ("first_event", "snapshot", "more", "events")
    FIRST_EVENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    first_event: int
    snapshot: bool
    more: bool
    events: _containers.RepeatedCompositeFieldContainer[PageEvent]
    def __init__(self, first_event: _Optional[int] = ..., snapshot: _Optional[bool] = ..., more: _Optional[bool] = ..., events: _Optional[_Iterable[_Union[PageEvent, _Mapping]]] = ...) -> None: ...

class PageEvent(_message.Message):
    __slots__ = ("kind", "tier", "key")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[PageEvent.Kind]
        KIND_INSERTED: _ClassVar[PageEvent.Kind]
        KIND_EVICTED: _ClassVar[PageEvent.Kind]
        KIND_CLEARED: _ClassVar[PageEvent.Kind]
    KIND_UNSPECIFIED: PageEvent.Kind
    KIND_INSERTED: PageEvent.Kind
    KIND_EVICTED: PageEvent.Kind
    KIND_CLEARED: PageEvent.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    kind: PageEvent.Kind
    tier: Tier
    key: bytes
    def __init__(self, kind: _Optional[_Union[PageEvent.Kind, str]] = ..., tier: _Optional[_Union[Tier, str]] = ..., key: _Optional[bytes] = ...) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    def __init__(self, role: _Optional[str] = ...) -> None: ...

class SetRoleResponse(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    def __init__(self, role: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("model", "version", "policy", "uptime_s", "num_open", "num_waiting", "num_requests", "num_resumed", "num_failed", "prompt_tokens", "cached_tokens", "workers")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    NUM_OPEN_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_RESUMED_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    policy: str
    uptime_s: float
    num_open: int
    num_waiting: int
    num_requests: int
    num_resumed: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., policy: _Optional[str] = ..., uptime_s: _Optional[float] = ..., num_open: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_requests: _Optional[int] = ..., num_resumed: _Optional[int] = ..., num_failed: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("address", "state", "reason", "facts", "load", "load_age_s", "num_open", "num_sent", "num_lost", "prompt_tokens", "cached_tokens", "num_known_pages")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[WorkerStatus.State]
        STATE_SERVING: _ClassVar[WorkerStatus.State]
        STATE_DRAINING: _ClassVar[WorkerStatus.State]
        STATE_SILENT: _ClassVar[WorkerStatus.State]
        STATE_DOWN: _ClassVar[WorkerStatus.State]
    STATE_UNSPECIFIED: WorkerStatus.State
    STATE_SERVING: WorkerStatus.State
    STATE_DRAINING: WorkerStatus.State
    STATE_SILENT: WorkerStatus.State
    STATE_DOWN: WorkerStatus.State
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    LOAD_AGE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_OPEN_FIELD_NUMBER: _ClassVar[int]
    NUM_SENT_FIELD_NUMBER: _ClassVar[int]
    NUM_LOST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_KNOWN_PAGES_FIELD_NUMBER: _ClassVar[int]
    address: str
    state: WorkerStatus.State
    reason: str
    facts: WorkerFacts
    load: WorkerLoad
    load_age_s: float
    num_open: int
    num_sent: int
    num_lost: int
    prompt_tokens: int
    cached_tokens: int
    num_known_pages: int
    def __init__(self, address: _Optional[str] = ..., state: _Optional[_Union[WorkerStatus.State, str]] = ..., reason: _Optional[str] = ..., facts: _Optional[_Union[WorkerFacts, _Mapping]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., load_age_s: _Optional[float] = ..., num_open: _Optional[int] = ..., num_sent: _Optional[int] = ..., num_lost: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., num_known_pages: _Optional[int] = ...) -> None: ...
