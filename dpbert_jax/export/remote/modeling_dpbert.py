"""DPBERT in PyTorch: an encoder whose layers a planner chooses for every input, really skipped.

Stands alone: torch and transformers are all it needs.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertForSequenceClassification as DenseModel
from transformers.utils import ModelOutput

from .configuration_dpbert import DPBertConfig
from .modules_dpbert import (
    DPBertAdapters,
    DPBertPlanner,
    DPBertTokenSelector,
    DPBertWordEmbeddings,
    adapted,
)


@dataclass
class DPBertOutput(ModelOutput):
    """logits [B, C]; layer_mask [B, L], 1 where a layer ran; gate_logits [B, P]; loss, if asked.

    tokens [B, L], how many each layer had, of a model that drops tokens.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    layer_mask: torch.Tensor | None = None
    gate_logits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


class DPBertForSequenceClassification(DenseModel):
    """The encoder with a planner; `budget` says what share of its FLOPs to spend.

    While training, gradients reach the layers that ran: the encoder learns on the planner's own
    plans, and the planner stays as it is.
    """

    config_class = DPBertConfig

    def __init__(self, config: DPBertConfig):
        super().__init__(config)
        if not config.dpbert:
            raise ValueError("This config has no `dpbert`: load the folder as a plain BERT.")
        planner = config.dpbert["planner"]
        self.stem_layers = planner["stem_layers"]
        self.num_gates = config.num_hidden_layers - self.stem_layers
        self.planner = DPBertPlanner(
            config.hidden_size, planner["hidden_size"], self.num_gates, planner["logit_bound"]
        )
        self.planner.requires_grad_(False)
        self.least = max(planner["min_layers"] - self.stem_layers, 0)
        if clusters := config.dpbert.get("embedding_compression"):
            embeddings = self.base_model.embeddings
            width = embeddings.word_embeddings.embedding_dim
            made = DPBertWordEmbeddings(clusters["sizes"], clusters["ranks"], width)
            embeddings.word_embeddings = made
        self.adapters = self._make_adapters() if config.dpbert.get("adapters") else None
        self.selected = []  # the layers before which tokens drop out
        if config.dpbert.get("token_selectors"):
            self.selected = sorted({1, config.num_hidden_layers // 2})
        for number in range(len(self.selected)):
            self.add_module(f"selector_{number}", DPBertTokenSelector(config.hidden_size))
        self.post_init()

    def _make_adapters(self) -> nn.ModuleDict:
        """Those of every planned layer and of the head, in the modules that they belong to."""
        about = self.config.dpbert
        rank, names = about["adapters"]["rank"], about["modules"]
        inner = self._inner()
        places = {
            f"layer_{i}": (inner.layer[i], names["layer"])
            for i in range(self.stem_layers, self.config.num_hidden_layers)
        }
        places["head"] = (self, names["head"])
        made = nn.ModuleDict()
        for place, (around, parts) in places.items():
            modules = {part: around.get_submodule(name) for part, name in parts.items()}
            own = {
                part: DPBertAdapters(part, module, self.num_gates - self.least, rank)
                for part, module in modules.items()
                if rank or not isinstance(module, nn.Linear) or place == "head"
            }
            made[place] = nn.ModuleDict(own)
        return made

    def _inner(self) -> nn.Module:
        encoder = self.base_model
        return encoder.encoder if hasattr(encoder, "encoder") else encoder.transformer

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        budget: float | None = None,
        plan_rule: str = "threshold",
        return_dict: bool | None = None,
    ) -> DPBertOutput | tuple:
        """Logits and plans at a budget in the trained range; 1.0 runs all layers.

        Without `budget`, at the config's `default_budget`, or 1.0 where it has none.
        `plan_rule`: `threshold` lets the depth vary with the input, `top_k` gives every input the
        same depth.
        """
        if budget is None:
            budget = self.config.dpbert.get("default_budget") or 1.0
        asked = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        longest = self._longest_input()
        if position_ids is None and asked > longest:
            raise ValueError(
                f"The input has {asked} tokens, but the model has {longest} positions: shorten "
                "it, or tokenize with `truncation=True`."
            )
        encoder = self.base_model
        about = {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        if hasattr(encoder.embeddings, "token_type_embeddings"):
            about["token_type_ids"] = token_type_ids
        states = encoder.embeddings(input_ids=input_ids, **about)
        if hasattr(encoder, "embeddings_project"):
            states = encoder.embeddings_project(states)
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], device=states.device)
        bias = self._attention_bias(attention_mask, states.dtype)
        inner = self._inner()
        relative = {}  # attention's bias by distance, of all rows
        if hasattr(inner, "relative_attention_bias"):
            relative["position_bias"] = inner.compute_position_bias(states)
        for layer in inner.layer[: self.stem_layers]:
            states = self._run(layer, states, bias, relative)
        gate_logits = self.planner(states, attention_mask)
        gates = self._gates(gate_logits, budget, plan_rule)
        slots = self._slots(gates)
        planned = inner.layer[self.stem_layers :]
        tokens = [attention_mask.sum(dim=1)] * self.stem_layers
        for i, (layer, needed) in enumerate(
            zip(planned, gates.unbind(dim=1), strict=True), self.stem_layers
        ):
            if i in self.selected:
                selector = self.get_submodule(f"selector_{self.selected.index(i)}")
                stays = selector(states) >= self._stay(budget)
                states, attention_mask = self._left(stays, states, attention_mask)
                bias = self._attention_bias(attention_mask, states.dtype)
            tokens.append(attention_mask.sum(dim=1))
            states = self._run_where_needed(layer, needed, states, bias, relative, slots)
        with adapted(slots):
            logits = self._classify(states)

        stem = gates.new_ones(len(gates), self.stem_layers)
        layer_mask = torch.cat([stem, gates], dim=1).float()
        loss = None if labels is None else self._loss(logits, labels)
        left = torch.stack(tokens, dim=1) if self.selected else None
        output = DPBertOutput(loss, logits, layer_mask, gate_logits, left)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    @staticmethod
    def _attention_bias(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to attention scores, [B, 1, 1, S]; None where no token is padding."""
        if attention_mask.all():
            return None
        hidden = (attention_mask == 0)[:, None, None, :]
        return hidden.to(dtype) * torch.finfo(dtype).min

    @staticmethod
    def _left(
        stays: torch.Tensor, states: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States and mask of the tokens that stay, moved together; the first always does.

        As many places are left as the row of most tokens needs.
        """
        first = torch.arange(stays.shape[1], device=stays.device) == 0
        left = attention_mask * (stays | first).to(attention_mask.dtype)
        order = torch.argsort(left == 0, dim=1, stable=True)
        order = order[:, : int((left > 0).sum(dim=1).max())]
        picked = order.unsqueeze(-1).expand(-1, -1, states.shape[-1])
        return states.gather(1, picked), left.gather(1, order)

    @staticmethod
    def _run(
        layer: nn.Module, states: torch.Tensor, bias: torch.Tensor | None, relative: dict
    ) -> torch.Tensor:
        output = layer(states, bias, **{k: v[: len(states)] for k, v in relative.items()})
        return output[0] if isinstance(output, tuple) else output

    def _run_where_needed(
        self,
        layer: nn.Module,
        needed: torch.Tensor,
        states: torch.Tensor,
        bias: torch.Tensor | None,
        relative: dict,
        slots: torch.Tensor | None,
    ) -> torch.Tensor:
        """The layer on the rows that need it; nothing at all where none does."""
        rows = needed.nonzero().squeeze(1)
        if len(rows) == 0:
            return states
        if len(rows) == len(states):
            with adapted(slots):
                return self._run(layer, states, bias, relative)
        own = None if bias is None else bias[rows]
        with adapted(None if slots is None else slots[rows]):
            return states.index_copy(0, rows, self._run(layer, states[rows], own, relative))

    def _slots(self, gates: torch.Tensor) -> torch.Tensor | None:
        """Which adapters each row's plan uses, [B]; None where no row uses any."""
        slots = gates.sum(dim=1) - self.least
        none = self.num_gates - self.least
        return None if self.adapters is None or bool((slots == none).all()) else slots

    def _classify(self, states: torch.Tensor) -> torch.Tensor:
        """Logits by the family's own head."""
        if hasattr(self, "pre_classifier"):  # DistilBERT
            pooled = nn.functional.relu(self.pre_classifier(states[:, 0]))
        elif isinstance(self.classifier, nn.Linear):  # BERT
            pooled = self.base_model.pooler(states)
        else:
            return self.classifier(states)
        return self.classifier(self.dropout(pooled))

    def _longest_input(self) -> int:
        """Tokens that there are positions for: RoBERTa and MPNet leave out the padding's."""
        embeddings = self.base_model.embeddings
        counted = hasattr(embeddings, "create_position_ids_from_inputs_embeds")
        unused = embeddings.padding_idx + 1 if counted else 0
        return self.config.max_position_embeddings - unused

    def _gates(self, logits: torch.Tensor, budget: float, plan_rule: str) -> torch.Tensor:
        """Which rows need which planned layer, bool [B, P]."""
        if plan_rule not in ("threshold", "top_k"):
            raise ValueError(f"plan_rule is '{plan_rule}', but must be 'threshold' or 'top_k'.")
        if budget == 1:
            return torch.ones_like(logits, dtype=torch.bool)
        planner = self.config.dpbert["planner"]
        low, high = planner["min_budget"], planner["max_budget"]
        if self._stays() is not None:
            low, high = self.config.dpbert["calibration"]["budgets"][0], 1.0
            if plan_rule == "top_k":
                raise ValueError(
                    "plan_rule 'top_k' fixes the number of layers, but this model's budgets are "
                    "split between layers and tokens: use 'threshold'."
                )
        if not low <= budget <= high:
            raise ValueError(
                f"budget is {budget}, but this model was trained for budgets from {low} to {high}, "
                "and for 1.0."
            )
        order = torch.argsort(logits, dim=1, descending=True, stable=True)
        rank = torch.argsort(order, dim=1, stable=True)
        if plan_rule == "top_k":
            # The tolerance keeps 0.7 * 10 = 6.999... from losing a layer.
            layers = int(budget * self.config.num_hidden_layers + 1e-5)
            return rank < layers - self.stem_layers
        return (logits >= self._threshold(budget)) | (rank < self.least)

    def _threshold(self, budget: float) -> float:
        calibration = self.config.dpbert["calibration"]
        if calibration is None:
            raise ValueError("This model has no thresholds: use plan_rule='top_k'.")
        return self._interpolated(budget, calibration["thresholds"])

    def _stays(self) -> list[float] | None:
        """The grid's stay logits, of a model whose budgets are of layers and tokens."""
        calibration = self.config.dpbert["calibration"] if self.selected else None
        return calibration.get("stays") if calibration else None

    def _stay(self, budget: float) -> float:
        """The logit from which on a token stays."""
        stays = self._stays()
        if stays is None:
            return 0.0
        return float("-inf") if budget == 1 else self._interpolated(budget, stays)

    def _interpolated(self, budget: float, values: list[float]) -> float:
        """The calibrated value of a budget, linear between the grid's points."""
        budgets = self.config.dpbert["calibration"]["budgets"]
        if budget <= budgets[0]:
            return values[0]
        for i in range(1, len(budgets)):
            if budget <= budgets[i]:
                share = (budget - budgets[i - 1]) / (budgets[i] - budgets[i - 1])
                return values[i - 1] + share * (values[i] - values[i - 1])
        return values[-1]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return nn.functional.cross_entropy(logits, labels)
