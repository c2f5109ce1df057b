"""What a format of an export is: how it is written and run, and the folder around its artifact."""

import copy
import dataclasses
import importlib.util
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpbert_jax.config import DPBertConfig
from dpbert_jax.config_file import write_config
from dpbert_jax.encoder.operations import Params
from dpbert_jax.errors import UserError
from dpbert_jax.flags import unused_folder
from dpbert_jax.inference import PLAN_RULES, resolve_rule
from dpbert_jax.integrity import seal, verify
from dpbert_jax.model import Model
from dpbert_jax.run_folder import EXPORT_CONFIG, read_max_seq_length

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = 0.75

Batch = Mapping[str, np.ndarray]  # input_ids, attention_mask, token_type_ids: int, [B, S]
# logits [B, C] and layer_mask [B, L]; of a model that drops tokens, how many each layer has [B, L].
Answer = tuple[np.ndarray, ...]
Call = Callable[[Batch, float], Answer]  # an artifact, at a budget


class ExportOptions(NamedTuple):
    """How a model is exported."""

    plan_rule: str = "threshold"
    int8: bool = False
    int8_all: bool = False
    standard_operators: bool = False


class Format(NamedTuple):
    """A format. Its entry point's name is its `name`; `write` finds the folder there, empty."""

    name: str
    write: Callable[[Path, Model, ExportOptions], None]
    load: Callable[[Path, Model, ExportOptions], Call]
    to_write: tuple[str, ...] = ()  # modules that writing takes, and running
    to_run: tuple[str, ...] = ()
    install: str = ""  # what pip installs them by
    takes_int8: bool = False
    chooses_operators: bool = False  # standard ones, or a runtime's own
    stored: Callable[[DPBertConfig, Params], Params] | None = None  # what int8_all makes of weights
    rule_of_call: bool = False  # the plan rule is an argument of every call, fixed by no export

    def require(self, modules: tuple[str, ...], purpose: str) -> None:
        """Refuses where one of the modules is not installed.

        Raises:
            UserError: names them and how to install them.
        """
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"{purpose} needs {', '.join(missing)}, not installed: "
                f"pip install '{self.install}'."
            )

    def check(self, options: ExportOptions) -> None:
        """Refuses what the format cannot write at all.

        Raises:
            UserError: modules are missing, or an option is unknown or not of this format.
        """
        self.require(self.to_write, f"--format {self.name}")
        if options.plan_rule not in PLAN_RULES:
            raise UserError(
                f"--plan_rule is '{options.plan_rule}', but must be one of {list(PLAN_RULES)}."
            )
        if options.int8_all and not self.stored:
            raise UserError(f"--int8_all is not for --format {self.name}.")
        if options.int8 and not self.takes_int8:
            raise UserError(f"--int8 is not for --format {self.name}.")
        if options.standard_operators and not self.chooses_operators:
            raise UserError(f"--standard_operators is not for --format {self.name}.")

    def prepare(self, model: Model, options: ExportOptions, default_budget: float | None) -> Model:
        """The model as it is written: with a budget for calls that name none, and with a tokenizer
        that cuts, where it is asked to, as the model does.

        Raises:
            UserError: a call that names no budget could not be answered.
        """
        positions = model.config.encoder.longest_input
        tokenizer = copy.deepcopy(model.tokenizer)
        longest = model.max_seq_length
        if model.folder is not None and read_max_seq_length(model.folder) is None:
            longest = min(tokenizer.model_max_length, positions)
        tokenizer.model_max_length = longest
        budget = self._default_budget(model.config, options, default_budget)
        params = model.params
        if options.int8_all and self.stored and model.config.planner:
            params = self.stored(model.config, params)
        return dataclasses.replace(
            model,
            params=params,
            config=dataclasses.replace(model.config, default_budget=budget),
            tokenizer=tokenizer,
            max_seq_length=longest,
        )

    def export(
        self,
        model: Model,
        folder: Path,
        *,
        plan_rule: str = "threshold",
        int8: bool = False,
        int8_all: bool = False,
        standard_operators: bool = False,
        default_budget: float | None = None,
        proof: Callable[[Path, Model], bool] | None = None,
    ) -> bool:
        """Writes the folder, whole or not at all: see `Model.export`.

        Args:
            proof: looks at what was written, beside the model as it was written, before the folder
                gets its name; where it says no nothing is left, and the answer is False.

        Raises:
            UserError: the model cannot be had in this format, or the folder is in use or cannot be
                written.
        """
        options = ExportOptions(plan_rule, int8 or int8_all, int8_all, standard_operators)
        self.check(options)
        if model.config.token_selectors and not model.config.planner:
            raise UserError(
                f"export: {model.folder or 'the model'} drops tokens and has no planner: no format "
                "can that. It runs in this library (`Model`, `dpbert serve`)."
            )
        prepared = self.prepare(model, options, default_budget)
        unused_folder(str(folder), "export:")
        if model.config.planner is None:
            name = model.folder or "The model"
            logger.info("%s has no planner: a dense model is exported, with no budget.", name)
        # Nothing lies under the asked name before it is whole, and proved where that was asked.
        partial = folder.with_name(folder.name + ".partial")
        try:
            partial.mkdir(parents=True)
        except OSError as error:  # a folder of that name may be anybody's: it is not removed
            raise UserError(
                f"export: {folder} cannot be written: {partial}: {error.strerror}."
            ) from error
        try:
            write_artifact(self, partial, prepared, options)
            if proof and not proof(partial, prepared):
                return False
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def _default_budget(
        self, config: DPBertConfig, options: ExportOptions, wanted: float | None
    ) -> float | None:
        """The budget of calls that name none; None for a dense model."""
        if config.planner is None:
            if wanted is not None:
                raise UserError("--default_budget is for models with a planner; this one has none.")
            return None
        named = (wanted, config.default_budget)
        budget = next((budget for budget in named if budget is not None), DEFAULT_BUDGET)
        where = f"--default_budget is {budget}{' unless given' if named == (None, None) else ''}"
        # Where a call names the rule, that is `threshold` if unnamed.
        if self.rule_of_call and config.calibration is None and budget != 1:
            raise UserError(
                f"{where}, for which this model has no thresholds: find them with `eval.py "
                "--calibrate SPLIT`, or give --default_budget 1."
            )
        try:
            resolve_rule(config, budget, options.plan_rule)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return budget


def write_beside(folder: Path, model: Model) -> None:
    """What every server needs beside a graph: planner, thresholds and classes; the tokenizer."""
    model.tokenizer.save_pretrained(str(folder))
    write_config(model.config, folder)


def write_artifact(chosen: Format, folder: Path, model: Model, options: ExportOptions) -> None:
    """Writes a format's artifact, then how it was made, then the checksums of it all."""
    chosen.write(folder, model, options)
    made = {
        "format": chosen.name,
        "plan_rule": None if chosen.rule_of_call else options.plan_rule,
        "int8": options.int8,
        "int8_all": options.int8_all,
        "standard_operators": options.standard_operators,
        "default_budget": model.config.default_budget,
        "max_seq_length": model.max_seq_length,
        "max_position_embeddings": model.config.encoder.max_position_embeddings,
        "versions": {package: version(package) for package in ("dpbert-jax", "jax")},
    }
    text = json.dumps(made, indent=2)
    (folder / EXPORT_CONFIG).write_text(text + "\n", encoding="utf-8")
    seal(folder)


def load_artifact(chosen: Format, folder: Path, model: Model, options: ExportOptions) -> Call:
    """A format's artifact, as a function; only the very bytes that were written are loaded."""
    verify(folder)
    return chosen.load(folder, model, options)


def dense_answer(logits: np.ndarray, config: DPBertConfig) -> Answer:
    """The answer of a model without a planner, which runs all layers."""
    return logits, np.ones((len(logits), config.encoder.num_hidden_layers))
