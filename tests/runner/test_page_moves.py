"""Pages leave the device and come back bit for bit, in every scheme, and in the order of moves."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.kernels.pages import KVGroup, storage_dtype
from rtp_jax.page_record import PageMoves, PageRead, PageRecord, PageWrite
from rtp_jax.parallel.devices import LoneDevice
from rtp_jax.quant.kv_schemes import KV_SCHEMES
from rtp_jax.runner.page_moves import SIZES, PageMover, layout_of
from rtp_jax.runner.programs import prepare_programs

PAGES, LAYERS, HEADS, SIZE, DIM = 50, 3, 2, 4, 8
GROUPS = [["float32"], ["bfloat16"], ["int8"], ["fp8"], ["bfloat16", "int8"], ["fp8", "float32"]]


def arrays(names: list[str], rng: np.random.Generator) -> tuple[KVGroup, ...]:
    """Draw pages of every bit pattern, NaN among them: they are moved, never computed with."""
    groups = []
    for name in names:
        scheme = KV_SCHEMES[name]
        dtype = np.dtype(storage_dtype(jnp.dtype(scheme.dtype)))
        shape = (PAGES, LAYERS, 2, HEADS, SIZE, DIM)
        bits = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
        scales = None
        if scheme.scale_bytes:
            scales = jnp.asarray(rng.standard_normal(shape[:-1]).astype(np.float32))
        groups.append(KVGroup(jnp.asarray(bits.view(dtype)[..., 0]), scales))
    return tuple(groups)


def payload(kv: tuple[KVGroup, ...], page: int) -> bytes:
    """What a page is outside the device, spelled with nothing but NumPy."""
    parts = [np.asarray(part)[page] for group in kv for part in (group.pages, group.scales)
             if part is not None]  # fmt: skip
    return b"".join(part.tobytes() for part in parts)


@pytest.fixture
def mover_of():
    """Make movers for arrays, and end their threads."""
    made = []

    def make(kv: tuple[KVGroup, ...]) -> PageMover:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kv)
        mover = PageMover(shapes, LoneDevice(jax.devices("cpu")[0]))
        programs, _ = prepare_programs(
            mover.programs(), folder=None, key="", devices=mover._devices, progress=lambda _: None
        )
        mover.start_reading(programs)
        made.append(mover)
        return mover

    yield make
    for mover in made:
        mover.close()
    assert not [each for each in threading.enumerate() if each.name == "rtp-pages"]


class Sinks:
    """Waits for records."""

    def __init__(self):
        self.records: dict[int, PageRecord | None] = {}
        self._arrived = threading.Semaphore(0)

    def read(self, page: int) -> PageRead:
        def sink(record):
            self.records[page] = record
            self._arrived.release()

        key = page.to_bytes(16, "little")
        return PageRead(page, key, bytes(16), b"ids", sink)

    def wait(self, count: int) -> dict[int, PageRecord | None]:
        for _ in range(count):
            assert self._arrived.acquire(timeout=10)
        return self.records


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_pages_come_back_bit_for_bit(mover_of, names):
    rng = np.random.default_rng(0)
    kv = arrays(names, rng)
    before = [payload(kv, page) for page in range(PAGES)]
    mover, sinks = mover_of(kv), Sinks()
    assert mover.page_bytes == len(before[0])

    pages = rng.permutation(np.arange(1, PAGES))[: SIZES[0] + 3].tolist()
    kv = mover.move(kv, PageMoves([sinks.read(page) for page in pages], []))
    records = sinks.wait(len(pages))

    for page in pages:
        record = records[page]
        assert record is not None
        assert record.sound
        assert bytes(record.payload) == before[page]
    sources = pages[:5]
    targets = [7, 0, 9, 10, 11]  # the second one goes nowhere
    staged = mover.stage([records[page].payload for page in sources])
    kv = mover.move(kv, PageMoves([], [PageWrite(staged, targets)]))
    expected = dict(zip(targets, sources, strict=True))
    for page in range(1, PAGES):
        assert payload(kv, page) == before[expected.get(page, page)], page


def test_reads_see_what_was_there_before_the_writes(mover_of):
    kv = arrays(["bfloat16"], np.random.default_rng(1))
    old, new = payload(kv, 3), payload(kv, 4)
    mover, sinks = mover_of(kv), Sinks()
    staged = mover.stage([new])
    kv = mover.move(kv, PageMoves([sinks.read(3)], [PageWrite(staged, [3])]))
    record = sinks.wait(1)[3]
    assert bytes(record.payload) == old
    assert payload(kv, 3) == new


def test_writing_is_in_place(mover_of):
    kv = arrays(["int8"], np.random.default_rng(2))
    mover = mover_of(kv)
    kv = mover.warm_up(jax.block_until_ready(kv))
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(kv)]
    staged = mover.stage([payload(kv, 3)] * 8)
    kv = mover.move(kv, PageMoves([], [PageWrite(staged, [5] + [0] * 7)]))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(kv)] == before


def test_a_read_that_fails_is_told_to_its_sink(mover_of):
    kv = arrays(["float32"], np.random.default_rng(3))
    mover, sinks = mover_of(kv), Sinks()
    gone = [leaf.delete() for leaf in jax.tree.leaves(kv)]
    assert gone
    with pytest.raises((RuntimeError, ValueError)):
        mover.move(kv, PageMoves([sinks.read(1), sinks.read(2)], []))
    assert sinks.wait(2) == {1: None, 2: None}


def test_large_pages_are_copied_few_at_a_time():
    huge = jax.ShapeDtypeStruct((3, 64, 2, 8, 64, 128), jnp.float32)  # 33.5 MB a page
    mover = PageMover((KVGroup(huge, None),), LoneDevice(jax.devices("cpu")[0]))
    assert mover.sizes == (1,)


def test_a_layout_says_what_a_payload_holds():
    kv = arrays(["bfloat16", "int8"], np.random.default_rng(4))
    layout = layout_of(kv, page_size=SIZE, model_epoch="m", kv_scheme="mixed")
    first, second = layout.groups
    assert (first.layers, first.kv_heads, first.head_dim) == (LAYERS, HEADS, DIM)
    assert (first.dtype, first.scales, second.dtype, second.scales) == (
        "uint16", False, "int8", True,
    )  # fmt: skip
    other = layout_of(kv, page_size=SIZE, model_epoch="other", kv_scheme="mixed")
    assert layout.fingerprint != other.fingerprint
