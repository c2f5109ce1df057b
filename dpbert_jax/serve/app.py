"""The HTTP application: routes of three protocols around one service."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from dpbert_jax.policies.rule import budget_range
from dpbert_jax.serve import kserve, protocol
from dpbert_jax.serve.errors import Refused, Unhealthy, refusal
from dpbert_jax.serve.guard import Guard
from dpbert_jax.serve.service import Answered, Service

PAGE = Path(__file__).parent / "page"


class Gone(Exception):
    """The client has left: nobody reads the answer."""


def make_app(
    service: Service, on_failure: Callable[[BaseException], None] | None = None
) -> FastAPI:
    """The application.

    Args:
        on_failure: with it the application is live while the model is made warm, and this is told
            what kept the model from becoming ready. Without, its start waits for the model.
    """

    def settled(starting: asyncio.Task) -> None:
        error = None if starting.cancelled() else starting.exception()
        if error is not None and on_failure is not None:
            on_failure(error)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.get_running_loop().create_task(service.start())
        if on_failure is None:
            await starting
        starting.add_done_callback(settled)
        yield
        if not starting.done():
            starting.cancel()
        await service.close()

    # FastAPI's own page of its routes loads a script from a foreign address.
    app = FastAPIOffline(
        redoc_url=None,
        title="dpbert",
        version=version("dpbert-jax"),
        description="BERT, whose layers a planner chooses for every input.",
        lifespan=lifespan,
    )
    args = service.args
    app.add_middleware(
        Guard,
        metrics=service.metrics,
        max_bytes=args.max_request_bytes,
        body_seconds=args.body_timeout_ms / 1000,
        max_requests=args.max_concurrent_requests,
        api_key=args.api_key,
    )

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        service.metrics.gone.inc()
        return Response(status_code=499)  # nobody receives it; nginx's number, for the metrics

    @app.exception_handler(StarletteHTTPException)
    async def unknown(request: Request, error: StarletteHTTPException) -> Response:
        body = {"error": str(error.detail), "error_type": "Validation"}
        return JSONResponse(body, error.status_code, error.headers)

    _add_health(app, service)
    _add_predict(app, service)
    _add_kserve(app, service)
    _add_page(app)
    return app


async def while_connected(request: Request, work: Coroutine[Any, Any, Answered]) -> Answered:
    """Awaits the work; drops it as soon as the client has left."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    await request.body()  # then what comes next is that the client left
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Gone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that reads it itself, for the OpenAPI page."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _add_health(app: FastAPI, service: Service) -> None:
    backend, args = service.backend, service.args

    def ready() -> dict[str, Any]:
        if not service.ready:
            raise Unhealthy("The server is not ready.")
        return {}

    @app.get("/health", summary="200 where the model is ready to answer, or else 503")
    async def health() -> dict[str, Any]:
        return ready()

    @app.get("/info", summary="The model and the server's limits")
    async def info() -> dict[str, Any]:
        names = backend.config.encoder.label_names
        return {
            "model_id": backend.model_id,
            "model_type": {
                "classifier": {
                    "id2label": {str(i): name for i, name in enumerate(names)},
                    "label2id": {name: i for i, name in enumerate(names)},
                }
            },
            "max_concurrent_requests": args.max_concurrent_requests,
            "max_input_length": backend.max_seq_length,
            "max_batch_tokens": args.max_batch_tokens,
            "max_batch_requests": args.max_batch_size,
            "max_client_batch_size": args.max_client_batch_size,
            "auto_truncate": False,
            "version": version("dpbert-jax"),
            "backend": backend.name,
            "num_layers": backend.config.encoder.num_hidden_layers,
            "problem_type": backend.config.encoder.problem_type,
            "budgets": service.batcher.budgets,
            "budget_range": budget_range(backend.config),
        }

    @app.get("/status", summary="Queue, budget and latency of the last seconds")
    async def status() -> dict[str, Any]:
        return service.status()

    @app.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v2/health/live", summary="Whether the server runs")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether it answers")
    async def is_ready() -> dict[str, Any]:
        return {**ready(), "ready": True}


def _add_predict(app: FastAPI, service: Service) -> None:
    encoder = service.backend.config.encoder

    @app.post(
        "/predict",
        summary="Classify texts, as text-embeddings-inference does",
        openapi_extra=_schema(protocol.PredictBody),
    )
    async def predict(request: Request, response: Response) -> Any:
        body: protocol.PredictBody = protocol.read_body(protocol.PredictBody, await request.body())
        texts, single = protocol.texts_of(body.inputs)
        work = service.answer(
            texts,
            budget=body.budget,
            truncate=bool(body.truncate),
            direction=body.truncation_direction.lower(),
        )
        answered = await while_connected(request, work)
        response.headers.update(protocol.headers_of(answered.texts))
        return protocol.predict_answer(encoder, answered.texts, body, single)

    @app.post(
        "/v1/classify",
        summary="Classify texts, as vLLM does",
        openapi_extra=_schema(protocol.ClassifyBody),
    )
    async def classify(request: Request, response: Response) -> Any:
        body: protocol.ClassifyBody = protocol.read_body(
            protocol.ClassifyBody, await request.body()
        )
        inputs = [body.input] if isinstance(body.input, str) else body.input
        texts, _ = protocol.texts_of([[text] for text in inputs])
        answered = await while_connected(request, service.answer(texts, budget=body.budget))
        response.headers.update(protocol.headers_of(answered.texts))
        name = service.backend.model_id
        return protocol.classify_answer(encoder, name, answered.texts, answered.tokens)


def _add_page(app: FastAPI) -> None:
    # It shows what people type: nothing of it may come from, or go to, another address.
    allowed = "default-src 'self'; img-src data:; style-src-attr 'unsafe-inline'"
    headers = {"content-security-policy": allowed}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=headers)

    app.mount("/page", StaticFiles(directory=PAGE))


def _add_kserve(app: FastAPI, service: Service) -> None:
    backend = service.backend
    encoder = backend.config.encoder

    def known(model: str, version: str) -> str:
        if model != backend.model_id:
            raise StarletteHTTPException(404, f"There is no model '{model}'.")
        if version != kserve.VERSION:
            raise StarletteHTTPException(404, f"Of '{model}' there is no version '{version}'.")
        return model

    @app.get("/v2", summary="The server")
    async def server() -> dict[str, Any]:
        extensions = ["binary_tensor_data"]
        return {"name": "dpbert", "version": version("dpbert-jax"), "extensions": extensions}

    # Clients that name a version and clients that do not.
    paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")

    async def described(model: str, version: str = kserve.VERSION) -> dict[str, Any]:
        return kserve.metadata(known(model, version), encoder)

    async def model_ready(model: str, version: str = kserve.VERSION) -> dict[str, Any]:
        known(model, version)
        if not service.ready:
            raise Unhealthy("The server is not ready.")
        return {"name": model, "ready": True}

    async def infer(request: Request, model: str, version: str = kserve.VERSION) -> Response:
        known(model, version)
        asked = kserve.read_infer(await request.body(), request.headers.get(kserve.HEADER))
        work = service.answer(asked.texts, budget=asked.budget, truncate=True)
        answered = await while_connected(request, work)
        body, head = kserve.infer_answer(encoder, model, asked, answered.texts)
        if head is None:
            return Response(body, media_type="application/json")
        headers = {kserve.HEADER: str(head)}
        return Response(body, media_type="application/octet-stream", headers=headers)

    for path in paths:
        app.get(path, summary="The model's inputs and outputs")(described)
        app.get(f"{path}/ready", summary="Whether the model answers")(model_ready)
        schema = _schema(kserve.InferBody)
        app.post(f"{path}/infer", summary="Classify texts, as KServe does", openapi_extra=schema)(
            infer
        )
