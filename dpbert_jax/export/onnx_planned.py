"""A DPBERT as an ONNX graph of dynamic depth: one `If` a planned layer.

Attention and GELU are written as the operators that onnxruntime fuses a BERT into, since its
optimiser does not fuse attention inside the branches of an `If`: so the graph runs in onnxruntime
only, and there at least at the speed of its fused dense BERT times the share of layers that run.
In standard operators, where they are asked for, it runs elsewhere too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.encoder.attention import RELATIVE
from dpbert_jax.encoder.operations import Params
from dpbert_jax.export.onnx_adapters import Own, all_without, where, write_slots
from dpbert_jax.export.onnx_graph import MICROSOFT, Graph
from dpbert_jax.export.onnx_parts import (
    write_attention,
    write_embeddings,
    write_head,
    write_padding_bias,
    write_relative_bias,
)
from dpbert_jax.export.onnx_planner import write_planner
from dpbert_jax.export.onnx_quantize import int8_product, standard_int8_product, stored_product
from dpbert_jax.export.onnx_rule import write_rule
from dpbert_jax.export.onnx_tokens import Left, write_selection, write_stay, write_tokens
from dpbert_jax.policies.rule import budget_range, resolve_rule
from dpbert_jax.policies.tokens import selector_layers


class Form(NamedTuple):
    """How a layer is written."""

    multiply: Callable[..., str]
    standard: bool = False  # standard operators only


def planned_onnx(
    config: DPBertConfig,
    params: Params,
    plan_rule: str = "threshold",
    int8: bool = False,
    *,
    int8_all: bool = False,
    standard_operators: bool = False,
) -> onnx.ModelProto:
    """The model with planner and plan rule inside; batch and sequence are dynamic.

    Inputs: the family's (`config.inputs`), int64 [batch, sequence], and `budget`, a float32 scalar:
    a share of the dense FLOPs, held to the trained range; 1 and more runs all layers. Where the
    config has a `default_budget`, `budget` may be left out. Outputs: `logits` [batch, C],
    `layer_mask` [batch, L] (1 where a layer ran) and `gate_logits` [batch, P]; of a model that
    drops tokens `tokens` [batch, L] as well, how many each layer has. In a batch, a layer runs on
    those rows that need it. More tokens than there are positions for are an error of the runtime.

    With `int8` the planned layers' products are quantised (weights beforehand, activations token
    by token as they come). Embeddings, stem, planner and head stay float32: the plans are those of
    the float32 graph. With `int8_all` that holds as well, and the kernels of stem and pooler and
    the table of positions lie in int8 and are computed with in float32: the plans are those of
    `stored_params`.

    With `standard_operators` other runtimes than onnxruntime load the graph; `budget` then has no
    default, and the graph is slower.

    Raises:
        UserError: there is no planner, or the rule needs thresholds that were never found.
    """
    lowest, _ = budget_range(config) or (0.5, 1.0)
    resolve_rule(config, lowest, plan_rule)  # refuses what cannot be planned
    encoder = config.encoder
    graph = Graph()
    stem = Form(stored_product if int8_all else _product, standard_operators)
    planned = stem._replace(multiply=_product)
    if int8 or int8_all:
        multiply = standard_int8_product if standard_operators else int8_product
        planned = stem._replace(multiply=multiply)
    # Others than onnxruntime take a default for a constant: there every call names its budget.
    if config.default_budget is not None and not standard_operators:
        graph.constant("budget", config.default_budget)  # under an input's name: its default
    mask = graph.add("Cast", "attention_mask", to=TensorProto.INT32)
    relative = ""  # no input
    if encoder.family.relative_attention:
        relative = write_relative_bias(graph, encoder, params[RELATIVE])
    states = write_embeddings(graph, encoder, params["embeddings"], int8_all)
    for i in range(config.stem_layers):
        name = f"layer_{i}"
        states = _layer(graph, encoder, params[name], name, states, mask, relative, stem)
    write_planner(graph, config, params["planner"], states)
    needed = write_rule(graph, config, plan_rule)
    left, masks = Left(states, mask, "sequence"), [mask] * config.stem_layers
    selected = selector_layers(config) if config.token_selectors else ()
    stay = write_stay(graph, config) if selected else ""
    slots = write_slots(graph, config, needed) if config.adapters else ""
    for gate in range(config.num_gates):
        i = config.stem_layers + gate
        if i in selected:
            name = f"selector_{selected.index(i)}"
            left = write_selection(graph, name, params[name], left, stay)
        masks.append(left.mask)
        rows = graph.add("Gather", needed, graph.constant(f"gate_{gate}", gate, np.int64), axis=1)
        layer = partial(
            _layer,
            config=encoder,
            params=params[f"layer_{i}"],
            name=f"layer_{i}",
            relative=relative,
            form=planned,
        )
        if config.adapters:
            own = Own(f"layer_{i}", params["adapters"][f"layer_{i}"], slots)
            layer = _with_adapters(config, layer, own, rows)
        left = _where_needed(graph, layer, f"layer_{i}", left, rows, encoder.hidden_size)
    own = Own("head", params["adapters"]["head"], slots) if config.adapters else None
    write_head(graph, encoder, params["head"], left.states, own, int8_all)
    _layer_mask(graph, config, needed)
    if selected:
        write_tokens(graph, masks)

    def described(name: str, kind: int, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [described(name, TensorProto.INT64, "batch", "sequence") for name in encoder.inputs]
    outputs = {
        "logits": encoder.num_labels,
        "layer_mask": encoder.num_hidden_layers,
        "gate_logits": config.num_gates,
        **({"tokens": encoder.num_hidden_layers} if selected else {}),
    }
    return graph.as_model(
        "dpbert",
        [*inputs, described("budget", TensorProto.FLOAT)],
        [described(name, TensorProto.FLOAT, "batch", size) for name, size in outputs.items()],
    )


def _layer(
    graph: Graph,
    config: EncoderConfig,
    params: Params,
    name: str,
    states: str,
    mask: str,
    relative: str,
    form: Form,
    own: Own | None = None,
) -> str:
    def product(inputs: str, part: str) -> str:
        kernel = np.asarray(params[part]["kernel"])
        output = form.multiply(graph, inputs, f"{name}.{part}", kernel)
        if own is None or not own.has(part):
            return output
        return graph.add("Add", output, own.low_rank(graph, part, inputs))

    def bias(part: str) -> str:
        return graph.constant(f"{name}.{part}.bias", params[part]["bias"])

    def joined(inputs: str, states: str, part: str, norm: str) -> str:
        """LayerNorm of a product's output, its bias and the residual."""
        total = graph.add("Add", graph.add("Add", product(inputs, part), bias(part)), states)
        return _layer_norm(graph, config, params[norm], f"{name}.{norm}", total, own, norm)

    fused = form.multiply is _product and not form.standard and not (own and own.has("query"))
    write = _attention if fused else partial(_split_attention, form=form, own=own)
    context = write(graph, config, params, name, states, mask, relative)
    states = joined(context, states, "attention_output", "attention_layer_norm")
    activated = _activation(graph, config, product(states, "intermediate"), bias, form)
    return joined(activated, states, "output", "output_layer_norm")


def _activation(
    graph: Graph, config: EncoderConfig, wide: str, bias: Callable[[str], str], form: Form
) -> str:
    kind = {"gelu": "BiasGelu", "gelu_new": "FastGelu"}.get(config.hidden_act)
    if kind and not form.standard:
        return graph.add(kind, wide, bias("intermediate"), domain=MICROSOFT)
    wide = graph.add("Add", wide, bias("intermediate"))
    standard = {"gelu": graph.gelu, "gelu_new": graph.gelu_new}
    return standard[config.hidden_act](wide) if kind else graph.add("Relu", wide)


def _product(graph: Graph, inputs: str, name: str, kernel: np.ndarray) -> str:
    return graph.add("MatMul", inputs, graph.constant(f"{name}.kernel", kernel))


def _query_key_value(graph: Graph, params: Params, name: str) -> tuple[np.ndarray, str]:
    """The three kernels side by side [D, 3 D], and the constant of their biases [3 D]."""
    parts = [params[part] for part in ("query", "key", "value")]
    bias = graph.constant(f"{name}.qkv.bias", np.concatenate([part["bias"] for part in parts]))
    return np.concatenate([part["kernel"] for part in parts], axis=1), bias


def _attention(
    graph: Graph,
    config: EncoderConfig,
    params: Params,
    name: str,
    states: str,
    mask: str,
    relative: str,
) -> str:
    kernel, bias = _query_key_value(graph, params, name)
    kernel = graph.constant(f"{name}.qkv.kernel", kernel)
    options = _attention_options(config)
    # The empty name stands for no past keys and values.
    return graph.add("Attention", states, kernel, bias, mask, "", relative, **options)


def _split_attention(
    graph: Graph,
    config: EncoderConfig,
    params: Params,
    name: str,
    states: str,
    mask: str,
    relative: str,
    form: Form,
    own: Own | None,
) -> str:
    """The same with a product of another kind before it; scores and values' product are float."""
    kernel, bias = _query_key_value(graph, params, name)
    product = form.multiply(graph, states, f"{name}.qkv", kernel)
    parts = graph.split(product, 3)
    if own and own.has("query"):
        names = ("query", "key", "value")
        added = [own.low_rank(graph, part, states) for part in names]
        parts = [graph.add("Add", *pair) for pair in zip(parts, added, strict=True)]
    if not form.standard:
        options = _attention_options(config)
        return graph.add("MultiHeadAttention", *parts, bias, mask, relative, **options)
    biases = graph.split(bias, 3)
    parts = [graph.add("Add", *pair) for pair in zip(parts, biases, strict=True)]
    padding = write_padding_bias(graph, mask)
    scores = graph.add("Add", padding, relative) if relative else padding
    return write_attention(graph, config, parts, scores)


def _attention_options(config: EncoderConfig) -> dict[str, Any]:
    return {
        "domain": MICROSOFT,
        "num_heads": config.num_attention_heads,
        "mask_filter_value": float(np.finfo(np.float32).min),
    }


def _layer_norm(
    graph: Graph,
    config: EncoderConfig,
    params: Params,
    name: str,
    inputs: str,
    own: Own | None,
    part: str,
) -> str:
    """LayerNorm over the features, in operators that onnxruntime does not fuse.

    Its fused kernels go through a row element by element: at 128 tokens of 384 features they took
    a quarter of an int8 layer's time, these a third of that.
    """
    centred = graph.add("Sub", inputs, graph.add("ReduceMean", inputs, axes=[-1]))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[-1])
    epsilon = graph.constant("layer_norm_eps", config.layer_norm_eps)
    deviation = graph.add("Sqrt", graph.add("Add", variance, epsilon))
    normal = graph.add("Mul", centred, graph.add("Reciprocal", deviation))
    scale = graph.constant(f"{name}.scale", params["scale"])
    shift = graph.constant(f"{name}.bias", params["bias"])
    if own:
        scale = own.added(graph, scale, part, "scale")
        shift = own.added(graph, shift, part, "bias")
    return graph.add("Add", graph.add("Mul", normal, scale), shift)


def _with_adapters(
    config: DPBertConfig, layer: Callable[..., str], own: Own, rows: str
) -> Callable[..., str]:
    """The layer that adds each row's adapters, and none at all where no row has any."""

    def run(graph: Graph, states: str, mask: str) -> str:
        picked = own._replace(slots=graph.add("Compress", own.slots, rows, axis=0))
        return where(
            graph,
            all_without(graph, config, picked.slots),
            f"{own.name}.adapted",
            ["rows", "sequence", config.encoder.hidden_size],
            lambda inside: layer(inside, states=states, mask=mask),
            lambda inside: layer(inside, states=states, mask=mask, own=picked),
        )

    return run


def _where_needed(
    graph: Graph,
    layer: Callable[..., str],
    name: str,
    left: Left,
    rows: str,
    hidden_size: int,
) -> Left:
    """The layer on the rows (bool [B]) that need it; nothing at all where none does."""
    count = graph.add("ReduceMax", graph.add("Cast", rows, to=TensorProto.INT32), keepdims=0)
    any_row = graph.add("Cast", count, to=TensorProto.BOOL)

    run = Graph(graph, f"{name}.run")
    picked, mask = (run.add("Compress", each, rows, axis=0) for each in left[:2])
    output = layer(run, states=picked, mask=mask)
    places = run.add("Transpose", run.add("NonZero", rows), perm=[1, 0])
    after = run.add("ScatterND", left.states, places, output)

    skip = Graph(graph, f"{name}.skip")
    before = skip.add("Identity", left.states)
    shape = ["batch", left.sequence, hidden_size]
    states = graph.add(
        "If",
        any_row,
        then_branch=run.as_branch(f"{name}.run", after, shape),
        else_branch=skip.as_branch(f"{name}.skip", before, shape),
    )
    return left._replace(states=states)


def _layer_mask(graph: Graph, config: DPBertConfig, needed: str) -> None:
    """`layer_mask`: ones for the stem, then the gates."""
    gates = graph.add("Cast", needed, to=TensorProto.FLOAT)
    start, stop = (graph.constant(f"axis_{axis}", [axis], np.int64) for axis in (0, 1))
    rows = graph.add("Slice", graph.add("Shape", gates), start, stop)
    size = graph.constant("stem_size", [config.stem_layers], np.int64)
    shape = graph.add("Concat", rows, size, axis=0)
    stem = graph.add("Expand", graph.constant("ones", [[1.0]]), shape)
    graph.add("Concat", stem, gates, axis=1, output="layer_mask")
