"""What a run's flags make of the model that it starts from: a dense config, and a planned one."""

import dataclasses
from pathlib import Path

from dpbert_jax.config import AdapterConfig, DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.data import TaskData
from dpbert_jax.errors import UserError
from dpbert_jax.policies.cost import planner_share
from dpbert_jax.training.arguments import TrainArguments


def dense_config(source: Path, task: TaskData, args: TrainArguments) -> DPBertConfig:
    """The backbone's config with the task's head."""
    found, spec = read_config(source), task.spec
    if args.max_seq_length > found.encoder.longest_input:
        raise UserError(
            f"--max_seq_length is {args.max_seq_length}, but {source} has positions for "
            f"{found.encoder.longest_input} tokens."
        )
    if found.encoder.compression:
        raise UserError(
            f"{source} has compressed embeddings, which cannot be trained: start from the model "
            "that it was made of, and compress again."
        )
    encoder = dataclasses.replace(
        found.encoder,
        num_labels=spec.num_labels,
        labels=spec.labels,
        problem_type=spec.problem_type,
    )
    if args.teacher and (found.planner or found.token_selectors):
        decides = "a planner" if found.planner else "token selectors"
        raise UserError(
            f"--teacher {source} has {decides} already; name a dense model, such as the "
            "`teacher` folder inside a run."
        )
    return DPBertConfig(encoder)


def planned_config(dense: DPBertConfig, args: TrainArguments) -> DPBertConfig:
    """The same with a planner, for budgets that can be had."""
    layers = dense.encoder.num_hidden_layers
    min_layers = layers // 3 if args.min_layers is None else args.min_layers
    planner = PlannerConfig(
        args.stem_layers,
        min_budget=args.min_budget,
        max_budget=args.max_budget,
        min_layers=min_layers,
        cost_unit=args.cost_unit,
    )
    config = dataclasses.replace(dense, planner=planner)
    fixed = config.stem_layers + config.min_gates
    lowest = fixed / layers + planner_share(config, 16)
    if args.min_budget <= lowest:
        raise UserError(
            f"--min_budget is {args.min_budget}, but the {fixed} layer(s) that every input runs "
            f"and the planner cost {lowest:.3f}: ask for more, or for smaller --stem_layers and "
            "--min_layers."
        )
    return config


def adapted_config(planned: DPBertConfig, args: TrainArguments) -> DPBertConfig:
    """The same with adapters, where they are asked for."""
    if args.adapter_rank is None:
        return planned
    adapters = AdapterConfig(args.adapter_rank)
    return dataclasses.replace(planned, adapters=adapters)
