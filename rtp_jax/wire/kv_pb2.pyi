from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvLayout(_message.Message):
    __slots__ = ("version", "groups", "page_size", "model_epoch", "kv_scheme")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MODEL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    KV_SCHEME_FIELD_NUMBER: _ClassVar[int]
    version: int
    groups: _containers.RepeatedCompositeFieldContainer[KvGroup]
    page_size: int
    model_epoch: str
    kv_scheme: str
    def __init__(self, version: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[KvGroup, _Mapping]]] = ..., page_size: _Optional[int] = ..., model_epoch: _Optional[str] = ..., kv_scheme: _Optional[str] = ...) -> None: ...

class KvGroup(_message.Message):
    __slots__ = ("layers", "kv_heads", "head_dim", "dtype", "scales")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    scales: bool
    def __init__(self, layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., dtype: _Optional[str] = ..., scales: _Optional[bool] = ...) -> None: ...

class DirectTransport(_message.Message):
    __slots__ = ("protocol", "host")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    host: str
    def __init__(self, protocol: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("layout", "direct")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    layout: KvLayout
    direct: DirectTransport
    def __init__(self, layout: _Optional[_Union[KvLayout, _Mapping]] = ..., direct: _Optional[_Union[DirectTransport, _Mapping]] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("layout", "epoch", "role", "direct", "no_direct")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    NO_DIRECT_FIELD_NUMBER: _ClassVar[int]
    layout: KvLayout
    epoch: str
    role: str
    direct: DirectTransport
    no_direct: str
    def __init__(self, layout: _Optional[_Union[KvLayout, _Mapping]] = ..., epoch: _Optional[str] = ..., role: _Optional[str] = ..., direct: _Optional[_Union[DirectTransport, _Mapping]] = ..., no_direct: _Optional[str] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("request_id", "token_ids", "cache_salt", "first_page", "deadline_s", "fingerprint", "epoch", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    first_page: int
    deadline_s: float
    fingerprint: bytes
    epoch: str
    priority: int
    def __init__(self, request_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ..., first_page: _Optional[int] = ..., deadline_s: _Optional[float] = ..., fingerprint: _Optional[bytes] = ..., epoch: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class OfferResponse(_message.Message):
    __slots__ = ("offer_id", "epoch", "fingerprint", "num_pages", "lease_s")
    OFFER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    offer_id: str
    epoch: str
    fingerprint: bytes
    num_pages: int
    lease_s: float
    def __init__(self, offer_id: _Optional[str] = ..., epoch: _Optional[str] = ..., fingerprint: _Optional[bytes] = ..., num_pages: _Optional[int] = ..., lease_s: _Optional[float] = ...) -> None: ...

class OfferId(_message.Message):
    __slots__ = ("offer_id", "epoch", "fetched")
    OFFER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    offer_id: str
    epoch: str
    fetched: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, offer_id: _Optional[str] = ..., epoch: _Optional[str] = ..., fetched: _Optional[_Iterable[int]] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("offer_id", "epoch", "first_page", "wait_s", "direct", "fetched")
    OFFER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    offer_id: str
    epoch: str
    first_page: int
    wait_s: float
    direct: bool
    fetched: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, offer_id: _Optional[str] = ..., epoch: _Optional[str] = ..., first_page: _Optional[int] = ..., wait_s: _Optional[float] = ..., direct: _Optional[bool] = ..., fetched: _Optional[_Iterable[int]] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("key", "digest", "payload", "offset")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    digest: bytes
    payload: bytes
    offset: int
    def __init__(self, key: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class PageFrame(_message.Message):
    __slots__ = ("first_page", "pages", "last", "direct", "direct_port")
    FIRST_PAGE_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    DIRECT_PORT_FIELD_NUMBER: _ClassVar[int]
    first_page: int
    pages: _containers.RepeatedCompositeFieldContainer[Page]
    last: bool
    direct: int
    direct_port: int
    def __init__(self, first_page: _Optional[int] = ..., pages: _Optional[_Iterable[_Union[Page, _Mapping]]] = ..., last: _Optional[bool] = ..., direct: _Optional[int] = ..., direct_port: _Optional[int] = ...) -> None: ...

class ExtendResponse(_message.Message):
    __slots__ = ("lease_s",)
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    lease_s: float
    def __init__(self, lease_s: _Optional[float] = ...) -> None: ...

class EndResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
