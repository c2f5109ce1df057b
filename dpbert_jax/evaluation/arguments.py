"""The flags of `eval.py`, named as in Hugging Face's run_glue where it has them."""

from dataclasses import dataclass, field

from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.answer_files import check_answer_file
from dpbert_jax.flags import flag, list_flag


@dataclass(frozen=True)
class EvalArguments:
    model_name_or_path: str = field(
        metadata={
            "help": "A run folder of train.py, or any fine-tuned BERT classifier; may be given "
            "first, without flag."
        }
    )
    budget: list[float] = list_flag(
        [1.0], "Shares of the dense FLOPs to spend, in (0, 1]; one or several."
    )
    plan_rule: str = flag(
        "threshold", "threshold: depth varies with the input; top_k: the same for every input."
    )
    calibrate: str | None = flag(
        None,
        "First find the thresholds anew, on the inputs of this split (validation, test, ...), and "
        "write them into the run's config.json; labels are not read.",
    )
    executor: str = flag(
        "auto",
        "cond: skips layers at batch 1; packed: whole dataset at once, each layer on the rows that "
        "need it; chunked: the same in one compiled program (TPU, GPU); masked: reference, skips "
        "nothing; auto: by batch size and device.",
    )
    chunk_size: int | None = flag(None, "Rows that chunked runs at once. Default: by device.")
    task_name: str | None = flag(None, "Another task than the run's.")
    data_dir: str | None = flag(None, "Another GLUE folder than the run's.")
    validation_file: str | None = flag(None, "Your own rows, in the columns of the training file.")
    text_column_name: str | None = flag(
        None, "Column of the texts in that file. Default: the training file's."
    )
    text_pair_column_name: str | None = flag(
        None, "Column of the second text of a pair. Default: the training file's."
    )
    label_column_name: str | None = flag(
        None, "Column of the labels. Default: the training file's."
    )
    label_mapping: list[str] | None = flag(
        None,
        "NAME=CLASS for each class, a name in the data and the model's name or id of it, as in "
        "negative=0 positive=1. Default: classes are matched by name.",
    )
    positive_class: str | None = flag(None, "Class that F1 is of. Default: the run's.")
    on_bad_row: str | None = flag(
        None,
        "error: refuse a file with a row that cannot be used; skip: leave such rows out and count "
        "them. Default: as the run did for its own data, error for other.",
    )
    max_seq_length: int | None = flag(None, "Default: the run's, or the model's positions.")
    max_eval_samples: int | None = flag(None, "Use the first rows of each validation set only.")
    per_device_eval_batch_size: int | None = flag(
        None, "Default: 1 with cond, 32 with chunked and masked; packed: 512 at once."
    )
    bf16: bool = flag(False, "Compute in bfloat16.")
    predict_file: str | None = flag(
        None, "Rows to answer, in the run's text columns; labels are not looked at."
    )
    output_file: str | None = flag(
        None,
        "Write the answers here, a row each: label, probabilities, layers and cost; csv, tsv or "
        "jsonl.",
    )
    do_eval: bool = flag(False, "With --predict_file: score the validation rows as well.")
    json: str | None = flag(
        None, "Write the figures here: an object, or a list for several budgets or splits."
    )
    plot_dir: str | None = flag(
        None, "Write score_against_cost.png and layers_per_input.png to this folder."
    )

    def __post_init__(self) -> None:
        for name in ("max_seq_length", "max_eval_samples", "per_device_eval_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}, but must be at least 1.")
        if (self.predict_file is None) != (self.output_file is None):
            raise UserError("--predict_file and --output_file belong together: give both.")
        if self.predict_file and len(self.budget) > 1:
            raise UserError("--predict_file is answered at one --budget, not at several.")
        check_answer_file(self.output_file)
