"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard and wandb beside it."""

import json
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dpbert_jax.errors import UserError
from dpbert_jax.run_folder import METRICS, TENSORBOARD

REPORTERS = ("tensorboard", "wandb", "none")


@runtime_checkable
class Tracker(Protocol):
    def log_config(self, config: dict[str, Any]) -> None: ...

    def log(self, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object a line. Goes on behind `last_step`, so a resumed run has no line twice."""

    def __init__(self, path: Path, last_step: int) -> None:
        kept = []
        if path.exists():
            # A run that was killed may have left its last line half written.
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            kept = [line for line in lines if _stays(json.loads(line), last_step)]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def log_config(self, config: dict[str, Any]) -> None:
        """The run's config has a file of its own, `train_config.json`."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        # JSON has no NaN: a score that is undefined is null.
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _stays(values: dict[str, Any], last_step: int) -> bool:
    """Whether a line stands when a run goes on: a run's end scores it anew, after its last step."""
    return values["step"] <= last_step and not str(values.get("phase")).startswith("eval/")


class TensorBoardTracker:
    def __init__(self, folder: Path, last_step: int) -> None:
        from tensorboardX import SummaryWriter

        # Points that a killed run logged behind its last checkpoint are purged.
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def log_config(self, config: dict[str, Any]) -> None:
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")

    def log(self, step: int, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{values.get('phase', 'run')}/{key}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    def __init__(self, folder: Path) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise UserError(
                "--report_to wandb needs the package wandb: pip install 'dpbert-jax[wandb]'."
            ) from None
        self._run = wandb.init(project="dpbert_jax", dir=str(folder), resume="allow")

    def log_config(self, config: dict[str, Any]) -> None:
        self._run.config.update(config, allow_val_change=True)

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log_config(self, config: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log_config(config)

    def log(self, step: int, values: dict[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def make_tracker(folder: Path, report_to: list[str], last_step: int = 0) -> Tracker:
    """`metrics.jsonl` in the folder, and what `report_to` names.

    Args:
        last_step: the step that the run goes on from; what was logged behind it is dropped.
    """
    trackers: list[Tracker] = []
    if "wandb" in report_to:  # first, since it may be refused
        trackers.append(WandbTracker(folder))
    if "tensorboard" in report_to:
        trackers.append(TensorBoardTracker(folder / TENSORBOARD, last_step))
    trackers.append(JsonlTracker(folder / METRICS, last_step))
    return Trackers(trackers)
