"""worker.py hf|tlens|ort|ort_webgpu FOLDER: a peer as a process that stays, and times what it is asked for. Requests and answers are
those of benches/compare/worker.rs; FOLDER is make_model.py's."""
import json
import os
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
kind, folder = sys.argv[1], Path(sys.argv[2])
model, graph = folder / "gpt2-random", folder / "gpt2-batch.onnx"
# What libraries print is talk; answers go where stdout went.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402


def ids(tokens, batch):
    return np.tile((np.arange(tokens, dtype=np.int64) * 7919 + 13) % 50257, (batch, 1))


def hugging_face():
    import torch
    import transformers

    torch.set_grad_enabled(False)
    gpt2 = transformers.GPT2Model.from_pretrained(model, attn_implementation="sdpa").eval()

    def make(x, taps):
        x = torch.from_numpy(x)
        return lambda: gpt2(x, output_hidden_states=taps == "hidden", use_cache=False)

    return f"transformers {transformers.__version__}, torch {torch.__version__}", f"{torch.get_num_threads()} threads, sdpa", make


def transformer_lens():
    import logging
    import warnings
    from importlib.metadata import version

    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    hf = GPT2LMHeadModel.from_pretrained(model, attn_implementation="eager").eval()
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")

    def make(x, taps):
        x = torch.from_numpy(x)
        if taps == "full":
            return lambda: bridge.run_with_cache(x)
        return lambda: bridge.run_with_cache(x, names_filter=lambda name: name.endswith("hook_resid_post"))

    return f"transformer-lens {version('transformer-lens')}, torch {torch.__version__}", f"{torch.get_num_threads()} threads", make


def onnx_runtime(provider):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    if session.get_providers()[0] != provider:
        sys.exit(f"onnxruntime {onnxruntime.__version__} does not run with {provider} here")

    def make(x, taps):
        return lambda: session.run(None, {"ids": x})

    return f"onnxruntime {onnxruntime.__version__}", provider, make


kinds = {
    "hf": hugging_face,
    "tlens": transformer_lens,
    "ort": lambda: onnx_runtime("CPUExecutionProvider"),
    "ort_webgpu": lambda: onnx_runtime("WebGpuExecutionProvider"),
}
version, device, make = kinds[kind]()
print(json.dumps({"version": version, "device": device}), file=answers, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    run = make(ids(request["tokens"], request["batch"]), request["taps"])
    begin, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - begin < request["seconds"]:
        run()
        runs += 1
    print(json.dumps({"ms": 1e3 * (time.perf_counter() - begin) / runs, "runs": runs}), file=answers, flush=True)
