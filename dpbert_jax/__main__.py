"""`python -m dpbert_jax` is the command `dpbert`."""

from dpbert_jax.cli import main

if __name__ == "__main__":
    main()
