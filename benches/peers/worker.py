"""worker.py hf|tlens|ort|ort_webgpu|hf_generate|ctranslate2|llama_cpp FOLDER: a peer as a process that stays, and times what it is asked for. Requests and answers are
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


def threads():
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


# Generation: `make` takes the prompts and the number of new tokens, each of which is the likeliest. Nothing ends a text.


def hugging_face_generate():
    import torch
    import transformers

    torch.set_grad_enabled(False)
    torch.set_num_threads(threads())
    gpt2 = transformers.GPT2LMHeadModel.from_pretrained(model, attn_implementation="sdpa").eval()
    options = dict(do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)

    def make(x, new):
        x = torch.from_numpy(x)
        mask = torch.ones_like(x)

        def run():
            ids = gpt2.generate(x, attention_mask=mask, min_new_tokens=new, max_new_tokens=new, **options)
            assert ids.shape == (x.shape[0], x.shape[1] + new)

        return run

    return f"transformers {transformers.__version__}, torch {torch.__version__}", f"{torch.get_num_threads()} threads, sdpa, generate", make


def ctranslate2_generate():
    import ctranslate2

    generator = ctranslate2.Generator(str(folder / "gpt2-ctranslate2"), device="cpu", compute_type="float32", intra_threads=threads())
    names = json.loads((folder / "gpt2-ctranslate2" / "vocabulary.json").read_text())

    def make(x, new):
        prompts = [[names[i] for i in row] for row in x]

        def run():
            results = generator.generate_batch(
                prompts, max_length=new, min_length=new, beam_size=1, sampling_topk=1, include_prompt_in_result=False, end_token=[]
            )
            assert all(len(result.sequences_ids[0]) == new for result in results)

        return run

    return f"ctranslate2 {ctranslate2.__version__}", f"{threads()} threads, float32", make


def llama_cpp_generate():
    import llama_cpp as c

    c.llama_backend_init()
    loaded = c.llama_model_load_from_file(str(folder / "gpt2-random.gguf").encode(), c.llama_model_default_params())
    params = c.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 1024, threads(), threads()
    context = c.llama_init_from_model(loaded, params)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(loaded))

    def make(x, new):
        assert len(x) == 1, "one text at a time"

        def run():
            c.llama_memory_clear(c.llama_get_memory(context), True)
            ids = [int(i) for i in x[0]]
            for _ in range(new):
                tokens = (c.llama_token * len(ids))(*ids)
                assert c.llama_decode(context, c.llama_batch_get_one(tokens, len(ids))) == 0
                logits = np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (vocabulary,))
                ids = [int(logits.argmax())]

        return run

    return f"llama.cpp by llama-cpp-python {c.__version__}", f"{threads()} threads, f32", make


kinds = {
    "hf_generate": hugging_face_generate,
    "ctranslate2": ctranslate2_generate,
    "llama_cpp": llama_cpp_generate,
    "hf": hugging_face,
    "tlens": transformer_lens,
    "ort": lambda: onnx_runtime("CPUExecutionProvider"),
    "ort_webgpu": lambda: onnx_runtime("WebGpuExecutionProvider"),
}
version, device, make = kinds[kind]()
print(json.dumps({"version": version, "device": device}), file=answers, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["run"] == "generate":
        run = make(ids(request["prompt"], request["batch"]), request["tokens"])
    else:
        run = make(ids(request["tokens"], request["batch"]), request["taps"])
    begin, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - begin < request["seconds"]:
        run()
        runs += 1
    print(json.dumps({"ms": 1e3 * (time.perf_counter() - begin) / runs, "runs": runs}), file=answers, flush=True)
