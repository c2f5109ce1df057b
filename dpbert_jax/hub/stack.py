"""A deeper encoder out of a shallow one: all of its layers, several times over.

Progressive stacking (Gong et al., Efficient Training of BERT by Progressively Stacking, ICML 2019).
The model was not pretrained at that depth: results of one are those of a *derived* model.
"""

import dataclasses
import logging
from dataclasses import dataclass, field

import numpy as np

from dpbert_jax.config_file import read_config, write_config
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, parse, unused_folder
from dpbert_jax.hub.folders import (
    load_tokenizer,
    put_weights,
    read_tensors,
    resolve_folder,
)
from dpbert_jax.hub.keys import layer_pattern

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StackArguments:
    model_name_or_path: str = field(
        metadata={"help": "A plain encoder: hub id, folder or minilm; may be given first."}
    )
    output_dir: str = field(metadata={"help": "Folder to write; it must not hold anything yet."})
    times: int = flag(2, "How often the layers are repeated.")

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UserError(f"--times is {self.times}, but must be at least 1.")


def stack(args: StackArguments) -> None:
    """Writes the folder of the deeper model; a classifier's head comes along, a planner cannot.

    Raises:
        UserError: the model cannot be read or has a planner, or the output folder is in use or
            cannot be made.
    """
    source = resolve_folder(args.model_name_or_path)
    config, tokenizer = read_config(source), load_tokenizer(source)
    if config.planner or config.token_selectors:
        decides = "a planner" if config.planner else "token selectors"
        raise UserError(f"{source} has {decides}, for its own layers: name a plain encoder.")
    folder = unused_folder(args.output_dir, "--output_dir")
    layers = config.encoder.num_hidden_layers
    tensors, pattern = {}, layer_pattern(config.encoder)
    for name, stored in read_tensors(source, config.encoder).items():
        found, value = pattern.fullmatch(name), stored.astype(np.float32)
        if found is None:
            tensors[name] = value
            continue
        for copy in range(args.times):
            number = int(found[2]) + copy * layers
            tensors[f"{found[1]}{number}{found[3]}"] = value
    deeper = dataclasses.replace(config.encoder, num_hidden_layers=layers * args.times)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be made: {error.strerror}.") from error
    tokenizer.save_pretrained(str(folder))
    write_config(dataclasses.replace(config, encoder=deeper), folder)
    put_weights(folder, tensors)
    logger.info("%s: %d layers, derived from %d.", folder, deeper.num_hidden_layers, layers)


def main() -> None:
    stack(parse(StackArguments, __doc__))
