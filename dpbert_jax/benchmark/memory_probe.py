"""Peak memory of a process that runs an ONNX graph: a script of its own, in a process of its own.

Arguments: the graph; the calls; tokens of a row; the ids that there are; the inputs'
names, blanks between; the budget, or `-` for a graph that has none. Prints bytes: the most that
were resident at once, of Linux's VmHWM. Imports no JAX, and nothing of this library.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    graph, calls, length, vocab_size, names, budget = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # what a layer no longer needs goes back
    options.enable_mem_pattern = False  # no block for all activations of a length
    options.add_session_config_entry("session.disable_prepacking", "1")  # no copies of weights
    options.log_severity_level = 3  # it warns of the budget's default, which is meant
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(1, int(vocab_size), (1, int(length)))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    inputs: dict[str, np.ndarray] = {name: values[name] for name in names.split()}
    if budget != "-":
        inputs["budget"] = np.array(budget, np.float32)
    for _ in range(int(calls)):
        session.run(None, inputs)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            print(1024 * int(line.split()[1]))


if __name__ == "__main__":
    main()
