"""The training step, and the one place that knows pmap."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpbert_jax.encoder.operations import Params
from dpbert_jax.programs import Ahead

AXIS = "batch"


class TrainState(NamedTuple):
    """Everything that a stage changes; un-replicated, without a device axis."""

    params: Params
    opt_state: Any
    step: Any  # int32 scalar: steps done in this stage


class Moment(NamedTuple):
    """What a loss may depend on that all rows of a step share."""

    key: Any  # the same on every shard
    progress: Any  # share of the stage's steps done
    total: Any  # `weights` of the whole global batch
    # Budgets and their thresholds, [G] each, where plans are drawn. No constants of the program:
    # another run has others, and should find it compiled.
    thresholds: tuple[Any, Any] | None = None

    def row_keys(self, positions: Any) -> Any:
        """A key for each row, by its place in the global batch; [B]."""
        return jax.vmap(lambda position: jax.random.fold_in(self.key, position))(positions)


# (params, batch, moment) -> (a shard's part of the loss, sums for the log)
Loss = Callable[[Params, Any, Moment], tuple[jax.Array, dict[str, jax.Array]]]
Sums = dict[str, float]
Batch = dict[str, np.ndarray]
Step = Callable[[TrainState, Batch, int], tuple[TrainState, Sums]]


def create_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def own_positions(rows: int, accumulation: int) -> np.ndarray:
    """Where this process's rows stand in a global batch of `rows`; int32.

    A micro-batch holds neighbours, dealt out over all devices of all processes in their order: how
    many processes share them out changes no micro-batch.
    """
    shape = (accumulation, jax.process_count(), -1)
    positions = np.arange(rows, dtype=np.int32).reshape(shape)
    return positions[:, jax.process_index()].reshape(-1)


def make_gradients(
    loss: Loss, accumulation: int, devices: Sequence[Any] | None = None
) -> Callable[..., tuple[Params, dict[str, jax.Array]]]:
    """The part of a step that all devices of all processes share: (gradients, sums).

    Arguments: parameters; the shards of the batch, [devices, accumulation, rows, ...]; signals
    [devices]; the step's key data; the share of the stage's steps done; `Moment.thresholds`.
    """

    def gradients(
        params: Params,
        shard: dict[str, jax.Array],
        signal: jax.Array,
        seed: jax.Array,
        progress: jax.Array,
        thresholds: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[Params, dict[str, jax.Array]]:
        """One device's part; arrays of the shard are [accumulation, rows, ...]."""
        key = jax.random.wrap_key_data(seed)
        total = jax.lax.psum(shard["weights"].sum(), AXIS)
        moment = Moment(key, progress, total, thresholds)

        def micro_batch(batch: dict[str, jax.Array]) -> tuple[Params, dict[str, jax.Array]]:
            return jax.grad(loss, has_aux=True)(params, batch, moment)

        found = micro_batch(jax.tree.map(lambda x: x[0], shard))
        if accumulation > 1:

            def add(carry: Any, batch: dict[str, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, micro_batch(batch)), None

            found, _ = jax.lax.scan(add, found, jax.tree.map(lambda x: x[1:], shard))
        grads, sums = jax.lax.psum(found, AXIS)
        return grads, {**sums, "signal": jax.lax.pmax(signal, AXIS)}

    # Parameters enter and gradients leave without a device axis; only the batch is sharded.
    return jax.pmap(
        gradients,
        axis_name=AXIS,
        in_axes=(None, 0, 0, None, None, None),
        out_axes=(None, None),
        devices=devices,
    )


def make_update(
    optimizer: optax.GradientTransformation,
) -> Callable[[TrainState, Params], tuple[TrainState, jax.Array]]:
    """A function (state, gradients) -> the next state, and the gradients' norm."""

    def update(state: TrainState, grads: Params) -> tuple[TrainState, jax.Array]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), optax.tree.norm(grads)

    return update


class TrainStep:
    """A function (state, this process's rows of the batch, signal) -> (state, sums for the log).

    The rows, at `own_positions` of the global batch, are dealt out over this process's `devices`
    (default: all) and `accumulation` micro-batches; sums and gradients are those of all processes.
    All randomness comes from (seed, step, row position), so neither the number of devices or
    processes nor a restart changes it. The state passed in is donated: use the one returned.

    `signal` is a number above 0 where this process was told to stop; the sums have the largest of
    all processes, so that all of them learn it in the same step. `thresholds` are `Moment`'s.

    Two programs: gradients, compiled for each length bucket and free of this run's constants, so
    that a compilation cache serves other runs; and the update, compiled once. Together as one they
    would compile the update, a fifth of the work, for each length, and for each learning rate all.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        *,
        num_steps: int,
        accumulation: int,
        seed: int,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self._gradients = Ahead(make_gradients(loss, accumulation, devices))
        self._update = Ahead(jax.jit(make_update(optimizer), donate_argnums=0))
        self._num_steps, self._accumulation = num_steps, accumulation
        self._devices = devices or jax.local_devices()
        # As pmap's outputs lie, on this process's devices: a first state that lay otherwise would
        # compile both programs twice. Every process makes the same update of its own copy.
        self._replicated = NamedSharding(Mesh(np.array(self._devices), (AXIS,)), PartitionSpec())
        self._root = jax.random.key(seed)

    def __call__(
        self, state: TrainState, batch: Batch, signal: int = 0, thresholds: Any = None
    ) -> tuple[TrainState, Sums]:
        state = jax.device_put(state, self._replicated)
        about = self._about(batch, int(state.step), signal)
        grads, sums = self._gradients(state.params, *about, thresholds)
        # Waiting here costs a dispatch, and virtual CPU devices deadlock without it.
        sums = jax.device_get(sums)
        state, grad_norm = jax.block_until_ready(self._update(state, grads))
        return state, {"grad_norm": float(grad_norm), **{k: float(v) for k, v in sums.items()}}

    def begin(self, pool: Executor, state: TrainState, batch: Batch, thresholds: Any) -> None:
        """Begins to compile for a state, a batch and thresholds of these shapes."""
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated), state
        )
        self._gradients.begin(pool, state.params, *self._about(batch, 0, 0), thresholds)
        self._update.begin(pool, state, state.params)

    def _about(self, batch: Batch, step: int, signal: int) -> tuple[Any, ...]:
        """What the gradients need to know of a step, as `make_gradients` has it."""
        rows, devices = len(batch["weights"]), len(self._devices)
        batch = {name: batch[name] for name in batch if name != "indices"}
        batch["positions"] = own_positions(rows * jax.process_count(), self._accumulation)
        lead = (self._accumulation, devices, rows // (devices * self._accumulation))
        shards = {
            name: value.reshape(*lead, *value.shape[1:]).swapaxes(0, 1)
            for name, value in batch.items()
        }
        key = jax.random.key_data(jax.random.fold_in(self._root, step))
        return shards, np.full(devices, signal, np.float32), key, np.float32(step / self._num_steps)
