"""The flags of `train.py`, named as in Hugging Face's run_glue."""

from dataclasses import dataclass, field
from typing import Literal

from dpbert_jax.config import FLOPS
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag
from dpbert_jax.problem import PROBLEM_TYPES
from dpbert_jax.training.tracker import REPORTERS

NEVER, ALWAYS, AUTO = "never", "always", "auto"

POSITIVE = (
    "max_seq_length",
    "max_train_samples",
    "max_eval_samples",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "distillation_learning_rate",
    "planner_learning_rate",
    "adapter_learning_rate",
    "num_adapter_epochs",
    "max_grad_norm",
    "num_train_epochs",
    "num_planner_epochs",
    "save_steps",
    "logging_steps",
)


@dataclass(frozen=True)
class TrainArguments:
    output_dir: str = field(metadata={"help": "Folder that the run is written to."})
    model_name_or_path: str | None = flag(
        None,
        "Pretrained encoder: a hub id, a folder, `minilm` or `mpnet` (packaged, offline); may be "
        "given first, without flag.",
    )
    teacher: str | None = flag(
        None, "The folder of a fine-tuned model to start from; stage 1 is then skipped."
    )
    ignore_mismatched_sizes: bool = flag(
        False,
        "Start a new head where that of --model_name_or_path was made for another number of "
        "classes.",
    )
    task_name: str | None = flag(
        None, "A GLUE task (cola, mnli, ...) or `docstrings` or `documents` (built in, offline)."
    )
    data_dir: str | None = flag(None, "Folder of a GLUE task's official TSV files.")
    train_file: str | None = flag(None, "Your own csv, tsv, json, jsonl or parquet file.")
    validation_file: str | None = flag(None, "The validation rows, in the same columns.")
    text_column_name: str | None = flag(
        None, "Column of the texts in your own files. Default: one, or two, by usual names."
    )
    text_pair_column_name: str | None = flag(None, "Column of the second text of a pair.")
    label_column_name: str | None = flag(
        None, "Column of the labels. Default: `label`, or another usual name."
    )
    problem_type: str | None = flag(
        None,
        "What the labels of your own files are: regression, single_label_classification or "
        "multi_label_classification. Default: as they look.",
    )
    label_mapping: list[str] | None = field(
        default=None,
        metadata={
            "help": "With --teacher: NAME=CLASS for each class, a name in the data and the "
            "teacher's name or id of it. Default: classes are matched by name."
        },
    )
    positive_class: str | None = flag(
        None, "Class that F1 is of. Default: the second one; for GLUE, the task's."
    )
    on_bad_row: str = flag(
        "error",
        "error: refuse a file with a row that cannot be used; skip: leave such rows out, count and "
        "list them in skipped_rows.txt.",
    )
    max_seq_length: int = flag(128, "Longer inputs are cut to so many tokens, and counted.")
    length_buckets: list[int] | None = field(
        default=None,
        metadata={
            "help": "Lengths that training batches are padded to, beside --max_seq_length. Each is "
            "compiled in every stage. Default: thirteen on a CPU; elsewhere one to three, those "
            "that pad the training rows least."
        },
    )
    max_train_samples: int | None = flag(None, "Use the first rows of the training set only.")
    max_eval_samples: int | None = flag(None, "Use the first rows of each validation set only.")
    overwrite_output_dir: bool = flag(False, "Replace the run that the output folder holds.")
    resume: Literal["never", "always", "auto"] = field(
        default=NEVER,
        metadata={
            "help": "Go on from the newest good checkpoint of the output folder; auto: or begin, "
            "where it holds no run.",
            "nargs": "?",
            "const": ALWAYS,
        },
    )
    multihost: bool = flag(
        False, "One of several processes; on TPU slices of several hosts that is seen by itself."
    )
    seed: int = flag(
        42, "Seed of the head, the planner, the order of rows, masks, dropout and gates."
    )
    per_device_train_batch_size: int = flag(32, "Rows on each device in a micro-batch.")
    per_device_eval_batch_size: int = flag(32, "Rows in an evaluation batch.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches in a step.")
    learning_rate: float = flag(5e-5, "Peak learning rate of the backbone in stage 1.")
    distillation_learning_rate: float | None = flag(
        None,
        "Peak learning rate of the backbone in stages 2 and 3, which go on from and learn from "
        "the model of stage 1. Default: --learning_rate.",
    )
    planner_learning_rate: float = flag(1e-2, "Learning rate of the planner in stage 2.")
    weight_decay: float = flag(0.01, "AdamW's, on all but biases, LayerNorm and the planner.")
    warmup_ratio: float = flag(0.1, "Share of a stage's steps with rising learning rate.")
    max_grad_norm: float = flag(1.0, "Gradient clipping, for backbone and planner apart.")
    num_train_epochs: float = flag(3.0, "Epochs of stage 1, the dense fine-tuning.")
    num_planner_epochs: float = flag(3.0, "Epochs of stage 2, planner and backbone together.")
    num_final_epochs: float | None = flag(
        None, "Epochs of stage 3, on final plans; 0: leave it out. Default: those of stage 2."
    )
    masked_share: float = flag(
        0.0,
        "Behind stage 1, each row's chance in each epoch to be shown with up to three tenths of "
        "its tokens masked: it then learns from what the dense model says of that, not from its "
        "label.",
    )
    adapter_rank: int | None = flag(
        None,
        "Train adapters for each depth of a plan behind stage 3: low-rank additions of this rank, "
        "LayerNorms and heads of its own; 0: LayerNorms and heads only. Default: none.",
    )
    num_adapter_epochs: float = flag(3.0, "Epochs of the adapters' stage.")
    adapter_learning_rate: float = flag(1e-3, "Peak learning rate of the adapters.")
    refit_planner: bool = flag(
        True,
        "Behind stage 2 and behind stage 3, refit the planner on how every plan answers the rows "
        "that were held out.",
    )
    min_budget: float = flag(0.4, "Lowest budget to train for: a share of the dense FLOPs.")
    max_budget: float = flag(1.0, "Highest; equal to --min_budget: train for that one only.")
    min_layers: int | None = flag(
        None, "Layers that every input runs at least, the stem's among them. Default: a third."
    )
    cost_unit: Literal["rows", "flops"] = field(
        default=FLOPS,
        metadata={
            "help": "What a budget is a share of. flops: of all inputs' FLOPs together, so that "
            "layers are spent on short inputs, where they are cheap. rows: of each input's own "
            "FLOPs, mean over the inputs."
        },
    )
    stem_layers: int = flag(1, "Layers that always run before the planner; 0: embeddings only.")
    keep_best: float | None = flag(
        None,
        "Score the validation rows at this budget behind every epoch of stage 3, and go on to the "
        "last refit with the parameters of the best one.",
    )
    gradient_checkpointing: bool = flag(
        False, "Compute each layer anew in the backward pass: less memory, more time."
    )
    bf16: bool = flag(False, "Compute in bfloat16; parameters and reductions stay float32.")
    save_steps: int = flag(500, "Steps between checkpoints; each stage's end is saved as well.")
    logging_steps: int = flag(50, "Steps between lines of metrics.jsonl.")
    report_to: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"help": "Of tensorboard, wandb, none; metrics.jsonl is always written."},
    )

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.teacher is None):
            raise UserError(
                "Give either --model_name_or_path (a pretrained encoder to fine-tune) or --teacher "
                "(a fine-tuned one to start from)."
            )
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise UserError(
                f"--problem_type {self.problem_type} is not one of {list(PROBLEM_TYPES)}."
            )
        if self.label_mapping and not self.teacher:
            raise UserError("--label_mapping is of the classes of a --teacher, but there is none.")
        if self.teacher and self.ignore_mismatched_sizes:
            raise UserError(
                "--ignore_mismatched_sizes starts a new head, but that of a --teacher is kept: "
                "leave it out, or name the model with --model_name_or_path."
            )
        if not 0 < self.min_budget < 1:
            raise UserError(f"--min_budget is {self.min_budget}, but must lie between 0 and 1.")
        if not self.min_budget <= self.max_budget <= 1:
            raise UserError(
                f"--max_budget is {self.max_budget}, but must lie between --min_budget "
                f"({self.min_budget}) and 1."
            )
        if self.num_final_epochs is not None and self.num_final_epochs < 0:
            raise UserError(f"--num_final_epochs is {self.num_final_epochs}, below 0.")
        if self.keep_best is not None:
            if not (self.keep_best == 1 or self.min_budget <= self.keep_best <= self.max_budget):
                raise UserError(
                    f"--keep_best is {self.keep_best}, but must be 1 or lie between --min_budget "
                    f"({self.min_budget}) and --max_budget ({self.max_budget})."
                )
            if self.num_final_epochs == 0:
                raise UserError("--keep_best chooses among stage 3's epochs, but there are none.")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} is {value}, but must be above 0.")
        buckets = self.length_buckets or []
        if sorted({b for b in buckets if 0 < b <= self.max_seq_length}) != buckets:
            raise UserError(
                f"--length_buckets {' '.join(map(str, buckets))}: must ascend, from 1 to "
                f"--max_seq_length ({self.max_seq_length})."
            )
        for name in ("warmup_ratio", "masked_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}, but must lie in [0, 1].")
        if self.adapter_rank is not None and self.adapter_rank < 0:
            raise UserError(f"--adapter_rank is {self.adapter_rank}, below 0.")
        if self.weight_decay < 0 or self.seed < 0:
            raise UserError("--weight_decay and --seed must not be negative.")
        unknown = sorted(set(self.report_to) - set(REPORTERS))
        if unknown:
            raise UserError(f"--report_to {' '.join(unknown)}: must be of {list(REPORTERS)}.")

    @property
    def student_learning_rate(self) -> float:
        """Peak learning rate of the backbone where it learns from the dense model."""
        return self.distillation_learning_rate or self.learning_rate
