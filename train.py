"""Fine-tunes a pretrained BERT together with a planner that chooses layers for every input.

Only parses flags; the run itself is dpbert_jax.training.run.
"""

import dpbert_jax.allocator  # noqa: F401  before NumPy and JAX: see there
from dpbert_jax.cli import parse, run_script
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train


def main() -> None:
    train(parse(TrainArguments, __doc__, script="train.py"))


if __name__ == "__main__":
    run_script(main)
