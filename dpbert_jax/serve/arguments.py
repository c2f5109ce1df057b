"""The flags of `dpbert serve`."""

import math
from dataclasses import dataclass, field

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag
from dpbert_jax.serve.backend import AUTO, BACKENDS

POLICIES = ("greedy", "smdp", "fixed")


@dataclass(frozen=True)
class ServeArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder of a run or of an ONNX export; may be given first, without flag."}
    )
    host: str = flag("127.0.0.1", "Address to listen at; 0.0.0.0: at all of this machine's.")
    port: int = flag(8080, "Port to listen at; 0: any that is free.")
    backend: str = flag(AUTO, "jax, onnx, or auto: what the folder holds.")
    budget: list[float] | None = flag(
        None,
        "Share of the dense FLOPs to spend on a request that names none; one. Default: the "
        "export's default budget, or 1.",
    )
    min_budget: float | None = flag(
        None, "Under load the budget falls as far as this. Default: it does not fall."
    )
    target_p95_ms: float = flag(
        50.0, "The 95th percentile of latency that the budget is lowered to hold."
    )
    policy: str = flag(
        "greedy",
        "When a batch starts. greedy: at once. smdp: solved for latencies measured on this "
        "machine. fixed: at --batch_size texts, or after --batch_timeout_ms.",
    )
    batch_cost: float = flag(
        0.0,
        "Of --policy smdp: seconds of mean latency that an idle machine is worth, against a busy "
        "one. With it requests wait for each other where that saves work.",
    )
    batch_size: int = flag(8, "Of --policy fixed.")
    batch_timeout_ms: float = flag(5.0, "Of --policy fixed.")
    measure: bool = flag(False, "Measure latencies of batches anew, which the first start keeps.")
    max_batch_size: int = flag(32, "Texts of a batch.")
    max_batch_tokens: int = flag(16384, "Tokens of a batch.")
    max_padding: float = flag(
        1.15,
        "Padded tokens that onnxruntime may be given for each real one: a batch is split by length "
        "as needed. Larger: fewer, more even products; a large one: never split.",
    )
    max_client_batch_size: int = flag(32, "Texts of a request.")
    max_request_bytes: int = flag(2_000_000, "Bytes of a request's body.")
    max_concurrent_requests: int = flag(512, "Requests at a time; more are refused.")
    max_queue_ms: float = flag(10_000.0, "A text waits for so long, and is then refused.")
    body_timeout_ms: float = flag(
        10_000.0, "Headers and body of a request have to be here within this time each."
    )
    api_key: str | None = flag(None, "Bearer token that requests must bring. Default: none.")

    def __post_init__(self) -> None:
        for name, known in (("backend", (AUTO, *BACKENDS)), ("policy", POLICIES)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"--{name} is '{value}', but must be one of {list(known)}.")
        for name in (
            "batch_size",
            "batch_timeout_ms",
            "target_p95_ms",
            "max_batch_size",
            "max_batch_tokens",
            "max_client_batch_size",
            "max_request_bytes",
            "max_concurrent_requests",
            "max_queue_ms",
            "body_timeout_ms",
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}, but must be above 0.")
        if not 0 <= self.batch_cost < math.inf:
            raise UserError(f"--batch_cost is {self.batch_cost}, but must not be below 0.")
        if self.batch_cost and self.policy != "smdp":
            raise UserError("--batch_cost is what --policy smdp weighs: name that policy.")
        if not self.max_padding >= 1:
            raise UserError(f"--max_padding is {self.max_padding}, but must be at least 1.")
        if self.budget is not None and len(self.budget) != 1:
            raise UserError(
                "Requests that name none have one --budget: --min_budget is what it falls to."
            )
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}, but must lie in 0 .. 65535.")
        if self.policy == "fixed" and self.batch_size > self.max_batch_size:
            raise UserError(
                f"--batch_size is {self.batch_size}, above --max_batch_size {self.max_batch_size}."
            )
        if self.api_key is not None and not self.api_key.strip():
            raise UserError("--api_key is empty: give a token, or leave it out.")
