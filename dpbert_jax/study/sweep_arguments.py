"""The flags of `dpbert sweep`."""

from dataclasses import dataclass, field

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag
from dpbert_jax.inference import PLAN_RULES

UNTRAINED = ("random", "shuffled", "mix", "length")  # plans on the run's own weights
# models of `dpbert baselines`
TRAINED = ("static", "deebert", "pabee", "dact", "smartbert", "trbert", "planned_trbert")
# Each at a cost of its own: no controls of a planned point.
OWN_COST = ("static", "dact", "smartbert", "trbert", "planned_trbert")
BANK = "bank"  # of the static ones: a mix at the planned points' cost
CONTROLS = (*UNTRAINED, *TRAINED, BANK)


@dataclass(frozen=True)
class SweepArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder of a run; may be given first, without flag."}
    )
    output_dir: str = field(metadata={"help": "Folder for sweep.csv, sweep.json and the plots."})
    budget: list[float] = list_flag(
        [0.4, 0.5, 0.6, 0.75, 0.9, 1.0], "Shares of the dense FLOPs to spend, in (0, 1]."
    )
    plan_rules: list[str] = list_flag(
        ["threshold", "top_k"], "Of threshold, top_k; the controls stand beside the first one's."
    )
    controls: list[str] = list_flag(
        ["all"],
        "Of random, shuffled, mix, length (plans on the same weights), static, deebert, pabee, "
        "dact, smartbert, trbert, planned_trbert (trained by dpbert baselines), bank (static "
        "models mixed to the same cost); or all: those that there are; or none.",
    )
    draws: int = flag(5, "Draws of each random control; their mean and deviation are reported.")
    repeats: int = flag(3, "Timed passes; 0: no timing.")
    latency_rows: int = flag(64, "Rows that latency at batch 1 is timed on.")
    max_eval_samples: int | None = flag(None, "Use the first rows of each validation set only.")
    seed: int = flag(0, "Of the random controls.")

    def __post_init__(self) -> None:
        for name, known in (("plan_rules", PLAN_RULES), ("controls", CONTROLS)):
            words = getattr(self, name)
            unknown = sorted(set(words) - set(known))
            if unknown and not (name == "controls" and words in (["all"], ["none"])):
                raise UserError(f"--{name} {' '.join(unknown)}: must be of {list(known)}.")
        if not self.plan_rules:
            raise UserError("--plan_rules names none: give at least one.")
        for name in ("draws", "latency_rows", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}, but must be at least 1.")
        if self.repeats < 0:
            raise UserError(f"--repeats is {self.repeats}, below 0.")

    def shares(self) -> list[float]:
        """The budgets, ascending and each once."""
        return sorted(set(self.budget))

    def wanted(self, control: str) -> bool:
        return self.controls == ["all"] or control in self.controls
