"""The same server as replicas of one Ray Serve deployment, on one machine or on many.

`serve run dpbert_jax.serve.ray:build model_name_or_path=runs/mrpc num_replicas=2` starts it. Its
arguments are the flags of `dpbert serve`, less where it listens, which is Ray's business. Each
replica has a queue and a dial of its own. A request whose replica dies is asked again where the
cluster was started with what docs/serve.md sets.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from dpbert_jax.errors import UserError
from dpbert_jax.flags import parse
from dpbert_jax.serve.app import make_app
from dpbert_jax.serve.arguments import ServeArguments
from dpbert_jax.serve.command import make_service

OF_RAY = ("host", "port")


def build(flags: dict[str, Any]) -> Application:
    """The application, of `dpbert serve`'s flags and `num_replicas` (1 unless it is given).

    Raises:
        UserError: it has a flag that is Ray's, or a value that cannot be.
        SystemExit: there is no such flag; argparse has said so.
    """
    flags = dict(flags)
    replicas = int(flags.pop("num_replicas", 1))
    for name in OF_RAY:
        if name in flags:
            raise UserError(f"{name}: Ray Serve listens; see `serve start --http-{name}`.")
    args: ServeArguments = parse(
        ServeArguments, __doc__, [part for k, v in flags.items() for part in (f"--{k}", str(v))]
    )

    def app() -> FastAPI:
        return make_app(make_service(args))

    deployment = serve.deployment(
        name="dpbert",
        num_replicas=replicas,
        # A replica refuses by itself what is too much for it, and has to be shown it; what waits in
        # Ray's proxy neither the replica's limits nor its dial see.
        max_ongoing_requests=2 * args.max_concurrent_requests,
        max_queued_requests=args.max_concurrent_requests,
    )
    return deployment(serve.ingress(app)()).bind()
