"""The modules that DPBERT has beside its encoder's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

# Which adapters the rows that a module is called on use; None: none.
_SLOTS: ContextVar[torch.Tensor | None] = ContextVar("slots", default=None)


@contextmanager
def adapted(slots: torch.Tensor | None) -> Iterator[None]:
    token = _SLOTS.set(slots)
    try:
        yield
    finally:
        _SLOTS.reset(token)


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


class DPBertTokenSelector(nn.Module):
    """TR-BERT's: from each token's state to a logit that it stays for the layers to come."""

    def __init__(self, hidden_size: int, width: int = 32):
        super().__init__()
        self.wide = nn.Linear(hidden_size, width)
        self.narrow = nn.Linear(width, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.gelu(self.wide(hidden_states))
        return self.narrow(wide).squeeze(-1).float()


class DPBertAdapters(nn.Module):
    """What plans of each depth have of their own in one module: added to what it computes.

    Tables have a row a depth; a row of the batch picks its own by its slot, and one beyond the
    last, for plans of all layers, picks nothing.
    """

    def __init__(self, part: str, module: nn.Module, depths: int, rank: int):
        super().__init__()
        for name, shape in self._shapes(part, module, rank).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(depths, *shape)))
        module.register_forward_hook(self._add)

    @staticmethod
    def _shapes(part: str, module: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
        if not isinstance(module, nn.Linear):
            return {"scale": tuple(module.weight.shape), "bias": tuple(module.weight.shape)}
        inputs, outputs = module.in_features, module.out_features
        if part == "classifier":
            return {"kernel": (inputs, outputs), "bias": (outputs,)}
        factors = {"down": (inputs, rank), "up": (rank, outputs)} if rank else {}
        return {**factors, **({"bias": (outputs,)} if part == "pooler" else {})}

    def _add(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        slots = _SLOTS.get()
        if slots is None:
            return output
        own = {name: self._picked(table, slots) for name, table in self.named_parameters()}
        read = inputs[0]
        flat = read.dim() == 2  # [B, D]: the head reads one token
        tokens = read[:, None] if flat else read
        added = torch.zeros((), dtype=output.dtype, device=output.device)
        if "scale" in own:
            normal = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=module.eps)
            added = normal * own["scale"][:, None]
        if "down" in own:
            added = tokens @ own["down"] @ own["up"]
        if "kernel" in own:
            added = tokens @ own["kernel"]
        if "bias" in own:
            added = added + own["bias"][:, None]
        return output + (added[:, 0] if flat else added)

    @staticmethod
    def _picked(table: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        picked = table[slots.clamp(max=len(table) - 1)]
        has = (slots < len(table)).to(table.dtype)
        return picked * has.reshape(-1, *[1] * (table.dim() - 1))


class DPBertWordEmbeddings(nn.Module):
    """A word table as int8 factors of clusters of tokens: they are read, never trained.

    `weight` says where each token stands, sorted by cluster.
    """

    def __init__(self, sizes: list[int], ranks: list[int], width: int):
        super().__init__()
        self.sizes = sizes
        self.register_buffer("weight", torch.zeros(sum(sizes), dtype=torch.int32))
        for number, (size, rank) in enumerate(zip(sizes, ranks, strict=True)):
            cluster = nn.Module()
            cluster.register_buffer("rows", torch.zeros(size, rank, dtype=torch.int8))
            cluster.register_buffer("row_scale", torch.zeros(size))
            cluster.register_buffer("basis", torch.zeros(rank, width, dtype=torch.int8))
            cluster.register_buffer("basis_scale", torch.zeros(rank))
            self.add_module(f"cluster_{number}", cluster)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        own, total = self.weight[input_ids], 0
        for number, size in enumerate(self.sizes):
            cluster = self.get_submodule(f"cluster_{number}")
            inside = (own >= 0) & (own < size)
            at = own.clamp(0, size - 1)
            scale = torch.where(inside, cluster.row_scale[at], 0)
            rows = cluster.rows[at].to(scale.dtype) * scale.unsqueeze(-1)
            basis = cluster.basis.to(scale.dtype) * cluster.basis_scale.unsqueeze(-1)
            total = total + rows @ basis
            own = own - size
        return total
