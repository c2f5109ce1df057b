"""Policies: who decides which layers run. Gates, the planner, the rule from budget to plan."""

from collections.abc import Callable

from dpbert_jax.config import DPBertConfig
from dpbert_jax.policies.dact import Dact
from dpbert_jax.policies.early_exit import deebert, pabee
from dpbert_jax.policies.protocol import Planned, Policy
from dpbert_jax.policies.smartbert import SmartBert
from dpbert_jax.policies.tokens import trbert

# By name, of a model's config.
POLICIES: dict[str, Callable[[DPBertConfig], Policy]] = {
    "planned": Planned,
    "deebert": deebert,
    "pabee": pabee,
    "dact": Dact,
    "smartbert": SmartBert,
    "trbert": trbert,
}
