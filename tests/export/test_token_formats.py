"""Models that drop tokens in every format: the tokens, layers and answers of this library."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import BertTokenizer

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.data import batches
from dpbert_jax.data.tasks import custom_spec
from dpbert_jax.export.formats import ExportOptions, load_artifact, write_artifact
from dpbert_jax.export.onnx_planned import planned_onnx
from dpbert_jax.export.stablehlo import stablehlo_program
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.export.verify import verify
from dpbert_jax.export_formats import export_format
from dpbert_jax.inference import make_executor, resolve_rule
from dpbert_jax.model import Model
from dpbert_jax.policies.tokens import stay_logits
from dpbert_jax.study.token_path import first_states
from dpbert_jax.study.trbert import initial_selectors

ENCODER = dataclasses.replace(TINY, num_hidden_layers=4)
DIAL = Calibration((0.2, 0.5, 0.8, 1.0), (1.0, 0.2, -0.5, -3.0), None, (0.4, 0.1, -0.2, -5.0))
CONFIG = DPBertConfig(
    ENCODER, PlannerConfig(hidden_size=8, min_budget=0.5), DIAL, token_selectors=True
)
NO_DIAL = dataclasses.replace(CONFIG, calibration=dataclasses.replace(DIAL, stays=None))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PARTS = ["logits", "layer_mask", "tokens"]
CONFIGS = pytest.mark.parametrize("config", [CONFIG, NO_DIAL], ids=["dial", "layers_dialled"])


@pytest.fixture
def params(random_params):
    """Random ones, whose selectors drop half of the tokens."""
    made = {**random_params(CONFIG), **initial_selectors(CONFIG, 0)}
    for name in ("selector_0", "selector_1"):
        narrow = made[name]["narrow"]
        made[name]["narrow"] = {"kernel": 100 * narrow["kernel"], "bias": 0 * narrow["bias"]}
    return made


def check(answer, config, params, batch):
    """`answer(batch, budget)` gives logits, plans and tokens; rows in a batch and alone."""
    execute = make_executor("masked", config, params)
    least = DIAL.budgets[0] if config.dial else config.planner.min_budget
    seen = set()
    for budget in (1.0, 0.8, 0.65, 0.5, least):
        wanted = execute(batch, resolve_rule(config, budget))
        rows = len(batch["input_ids"])
        alone = [answer({k: v[i : i + 1] for k, v in batch.items()}, budget) for i in range(rows)]
        ways = answer(batch, budget), [np.concatenate(part) for part in zip(*alone, strict=True)]
        for logits, layer_mask, tokens in ways:
            np.testing.assert_array_equal(layer_mask, wanted.layer_mask)
            np.testing.assert_array_equal(tokens, wanted.tokens)
            np.testing.assert_allclose(logits, wanted.logits, rtol=0, atol=2e-5)
        seen |= {tuple(row) for row in np.asarray(wanted.tokens)[:, 1:].tolist()}
    assert len(seen) > 3  # more and fewer tokens, and again fewer behind the second selector


@CONFIGS
@pytest.mark.parametrize("standard", [False, True], ids=["fused", "standard"])
def test_onnx(config, standard, params, random_batch):
    runtime = pytest.importorskip("onnxruntime")
    made = planned_onnx(config, params, standard_operators=standard)
    session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])

    def answer(batch, budget):
        given = {name: np.int64(batch[name]) for name in config.encoder.inputs}
        given["budget"] = np.array(budget, np.float32)
        return session.run(PARTS, given)

    check(answer, config, params, random_batch(6))


@CONFIGS
def test_torch(config, params, random_batch, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    tokenizer = BertTokenizer(vocab={name: i for i, name in enumerate(SPECIAL)})
    save_torch_folder(tmp_path, config, params, tokenizer)
    load = AutoModelForSequenceClassification.from_pretrained
    loaded = load(tmp_path, trust_remote_code=True).eval()

    def answer(batch, budget):
        given = {name: torch.tensor(np.asarray(batch[name])) for name in config.encoder.inputs}
        with torch.no_grad():
            made = loaded(**given, budget=budget)
        return made.logits.numpy(), made.layer_mask.numpy(), made.tokens.numpy()

    check(answer, config, params, random_batch(6))
    if config.dial:
        inputs = torch.ones(1, 4, dtype=torch.long)
        with pytest.raises(ValueError, match=r"0\.2 to 1\.0"):
            loaded(inputs, budget=0.1)
        with pytest.raises(ValueError, match="layers and tokens"):
            loaded(inputs, budget=0.5, plan_rule="top_k")


@CONFIGS
def test_stablehlo(config, params, random_batch):
    program = stablehlo_program(config, params)

    def answer(batch, budget):
        inputs = [np.int32(batch[name]) for name in config.encoder.inputs]
        made = program.call(*inputs, np.float32(budget))
        return [np.asarray(made[name]) for name in PARTS]

    check(answer, config, params, random_batch(6))


def test_verify_holds_a_call_to_its_tokens(params, random_split, tmp_path):
    pytest.importorskip("onnxruntime")
    tokenizer = BertTokenizer(vocab={name: i for i, name in enumerate(SPECIAL)})
    split, spec = random_split(24), custom_spec(("text",), ("no", "yes"))
    model, options = Model(CONFIG, params, tokenizer, 16), ExportOptions()
    write_artifact(export_format("onnx"), tmp_path, model, options)
    call = load_artifact(export_format("onnx"), tmp_path, model, options)
    good = verify(call, model, options, split, spec, 16)
    assert [row.budget for row in good] == [1.0, 0.6, 0.2]
    assert all(row.agrees and row.plans_equal == 1 for row in good)

    def one_token_more(batch, budget):
        logits, layer_mask, tokens = call(batch, budget)
        return logits, layer_mask, tokens + (budget < 1)

    bad = verify(one_token_more, model, options, split, spec, 16)
    assert [row.agrees for row in bad] == [True, False, False]


def test_verify_lets_tokens_on_the_edge_be_and_no_others(params, random_split):
    split, spec = random_split(24), custom_spec(("text",), ("no", "yes"))
    tokenizer = BertTokenizer(vocab={name: i for i, name in enumerate(SPECIAL)})
    [batch] = batches(split, 24, 16, pad_token_id=0)
    inputs = {name: jnp.asarray(each) for name, each in batch.items()}
    states = first_states(CONFIG, jnp.float32, params, inputs, None)
    said = np.asarray(stay_logits(params["selector_0"], states, jnp.float32))
    some = np.sort(said[:, 1:][batch["attention_mask"][:, 1:] > 0])
    edge = float(some[len(some) // 2])

    def at(stay):
        stays = (stay, stay, stay, -5.0)
        return dataclasses.replace(CONFIG, calibration=dataclasses.replace(DIAL, stays=stays))

    for moved, near, agrees in ((3e-5, 1, True), (0.3, 0, False)):
        config = at(edge + moved)
        execute = make_executor("masked", config, params)

        def call(batch, budget, config=config, execute=execute):
            made = execute(batch, resolve_rule(config, budget))._asdict()
            return tuple(np.asarray(made[name]) for name in PARTS)

        model = Model(at(edge - 3e-5), params, tokenizer, 16)
        row = verify(call, model, ExportOptions(), split, spec, 16)[1]
        assert row.agrees == agrees and row.plans_equal < 1 and row.near_ties >= near
