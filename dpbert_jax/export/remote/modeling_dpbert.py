"""DPBERT in PyTorch: an encoder whose layers a planner chooses for every input, really skipped.

Stands alone: torch and transformers are all it needs.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertForSequenceClassification as DenseModel
from transformers.utils import ModelOutput

from .configuration_dpbert import DPBertConfig


@dataclass
class DPBertOutput(ModelOutput):
    """logits [B, C]; layer_mask [B, L], 1 where a layer ran; gate_logits [B, P]; loss, if asked."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    layer_mask: torch.Tensor | None = None
    gate_logits: torch.Tensor | None = None


class DPBertPlanner(nn.Module):
    """From the stem's output to a logit for every planned layer."""

    def __init__(self, hidden_size: int, width: int, num_gates: int, logit_bound: float):
        super().__init__()
        self.input = nn.Linear(2 * hidden_size + 1, width)
        self.output = nn.Linear(width, num_gates)
        self.logit_bound = logit_bound

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # float32 throughout: a plan is a comparison, and 16 bits would flip near ties.
        hidden_states = hidden_states.float()
        weights = attention_mask.to(hidden_states.dtype).unsqueeze(-1)
        length = weights.sum(dim=1)  # [B, 1]
        mean = (hidden_states * weights).sum(dim=1) / length.clamp(min=1)
        pair = torch.stack([mean, hidden_states[:, 0]], dim=1)  # [B, 2, D]
        pair = nn.functional.layer_norm(pair, pair.shape[-1:], eps=1e-6)
        summary = pair.flatten(1)
        summary = summary * summary.shape[-1] ** -0.5
        features = torch.cat([summary, torch.log2(length / 32)], dim=-1)

        def linear(inputs: torch.Tensor, module: nn.Linear) -> torch.Tensor:
            return nn.functional.linear(inputs, module.weight.float(), module.bias.float())

        with torch.autocast(features.device.type, enabled=False):
            hidden = torch.tanh(linear(features, self.input)) * self.output.in_features**-0.5
            logits = linear(hidden, self.output)
        return self.logit_bound * torch.tanh(logits / self.logit_bound)


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
        self.post_init()

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
        tokens = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        longest = self._longest_input()
        if position_ids is None and tokens > longest:
            raise ValueError(
                f"The input has {tokens} tokens, but the model has {longest} positions: shorten "
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
        inner = encoder.encoder if hasattr(encoder, "encoder") else encoder.transformer
        relative = {}  # attention's bias by distance, of all rows
        if hasattr(inner, "relative_attention_bias"):
            relative["position_bias"] = inner.compute_position_bias(states)
        for layer in inner.layer[: self.stem_layers]:
            states = self._run(layer, states, bias, relative)
        gate_logits = self.planner(states, attention_mask)
        gates = self._gates(gate_logits, budget, plan_rule)
        planned = inner.layer[self.stem_layers :]
        for layer, needed in zip(planned, gates.unbind(dim=1), strict=True):
            states = self._run_where_needed(layer, needed, states, bias, relative)
        logits = self._classify(states)

        stem = gates.new_ones(len(gates), self.stem_layers)
        layer_mask = torch.cat([stem, gates], dim=1).float()
        loss = None if labels is None else self._loss(logits, labels)
        output = DPBertOutput(loss, logits, layer_mask, gate_logits)
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
    ) -> torch.Tensor:
        """The layer on the rows that need it; nothing at all where none does."""
        rows = needed.nonzero().squeeze(1)
        if len(rows) == 0:
            return states
        if len(rows) == len(states):
            return self._run(layer, states, bias, relative)
        own = None if bias is None else bias[rows]
        return states.index_copy(0, rows, self._run(layer, states[rows], own, relative))

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
        least = max(planner["min_layers"] - self.stem_layers, 0)
        return (logits >= self._threshold(budget)) | (rank < least)

    def _threshold(self, budget: float) -> float:
        """The calibrated threshold of a budget, linear between the grid's points."""
        calibration = self.config.dpbert["calibration"]
        if calibration is None:
            raise ValueError("This model has no thresholds: use plan_rule='top_k'.")
        budgets, thresholds = calibration["budgets"], calibration["thresholds"]
        if budget <= budgets[0]:
            return thresholds[0]
        for i in range(1, len(budgets)):
            if budget <= budgets[i]:
                share = (budget - budgets[i - 1]) / (budgets[i] - budgets[i - 1])
                return thresholds[i - 1] + share * (thresholds[i] - thresholds[i - 1])
        return thresholds[-1]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return nn.functional.cross_entropy(logits, labels)
