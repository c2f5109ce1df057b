"""The flags of `dpbert export`."""

from dataclasses import dataclass, field

from dpbert_jax.errors import UserError
from dpbert_jax.export.formats import DEFAULT_BUDGET, ExportOptions
from dpbert_jax.export_formats import export_format
from dpbert_jax.flags import flag


@dataclass(frozen=True)
class ExportArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder of a run; may be given first, without flag."}
    )
    format: str = field(
        metadata={"help": "huggingface (PyTorch), onnx, stablehlo, or one of another package."}
    )
    output_dir: str = field(metadata={"help": "Folder to write; it must not hold anything yet."})
    plan_rule: str = flag(
        "threshold",
        "Rule inside onnx and stablehlo: threshold: depth varies with the input; top_k: the same "
        "for every input. In PyTorch it is an argument of the model.",
    )
    int8: bool = flag(False, "onnx: planned layers in int8, a scale for each token.")
    int8_all: bool = flag(
        False,
        "onnx: --int8, and the weights of stem, pooler and positions lie in int8 too, all of them "
        "in a file beside the graph: the least memory.",
    )
    standard_operators: bool = flag(
        False,
        "onnx: no operators of onnxruntime's own, so that other runtimes load the graph. It is "
        "slower, and every call must name its budget.",
    )
    default_budget: float | None = flag(
        None,
        "Budget of calls that name none: 1.0 or one in the trained range; default: what the folder "
        f"says, if it is an export, else {DEFAULT_BUDGET}.",
    )
    verify: bool = flag(
        False,
        "Run the artifact on validation sentences and compare it with this library: logits, plans, "
        "score, time; and each sentence alone with itself in a batch. A mismatch is exit code 1, "
        "and nothing is left.",
    )
    verify_samples: int = flag(500, "Sentences to compare.")
    data_dir: str | None = flag(None, "--verify on another GLUE folder than the run's.")
    validation_file: str | None = flag(None, "--verify on your own rows.")

    def __post_init__(self) -> None:
        export_format(self.format).check(self.options)
        if self.verify_samples < 1:
            raise UserError(f"--verify_samples is {self.verify_samples}, but must be at least 1.")

    @property
    def options(self) -> ExportOptions:
        return ExportOptions(
            self.plan_rule,
            self.int8 or self.int8_all,
            self.int8_all,
            self.standard_operators,
        )
