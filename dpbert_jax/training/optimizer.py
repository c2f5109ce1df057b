"""AdamW for the backbone, Adam at rates of their own for what chooses and for adapters."""

from collections.abc import Collection
from typing import Any

import jax
import optax

from dpbert_jax.encoder.operations import Params

PLANNER_DECAY_SHARE = 0.4  # the planner's rate falls tenfold over this last share of the stage


def backbone_schedule(peak: float, num_steps: int, warmup_ratio: float) -> optax.Schedule:
    """Linear warm-up to `peak`, then linear decay to 0."""
    warmup = max(1, round(warmup_ratio * num_steps))
    return optax.join_schedules(
        [
            # Step 0 already moves: (step + 1) / warmup of the peak.
            optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1),
            optax.linear_schedule(peak, 0.0, max(1, num_steps - warmup)),
        ],
        [warmup],
    )


def planner_schedule(peak: float, num_steps: int) -> optax.Schedule:
    """Constant, then down tenfold, linearly over the last 40 %."""
    start = round((1 - PLANNER_DECAY_SHARE) * num_steps)
    return optax.linear_schedule(peak, peak / 10, max(1, num_steps - start), start)


def parameter_groups(params: Params, frozen: Collection[str]) -> Any:
    """Labels of the same tree shape: `decay`, `no_decay`, `planner`, `adapters` or `frozen`.

    Args:
        frozen: parts of the model, by their names at the top of the tree.
    """

    def group(path: tuple[Any, ...], _: Any) -> str:
        names = [entry.key for entry in path]
        if names[0] in frozen:
            return "frozen"
        if names[0] in ("planner", "adapters"):
            return names[0]
        if names[0].startswith("selector_"):  # TR-BERT's choose, as a planner does
            return "planner"
        return "no_decay" if names[-1] in ("bias", "scale") else "decay"

    return jax.tree_util.tree_map_with_path(group, params)


def make_optimizer(
    params: Params,
    *,
    frozen: Collection[str],
    num_steps: int,
    learning_rate: float,
    planner_learning_rate: float,
    adapter_learning_rate: float,
    weight_decay: float,
    warmup_ratio: float,
    max_grad_norm: float,
) -> optax.GradientTransformation:
    """The optimizer of one stage; `frozen` as in `parameter_groups`.

    The gradient is clipped by its norm in each group apart, so that a steep cost penalty does not
    shrink the backbone's step.
    """
    backbone = backbone_schedule(learning_rate, num_steps, warmup_ratio)
    clip = optax.clip_by_global_norm(max_grad_norm)
    groups = parameter_groups(params, frozen)
    is_backbone = jax.tree.map(lambda label: label in ("decay", "no_decay"), groups)
    is_planner = jax.tree.map(lambda label: label == "planner", groups)
    is_adapter = jax.tree.map(lambda label: label == "adapters", groups)
    clips = [optax.masked(clip, is_backbone), optax.masked(clip, is_planner)]
    of_adapters = {}
    if "adapters" in params:
        clips.append(optax.masked(clip, is_adapter))
        rate = backbone_schedule(adapter_learning_rate, num_steps, warmup_ratio)
        of_adapters["adapters"] = optax.adam(rate)
    return optax.chain(
        *clips,
        optax.multi_transform(
            {
                **of_adapters,
                "decay": optax.adamw(backbone, weight_decay=weight_decay),
                "no_decay": optax.adamw(backbone, weight_decay=0.0),
                "planner": optax.adam(planner_schedule(planner_learning_rate, num_steps)),
                "frozen": optax.set_to_zero(),
            },
            groups,
        ),
    )
