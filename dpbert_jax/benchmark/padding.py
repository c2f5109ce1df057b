"""What few lengths cost: the share of padding in a task's training rows, by length buckets.

`python -m dpbert_jax.benchmark.padding FOLDER ...` with folders of GLUE tasks' official TSV files.
A row's slots are its tokens and the padding to its bucket. `default` is what train.py pads to on a
GPU or TPU, for the epochs of its default flags; `against a CPU` is how many slots that has for one
of a CPU's.
"""

from dataclasses import dataclass

from dpbert_jax.data import LENGTH_BUCKETS, load_task, tokenize
from dpbert_jax.data.buckets import MOST, default_buckets, least_padding, padding_share
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag, parse, run_script
from dpbert_jax.hub import load_tokenizer, resolve_folder
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.stage import all_epochs


@dataclass(frozen=True)
class PaddingArguments:
    data_dirs: list[str] = list_flag([], "Folders of GLUE tasks; may be given first.")
    model_name_or_path: str = flag("minilm", "Whose tokenizer cuts the texts into tokens.")
    max_seq_length: int = flag(128, "Longer inputs are cut to so many tokens.")

    def __post_init__(self) -> None:
        if not self.data_dirs:
            raise UserError("Name at least one folder of a GLUE task.")


def padding(args: PaddingArguments) -> list[str]:
    """A line of a Markdown table for each task, printed as it is known."""
    source = resolve_folder(args.model_name_or_path)
    tokenizer = load_tokenizer(source)
    epochs = all_epochs(TrainArguments(output_dir=".", model_name_or_path=str(source)))
    numbers = [f"{count} length{'s' * (count > 1)}" for count in range(1, MOST + 1)]
    lines = [
        _line(["task", "rows", "tokens a row", "on a CPU", *numbers, "default", "against a CPU"])
    ]
    lines.append(_line(["---"] * (6 + MOST)))
    print("\n".join(lines))
    for folder in args.data_dirs:
        task = load_task(data_dir=folder)
        examples = task.splits.get("train") or next(iter(task.splits.values()))
        lengths = tokenize(examples, tokenizer, args.max_seq_length).lengths
        shares, sized = [], (lengths, args.max_seq_length)
        fine = padding_share(*sized, LENGTH_BUCKETS)
        for count in range(1, MOST + 1):
            edges = least_padding(*sized, count)[0]
            shares.append(f"{padding_share(*sized, edges):.0%} ({', '.join(map(str, edges))})")
        chosen = default_buckets("gpu", *sized, epochs) or []
        more = (1 - fine) / (1 - padding_share(*sized, chosen))
        about = [task.spec.name, str(len(lengths)), f"{lengths.mean():.1f}", f"{fine:.0%}"]
        lines.append(_line([*about, *shares, ", ".join(map(str, chosen)), f"{more:.1f}"]))
        print(lines[-1], flush=True)
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    padding(parse(PaddingArguments, __doc__, positional="data_dirs"))


if __name__ == "__main__":
    run_script(main)
