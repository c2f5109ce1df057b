"""The flags of `dpbert sweep`."""

from dataclasses import dataclass, field

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag
from dpbert_jax.inference import PLAN_RULES

UNTRAINED = ("random", "shuffled", "mix")  # plans on the run's own weights
TRAINED = ("static", "deebert", "pabee")  # models of `dpbert baselines`
CONTROLS = (*UNTRAINED, *TRAINED)


@dataclass(frozen=True)
class SweepArguments:
    run_dir: str = field(metadata={"help": "Folder of a run; may be given first, without flag."})
    output_dir: str = field(metadata={"help": "Folder for sweep.csv, sweep.json and the plots."})
    budgets: str = flag("0.4,0.5,0.6,0.75,0.9,1.0", "Shares of the dense FLOPs, comma-separated.")
    plan_rules: str = flag("threshold,top_k", "Of threshold, top_k; comma-separated.")
    controls: str = flag(
        "all",
        "Of random, shuffled, mix (plans on the same weights), static, deebert, pabee (trained by "
        "dpbert baselines); all: those that there are; none.",
    )
    draws: int = flag(5, "Draws of each random control; their mean and deviation are reported.")
    repeats: int = flag(3, "Timed passes; 0: no timing.")
    latency_rows: int = flag(64, "Rows that latency at batch 1 is timed on.")
    max_eval_samples: int | None = flag(None, "Use the first rows of each validation set only.")
    seed: int = flag(0, "Of the random controls.")

    def __post_init__(self) -> None:
        self.shares()
        for name, known in (("plan_rules", PLAN_RULES), ("controls", CONTROLS)):
            unknown = sorted(set(self._words(name)) - set(known))
            if unknown and getattr(self, name) not in ("all", "none"):
                raise UserError(f"--{name} {','.join(unknown)}: must be of {list(known)}.")
        if not self._words("plan_rules"):
            raise UserError("--plan_rules names none: give at least one.")
        for name in ("draws", "latency_rows", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}, but must be at least 1.")
        if self.repeats < 0:
            raise UserError(f"--repeats is {self.repeats}, below 0.")

    def _words(self, name: str) -> list[str]:
        return [part for part in getattr(self, name).split(",") if part]

    def shares(self) -> list[float]:
        """The budgets, ascending and each once."""
        try:
            return sorted({float(part) for part in self.budgets.split(",")})
        except ValueError:
            raise UserError(
                f"--budgets is '{self.budgets}', but must be numbers with commas."
            ) from None

    def rules(self) -> list[str]:
        return self._words("plan_rules")

    def wanted(self, control: str) -> bool:
        return self.controls == "all" or control in self._words("controls")
