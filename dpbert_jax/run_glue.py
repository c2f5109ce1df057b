"""The flags of Hugging Face's run_glue and run_classification that are not ours.

People type them from memory. Those that ask for what happens anyway are taken; every other gets a
sentence that says what to give in its place.
"""

from collections.abc import Mapping, Sequence

from dpbert_jax.errors import UserError

_PREDICT = "texts are answered by `dpbert predict MODEL --input_file FILE --output_file FILE`"
_WHILE_TRAINING = "a run is scored at its end; --keep_best BUDGET scores each epoch of stage 3"
_SAVES = "checkpoints are written every --save_steps steps, and the newest two are kept"
_DATASET = (
    "hub datasets other than GLUE are not fetched: save the splits as csv, jsonl or parquet and "
    "give --train_file and --validation_file"
)
_COLUMNS = "name the columns with --text_column_name and --text_pair_column_name"
_HALF = "half precision is --bf16"
_FOLDER = "config and tokenizer come from the folder of --model_name_or_path"
_SEED = "--seed decides the order of the rows"
_HUB = "a hub token is read from HF_TOKEN, the cache's place from HF_HOME"
_UPLOAD = "a finished run is uploaded by Model.from_pretrained(FOLDER).push_to_hub(NAME)"
_OPTIMIZER = "the optimizer is AdamW with a linear schedule; --warmup_ratio is its warm-up"

TRAIN: dict[str, str] = {
    "do_predict": _PREDICT,
    "test_file": _PREDICT,
    "max_predict_samples": _PREDICT,
    "eval_strategy": _WHILE_TRAINING,
    "evaluation_strategy": _WHILE_TRAINING,
    "eval_steps": _WHILE_TRAINING,
    "load_best_model_at_end": _WHILE_TRAINING,
    "metric_for_best_model": _WHILE_TRAINING,
    "save_strategy": _SAVES,
    "save_total_limit": _SAVES,
    "logging_strategy": "lines of metrics.jsonl are written every --logging_steps steps",
    "logging_dir": "TensorBoard's files lie in OUTPUT_DIR/tensorboard",
    "resume_from_checkpoint": "a run goes on with --resume",
    "max_steps": "how long a stage is, is said in epochs: --num_train_epochs and the like",
    "warmup_steps": _OPTIMIZER,
    "lr_scheduler_type": _OPTIMIZER,
    "optim": _OPTIMIZER,
    "shuffle_train_dataset": _SEED,
    "shuffle_seed": _SEED,
    "data_seed": _SEED,
    "push_to_hub": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "do_regression": "what the labels are is said with --problem_type regression",
}
EVAL: dict[str, str] = {
    "do_train": "eval.py scores what train.py has trained",
    "train_file": "eval.py takes rows with --validation_file; the classes are the model's",
    "output_dir": "figures go to --json FILE, answers to --output_file FILE",
    "overwrite_output_dir": "figures go to --json FILE, answers to --output_file FILE",
    "do_predict": _PREDICT,
    "test_file": _PREDICT,
    "max_predict_samples": "--max_eval_samples holds for --predict_file as well",
}
BOTH: dict[str, str] = {
    "dataset_name": _DATASET,
    "dataset_config_name": _DATASET,
    "text_column_names": _COLUMNS,
    "text_column_delimiter": _COLUMNS,
    "sentence1_key": _COLUMNS,
    "sentence2_key": _COLUMNS,
    "pad_to_max_length": "rows are padded to buckets of length, never all to the longest",
    "fp16": _HALF,
    "half_precision_backend": _HALF,
    "config_name": _FOLDER,
    "tokenizer_name": _FOLDER,
    "use_fast_tokenizer": "the tokenizer is always a fast one",
    "trust_remote_code": "code that a model's folder brings along is never run",
    "cache_dir": _HUB,
    "token": _HUB,
    "use_auth_token": _HUB,
    "model_revision": "fetch the revision with `hf download --revision` and give its folder",
    "overwrite_cache": "tokenised splits are kept by a hash of texts and tokenizer",
    "preprocessing_num_workers": "the tokenizer uses all cores by itself",
    "metric_name": "metrics follow from the task: accuracy, F1, Matthews, Pearson and Spearman",
}
# What these ask for is what the script does.
TAKEN = {"train.py": ("do_train", "do_eval"), "eval.py": ()}


def without_run_glue(argv: Sequence[str], script: str) -> list[str]:
    """The flags less those that ask for what the script does anyway.

    Raises:
        UserError: a flag of run_glue has no meaning here; says what has.
    """
    answers: Mapping[str, str] = BOTH | (TRAIN if script == "train.py" else EVAL)
    kept: list[str] = []
    taken: set[str] = set()
    parts = list(argv)
    while parts:
        part = parts.pop(0)
        name, _, value = part.removeprefix("--").partition("=")
        if not part.startswith("--"):
            kept.append(part)
        elif name in answers:
            raise UserError(f"--{name} is run_glue's, not {script}'s: {answers[name]}.")
        elif name in TAKEN[script]:
            if not value and parts and parts[0].lower() in ("true", "false"):
                value = parts.pop(0)
            taken |= {name} if value.lower() != "false" else set()
        else:
            kept.append(part)
    if script == "train.py" and taken == {"do_eval"}:
        raise UserError("--do_eval without --do_train: train.py trains; eval.py scores a run.")
    return kept
