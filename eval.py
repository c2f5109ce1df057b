"""`dpbert eval` from a checkout: only hands its flags on."""

import sys

from dpbert_jax.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
