"""An exported folder in Hugging Face's optimum, in an environment of its own.

optimum-onnx 0.1.0 wants transformers below 5, this library 5 or later.
"""

import subprocess
import venv

import pytest

from dpbert_jax.export.arguments import ExportArguments
from dpbert_jax.export.command import export

PACKAGES = ("torch==2.13.0", "optimum-onnx==0.1.0", "onnxruntime>=1.20")
TEXTS = ["the cat sat on the mat", "a film and it was good", "bad", "dog walk in sun " * 9]
CLIENT = f"""
import sys
import numpy as np
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

folder = sys.argv[1]
model = ORTModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = {TEXTS!r}
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
assert batch["input_ids"].shape[1] == 16, batch["input_ids"].shape
inputs = {{name: np.int64(value) for name, value in batch.items()}}

def depths(**budget):
    budget = {{name: np.array(value, np.float32) for name, value in budget.items()}}
    return model.session.run(["layer_mask"], inputs | budget)[0].sum(axis=1)

assert (depths() == depths(budget=0.75)).all()
assert depths().sum() < depths(budget=1.0).sum(), (depths(), depths(budget=1.0))

def answers(**budget):
    budget = {{name: np.array(value, np.float32) for name, value in budget.items()}}
    return model.session.run(["logits"], inputs | budget)[0]

logits = model(**batch).logits
assert np.abs(np.asarray(logits) - answers(budget=0.75)).max() < 1e-5
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
found = classify(texts, truncation=True)
ids = [model.config.label2id[each["label"]] for each in found]
assert ids == answers(budget=0.75).argmax(axis=1).tolist(), (ids, answers(budget=0.75))
print("served", [each["label"] for each in found])
"""


@pytest.mark.slow
def test_optimum_serves_the_planned_model(tiny_run, tmp_path):
    export(ExportArguments(str(tiny_run), format="onnx", output_dir=str(tmp_path / "out")))
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    command = [python, "-W", "ignore", "-c", CLIENT, str(tmp_path / "out")]
    answered = subprocess.run(command, capture_output=True, text=True)
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.startswith("served")
