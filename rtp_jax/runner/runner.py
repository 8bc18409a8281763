"""The runner: executes plans, and owns all device state.

Three calls of the engine's loop end here: `prepare` pads a plan to arrays, `execute` enqueues the
compiled step and returns at once, `to_host` waits for what it sampled.  Read next: `step.py`.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from rtp_jax.kernels.pages import KVGroup
from rtp_jax.page_record import PageMoves
from rtp_jax.parallel.devices import WHOLE, Devices, Specs
from rtp_jax.request import StepPlan, StepResult
from rtp_jax.runner.batch import Batch, SlotTable, WideArrays
from rtp_jax.runner.buckets import Bucket
from rtp_jax.runner.compile_watch import CompileWatch
from rtp_jax.runner.host_memory import return_free_memory
from rtp_jax.runner.kv_arrays import KV_SPEC
from rtp_jax.runner.packing import layout
from rtp_jax.runner.page_moves import PageMover
from rtp_jax.runner.programs import CompileReport, Program, prepare_programs
from rtp_jax.runner.sampler import Sampled, sample
from rtp_jax.runner.step import State, WideArguments, set_history, step_function
from rtp_jax.runner.zeroed import maker, zero
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROB_TOKEN_IDS


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShapes:
    """The sizes that shape every program of an engine."""

    buckets: tuple[Bucket, ...]
    kv: tuple[KVGroup, ...]  # shapes and dtypes of each KV group
    num_slots: int
    max_model_len: int
    page_size: int
    vocab_size: int  # ids that may be sampled
    padded_vocab_size: int  # columns of the logits

    @property
    def num_pages(self) -> int:
        """Pages that there are, the null page included."""
        return self.kv[0].pages.shape[0]

    @property
    def table_width(self) -> int:
        """Pages of the longest sequence."""
        return -(-self.max_model_len // self.page_size)

    @property
    def history_shape(self) -> tuple[int, int]:
        """One row for each slot and one for padding; the last token of a full context included."""
        return self.num_slots + 1, self.max_model_len + 1


class InFlight:
    """A step that is enqueued: its results arrive on the host while the next one is prepared."""

    def __init__(self, batch: Batch, sampled: Sampled):
        self.bucket = batch.bucket
        wanted = sampled if batch.wants_logprobs else sampled._replace(**dict.fromkeys(_LOGPROBS))
        self._sampled = wanted
        for array in jax.tree.leaves(wanted):
            array.copy_to_host_async()

    def to_host(self) -> StepResult:
        """Wait for the step and return what it sampled."""
        sampled = jax.tree.map(np.asarray, self._sampled)
        failed = frozenset(np.flatnonzero(sampled.failed).tolist())
        return StepResult(
            sampled.token_ids,
            sampled.logprobs,
            sampled.ranks,
            sampled.top_ids,
            sampled.top_logprobs,
            sampled.chosen_logprobs,
            failed,
        )


STATE_SPECS: Specs = State._make((KV_SPEC, WHOLE))  # how devices share it
_LOGPROBS = ("logprobs", "ranks", "top_ids", "top_logprobs", "chosen_logprobs")


class Runner:
    """Weights, KV pages and history on the devices, and the programs that advance them."""

    def __init__(
        self,
        *,
        weights: list[jax.Array],
        build: Callable,
        shapes: StepShapes,
        devices: Devices,
        weight_specs: list[PartitionSpec] | None = None,
        native: str | None = None,
        moves_pages: bool = False,
    ):
        """Hold what programs are made of.

        Args:
          weights: leaves that `build` takes, what one device has of each.
          build: puts the model together.
          shapes: of whole arrays.
          devices: where everything is.
          weight_specs: how devices share each of `weights`; None: every device has them all.
          native: level of C++ kernels that programs may call; None keeps them to XLA, but for what
            `build` calls.
          moves_pages: whether there are programs that copy pages to the host and back.
        """
        self.shapes = shapes
        self.compile_report = CompileReport()
        self._weights = weights
        self.build = build
        self._devices, self._native = devices, native
        self._weight_specs = WHOLE if weight_specs is None else weight_specs
        self._slots = SlotTable(
            num_slots=shapes.num_slots,
            table_width=shapes.table_width,
            vocab_size=shapes.padded_vocab_size,
        )
        self._programs: Mapping[str, jax.stages.Compiled] = {}
        self._unused = {bucket: self._unused_wide(bucket) for bucket in shapes.buckets}
        self._state: State | None = None
        self.mover = PageMover(shapes.kv, devices) if moves_pages else None

    def compile(self, *, folder, key: str, progress: Callable[[str], None]) -> CompileReport:
        """Make every program ready, allocate the state, and run each program once on padding."""
        self._programs, self.compile_report = prepare_programs(
            self.programs(), folder=folder, key=key, devices=self._devices, progress=progress
        )
        return_free_memory()
        self.reset_state()
        assert self._state is not None
        for bucket in self.shapes.buckets:
            vector, fields = layout(bucket, self.shapes.table_width).new()
            for name in ("token_slots", "row_slots", "commit_slots"):
                fields[name][:] = self._slots.null_slot
            fields["num_logprobs"][:] = -1
            fields["top_ps"][:] = 1
            fields["repetition"][:] = 1
            self.execute(Batch(bucket, vector, WideArrays(), True)).to_host()
        self.remember(0, np.zeros(0, np.int32))
        if self.mover is not None:
            self.mover.start_reading(self._programs)
            self._state = self._state._replace(kv=self.mover.warm_up(self._state.kv))
        return self.compile_report

    def reset_state(self) -> None:
        """Allocate zeroed pages and history; whatever they held is gone."""
        self._state = None  # free the old arrays first
        state = self._programs["state"]()
        zero(state, self._native)
        self._state = state

    @property
    def weights(self) -> list[jax.Array]:
        """The leaves that `build` takes; there are none after `close`."""
        return self._weights

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays that lie on the devices between steps."""
        arrays = jax.tree.leaves((self._weights, self._state, self._unused))
        return sum(part.data.nbytes for array in arrays for part in array.addressable_shards)

    def watch_compiles(self) -> CompileWatch:
        """Count what the calling thread compiles from now on."""
        return CompileWatch()

    def close(self) -> None:
        """Give the device's memory back."""
        if self.mover is not None:
            self.mover.close()
        self._weights, self._state, self._programs, self._unused = [], None, {}, {}

    def prepare(self, plan: StepPlan) -> Batch:
        """Pad a plan to the arrays of a bucket, on the host."""
        for row in plan.rows:
            # The step writes the ids that it is given; the ones before were cached.
            if row.admits and row.start > 0 and row.sequence.request.params.penalised:
                self.remember(row.slot, np.array(row.sequence.known_ids(0, row.start), np.int32))
        return self._slots.prepare(plan, self.shapes.buckets)

    def execute(self, batch: Batch) -> InFlight:
        """Enqueue a step; returns before it has run."""
        assert self._state is not None
        wide = self._wide_arguments(batch)
        program = self._programs[f"step-{batch.bucket}"]
        # NumPy as it is: the call's own transfer is cheaper than a device_put before it.
        self._state, sampled = program(self._weights, self._state, batch.vector, wide)
        return InFlight(batch, sampled)

    def move(self, moves: PageMoves) -> None:
        """Enqueue copies of pages to the host and back, before the next step."""
        assert self._state is not None
        assert self.mover is not None, "this runner was built to keep its pages"
        self._state = self._state._replace(kv=self.mover.move(self._state.kv, moves))

    def remember(self, slot: int, ids: np.ndarray) -> None:
        """Write the token ids of a slot into the device's history."""
        assert self._state is not None
        row = np.zeros(self.shapes.history_shape[1], np.int32)
        row[: len(ids)] = ids
        history = self._programs["history"](self._state.history, np.int32(slot), row)
        self._state = self._state._replace(history=history)

    def programs(self) -> list[Program]:
        """Describe every program of the lattice, largest first, so that compiling overlaps."""
        history = jax.ShapeDtypeStruct(self.shapes.history_shape, jnp.int32)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        row = jax.ShapeDtypeStruct((self.shapes.history_shape[1],), jnp.int32)
        state = State._make((self.shapes.kv, history))
        local = self._devices.local(state, STATE_SPECS)
        make = Program(
            "state", maker(local, self._native), (), state, in_specs=(), out_specs=STATE_SPECS
        )
        steps = [self._step(bucket, state) for bucket in self.shapes.buckets]
        write = Program("history", set_history, (history, scalar, row), history, donated=(0,))
        moves = [] if self.mover is None else self.mover.programs()
        return [*reversed(steps), *moves, write, make]

    def _step(self, bucket: Bucket, state: State) -> Program:
        fields = layout(bucket, self.shapes.table_width)
        sampler = functools.partial(sample, vocab_size=self.shapes.vocab_size, native=self._native)
        describe = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
        return Program(
            f"step-{bucket}",
            step_function(self.build, fields, sampler),
            (
                describe(self._weights),
                state,
                jax.ShapeDtypeStruct((fields.size,), jnp.int32),
                describe(self._unused[bucket]),
            ),
            (state, Sampled._make(Sampled._fields)),
            donated=(1,),
            in_specs=(self._weight_specs, STATE_SPECS, WHOLE, WHOLE),
            out_specs=(STATE_SPECS, WHOLE),
        )

    def _unused_wide(self, bucket: Bucket) -> WideArguments:
        """Neutral options that stay on the device for the steps that have none."""
        rows, words = bucket.sequences, -(-self.shapes.padded_vocab_size // 32)
        put = self._devices.put
        return WideArguments(
            masks=put(np.zeros((rows, words), np.uint32)),
            bias_ids=put(np.full((rows, MAX_LOGIT_BIAS), -1, np.int32)),
            bias_values=put(np.zeros((rows, MAX_LOGIT_BIAS), np.float32)),
            logprob_ids=put(np.zeros((rows, MAX_LOGPROB_TOKEN_IDS), np.int32)),
            used=put(np.zeros(3, bool)),
        )

    def _wide_arguments(self, batch: Batch) -> WideArguments:
        unused, wide = self._unused[batch.bucket], batch.wide
        if wide.masks is None and wide.bias_ids is None and wide.logprob_ids is None:
            return unused
        used = [wide.masks is not None, wide.bias_ids is not None, wide.logprob_ids is not None]
        put = self._devices.put
        return WideArguments(
            masks=unused.masks if wide.masks is None else put(wide.masks),
            bias_ids=unused.bias_ids if wide.bias_ids is None else put(wide.bias_ids),
            bias_values=unused.bias_values if wide.bias_values is None else put(wide.bias_values),
            logprob_ids=unused.logprob_ids if wide.logprob_ids is None else put(wide.logprob_ids),
            used=put(np.array(used)),
        )
