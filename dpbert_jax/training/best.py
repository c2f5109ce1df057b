"""The best epoch of the final stage, by the score of the validation rows at one budget."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from dpbert_jax import hosts
from dpbert_jax.config import DPBertConfig
from dpbert_jax.data import TaskData, tokenize
from dpbert_jax.evaluation.evaluate import predict
from dpbert_jax.evaluation.metrics import compute_metrics, score
from dpbert_jax.hub import load_params, save_weights
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.policies.dpbert import Params, init_params
from dpbert_jax.run_folder import BEST
from dpbert_jax.training.asking import Asking
from dpbert_jax.training.step import TrainState

logger = logging.getLogger(__name__)

SCORE = "score.json"


class BestEpoch:
    """Keeps the parameters of the best epoch in the folder `best/` of a run.

    A run that goes on from an older checkpoint scores some epochs again, and comes to the same:
    the best one so far was better than those before it, and is not better than itself.
    """

    def __init__(
        self,
        folder: Path,
        config: DPBertConfig,
        task: TaskData,
        tokenizer: Any,
        *,
        budget: float,
        max_seq_length: int,
        max_eval_samples: int | None,
        dtype: DTypeLike,
        asking: Asking,
    ) -> None:
        self._folder, self._config, self._spec = folder / BEST, config, task.spec
        self._budget, self._max_seq_length, self._dtype = budget, max_seq_length, dtype
        self._asking = asking
        examples = task.splits[task.spec.validation_splits[0]].head(max_eval_samples)
        self._split = tokenize(examples, tokenizer, max_seq_length)

    def consider(self, done: int, state: TrainState) -> None:
        """Scores the state of an epoch's end, and keeps it where it is the best so far."""
        assert self._split.labels is not None
        params = jax.device_get(state.params)
        made = predict(
            make_executor(self._asking.executor, self._config, params, self._dtype),
            resolve_rule(self._config, self._budget),
            self._config,
            self._split,
            batch_size=self._asking.batch_size,
            max_seq_length=self._max_seq_length,
            length_buckets=self._asking.length_buckets,
            warm_up=False,
        )
        spec, labels = self._spec, self._split.labels
        found = score(compute_metrics(spec, made.logits, labels))
        hosts.on_main(lambda: self._keep(found, done, params))

    def _keep(self, found: float, done: int, params: Params) -> None:
        path = self._folder / SCORE
        before = json.loads(path.read_text())["score"] if path.exists() else None
        logger.info("Step %d: score %s, best before %s.", done, found, before)
        if before is not None and not found > before:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        save_weights(self._folder, self._config, params)
        # Written last, in one move: a kill in between has this epoch scored and kept again.
        kept = None if math.isnan(found) else found  # any other is better than an undefined score
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"score": kept, "stage_step": done}) + "\n")
        partial.replace(path)

    def params(self) -> Params:
        """The parameters of the best epoch."""
        shapes = jax.eval_shape(lambda: init_params(self._config, 0))
        return hosts.from_main(lambda: load_params(self._folder, self._config), like=shapes)
