"""Fine-tunes a pretrained BERT together with a planner that chooses layers for every input."""

from dpbert_jax.flags import parse
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train


def main() -> None:
    train(parse(TrainArguments, __doc__, script="train.py"))
