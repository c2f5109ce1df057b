"""Time of one batch against the layers that its rows keep, executors beside peers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpbert_jax.benchmark import exports
from dpbert_jax.benchmark.arguments import BenchmarkArguments
from dpbert_jax.benchmark.peers import Peer
from dpbert_jax.benchmark.subjects import Batch, Subject, random_batch, subset
from dpbert_jax.benchmark.timing import interleaved
from dpbert_jax.errors import UserError
from dpbert_jax.inference import Executor, Rule
from dpbert_jax.inference.path import prepare
from dpbert_jax.policies.gates import FREE
from dpbert_jax.policies.protocol import Planned

Row = dict[str, Any]


def measure_latency(
    args: BenchmarkArguments, subject: Subject, peers: Mapping[str, Peer]
) -> list[Row]:
    """A row for each batch size, sequence length, variant and number of layers kept."""
    for length in args.seq_lengths:
        if length > subject.model.config.encoder.longest_input:
            raise UserError(
                f"--seq_lengths {length}: the model has positions for "
                f"{subject.model.config.encoder.longest_input} tokens."
            )
    names = args.executors
    executors = {name: subject.model.executor(name) for name in names}
    compiled = {
        keep: subset(subject.model, keep).executor("cond")
        for keep in subject.keeps
        if 1 in args.batch_sizes and "cond" in names
    }
    rows = []
    for batch_size in args.batch_sizes:
        for length in args.seq_lengths:
            batch = random_batch(subject.model.config.encoder, batch_size, length, args.seed)
            rows += _one_shape(args, subject, batch, executors, compiled, peers)
    return rows


def _one_shape(
    args: BenchmarkArguments,
    subject: Subject,
    batch: Batch,
    executors: Mapping[str, Executor],
    compiled: Mapping[int, Executor],
    peers: Mapping[str, Peer],
) -> list[Row]:
    batch_size, length = batch["input_ids"].shape
    calls: dict[str, Callable[[], Any]] = {}
    about: dict[str, Row] = {}
    for name, execute in executors.items():
        for keep in [subject.layers] if name == "masked" else subject.keeps:
            plan = subject.plan(batch_size, keep, args.seed)
            calls[f"{name} {keep}"] = partial(_blocking, execute, batch, subject.rule(keep), plan)
            about[f"{name} {keep}"] = {"variant": name, "keep": keep}
    if batch_size == 1:
        for keep, execute in compiled.items():
            rule = Rule(1.0, -np.inf, 0)
            calls[f"compiled for {keep}"] = partial(_blocking, execute, batch, rule, None)
            about[f"compiled for {keep}"] = {"variant": "compiled for these layers", "keep": keep}
        calls["planner"] = _planner_call(subject, batch)
        about["planner"] = {"variant": "planner and plan transfer", "keep": None}
    beside = {}
    for name, peer in peers.items():
        skips = name in exports.PACKAGES
        for keep in subject.keeps if skips else [subject.layers]:
            inputs = exports.with_budget(batch, keep / subject.layers) if skips else batch
            beside[f"{name} {keep}"] = (peer, [inputs])
            about[f"{name} {keep}"] = {"variant": name, "keep": keep}
    found = interleaved(calls, beside, args.repeats)
    shape = {"batch_size": batch_size, "seq_length": length}
    made = [{**shape, **about[name], **figures} for name, figures in found.items()]
    for row in made:
        execute = executors.get(row["variant"])
        if execute and execute.lower and row["keep"] == max(subject.keeps):
            memory = execute.lower(batch, subject.rule(subject.layers)).compile().memory_analysis()
            row["temporaries_mib"] = memory.temp_size_in_bytes / 2**20
    return made


def _blocking(execute: Executor, batch: Batch, rule: Rule, plan: np.ndarray | None) -> np.ndarray:
    return np.asarray(execute(batch, rule, plan).logits)


def _planner_call(subject: Subject, batch: Batch) -> Callable[[], Any]:
    """The planner alone, its plan brought to the host."""
    config = subject.model.config
    policy = Planned(config)
    weights = prepare(config, policy, subject.model.params, subject.model.dtype).policy
    shape = (*batch["input_ids"].shape, config.encoder.hidden_size)
    states = jax.device_put(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    forced = jnp.full((shape[0], config.num_gates), FREE)
    rule = subject.rule(subject.layers)
    program = jax.jit(
        lambda weights, states, mask: policy.look(0, weights, states, mask, rule, forced, None)[0]
    )
    return lambda: np.asarray(program(weights, states, batch["attention_mask"]))
