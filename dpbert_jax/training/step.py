"""The training step, and the one place that knows pmap."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpbert_jax.encoder.operations import Params

AXIS = "batch"


class TrainState(NamedTuple):
    """Everything that a stage changes; un-replicated, without a device axis."""

    params: Params
    opt_state: Any
    step: Any  # int32 scalar: steps done in this stage


# (params, batch, key, progress, total weight) -> (a shard's part of the loss, sums for the log)
Loss = Callable[[Params, Any, Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
Sums = dict[str, float]
Step = Callable[[TrainState, dict[str, np.ndarray], int], tuple[TrainState, Sums]]


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
    [devices]; the step's key data; the share of the stage's steps done.
    """

    def gradients(
        params: Params,
        shard: dict[str, jax.Array],
        signal: jax.Array,
        seed: jax.Array,
        progress: jax.Array,
    ) -> tuple[Params, dict[str, jax.Array]]:
        """One device's part; arrays of the shard are [accumulation, rows, ...]."""
        key = jax.random.wrap_key_data(seed)
        weights = jax.lax.psum(shard["weights"].sum(), AXIS)

        def micro_batch(batch: dict[str, jax.Array]) -> tuple[Params, dict[str, jax.Array]]:
            return jax.grad(loss, has_aux=True)(params, batch, key, progress, weights)

        total = micro_batch(jax.tree.map(lambda x: x[0], shard))
        if accumulation > 1:

            def add(carry: Any, batch: dict[str, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, micro_batch(batch)), None

            total, _ = jax.lax.scan(add, total, jax.tree.map(lambda x: x[1:], shard))
        grads, sums = jax.lax.psum(total, AXIS)
        return grads, {**sums, "signal": jax.lax.pmax(signal, AXIS)}

    # Parameters enter and gradients leave without a device axis; only the batch is sharded.
    return jax.pmap(
        gradients,
        axis_name=AXIS,
        in_axes=(None, 0, 0, None, None),
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


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    accumulation: int,
    seed: int,
    devices: Sequence[Any] | None = None,
) -> Step:
    """A function (state, this process's rows of the batch, signal) -> (state, sums for the log).

    The rows, at `own_positions` of the global batch, are dealt out over this process's `devices`
    (default: all) and `accumulation` micro-batches; sums and gradients are those of all processes.
    All randomness comes from (seed, step, row position), so neither the number of devices or
    processes nor a restart changes it. The state passed in is donated: use the one returned.

    `signal` is a number above 0 where this process was told to stop; the sums have the largest of
    all processes, so that all of them learn it in the same step.

    Two programs: gradients, compiled for each length bucket and free of this run's constants, so
    that a compilation cache serves other runs; and the update, compiled once. Together as one they
    would compile the update, a fifth of the work, for each length, and for each learning rate all.
    """

    parallel = make_gradients(loss, accumulation, devices)
    devices = devices or jax.local_devices()
    apply_update = jax.jit(make_update(optimizer), donate_argnums=0)
    # As pmap's outputs lie, on this process's devices: a first state that lay otherwise would
    # compile both programs twice. Every process makes the same update of its own copy.
    replicated = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    root = jax.random.key(seed)

    def run(
        state: TrainState, batch: dict[str, np.ndarray], signal: int = 0
    ) -> tuple[TrainState, Sums]:
        rows = len(batch["weights"])
        batch = {name: batch[name] for name in batch if name != "indices"}
        batch["positions"] = own_positions(rows * jax.process_count(), accumulation)
        lead = (accumulation, len(devices), rows // (len(devices) * accumulation))
        shards = {
            name: value.reshape(*lead, *value.shape[1:]).swapaxes(0, 1)
            for name, value in batch.items()
        }
        signals = np.full(len(devices), signal, np.float32)
        state = jax.device_put(state, replicated)
        step = int(state.step)
        key = jax.random.key_data(jax.random.fold_in(root, step))
        grads, sums = parallel(state.params, shards, signals, key, np.float32(step / num_steps))
        # Waiting here costs a dispatch, and virtual CPU devices deadlock without it.
        sums = jax.device_get(sums)
        state, grad_norm = jax.block_until_ready(apply_update(state, grads))
        return state, {"grad_norm": float(grad_norm), **{k: float(v) for k, v in sums.items()}}

    return run
