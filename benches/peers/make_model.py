"""make_model.py FOLDER: what every peer runs, in FOLDER: gpt2-random (gpt2-small's shape with random weights, in Hugging Face's layout),
gpt2-batch.onnx (the same model for ONNX Runtime: token ids in, 13 hidden states out, any batch and length), gpt2-ctranslate2 and
gpt2-random.gguf (the same for CTranslate2 and llama.cpp, where these are installed), and a tokenizer for whoever insists on one. What is
there stays."""
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import gelu
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast

folder = Path(sys.argv[1])
model, graph = folder / "gpt2-random", folder / "gpt2-batch.onnx"
torch.set_grad_enabled(False)
torch.manual_seed(0)
if not (model / "model.safetensors").exists():
    GPT2LMHeadModel(GPT2Config()).save_pretrained(model)
if not (folder / "tokenizer").exists():
    # TransformerLens insists on one; nothing is ever cut with it.
    words = {f"<{i}>": i for i in range(50256)} | {"<|endoftext|>": 50256}
    end = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end).save_pretrained(folder / "tokenizer")


class HiddenStates(torch.nn.Module):
    """GPT-2's blocks written out in operations that ONNX has; positions and the mask follow from the length."""

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def heads(self, x):
        n_head = self.gpt2.config.n_head
        return x.reshape(x.shape[0], x.shape[1], n_head, -1).transpose(1, 2)

    def attention(self, block, x):
        q, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
        q, k, v = self.heads(q), self.heads(k), self.heads(v)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        n = x.shape[1]
        later = torch.ones(n, n).triu(1).bool()
        z = scores.masked_fill(later, -1e30).softmax(-1) @ v
        return block.attn.c_proj(z.transpose(1, 2).reshape(x.shape))

    def forward(self, ids):
        gpt2 = self.gpt2
        x = gpt2.wte(ids) + gpt2.wpe(torch.arange(ids.shape[1]))
        states = [x]
        for block in gpt2.h:
            x = x + self.attention(block, x)
            x = x + block.mlp.c_proj(gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
            states.append(x)
        return (*states[:-1], gpt2.ln_f(x))


if not graph.exists():
    gpt2 = GPT2Model.from_pretrained(model, attn_implementation="eager").eval()
    written_out = HiddenStates(gpt2)
    ids = (torch.arange(26).reshape(2, 13) * 7919) % 50257
    theirs = gpt2(ids, output_hidden_states=True).hidden_states
    off = max(float((a - b).abs().max()) for a, b in zip(written_out(ids), theirs, strict=True))
    if not off < 1e-4:
        sys.exit(f"the model written out parts from transformers by {off}; nothing is exported")
    unfinished = folder / "unfinished.onnx"
    names = [f"hidden_{i}" for i in range(len(gpt2.h) + 1)]
    torch.onnx.export(
        written_out, (ids,), str(unfinished), input_names=["ids"], output_names=names,
        dynamic_axes={"ids": {0: "batch", 1: "tokens"}}, opset_version=17, dynamo=False,
    )
    unfinished.rename(graph)
    print(f"exported; off from transformers by {off:.1e}")


def for_ctranslate2():
    from ctranslate2.converters import TransformersConverter

    # The converter wants the tokenizer's files beside the weights.
    with tempfile.TemporaryDirectory() as both:
        for file in [*model.iterdir(), *(folder / "tokenizer").iterdir()]:
            (Path(both) / file.name).symlink_to(file.resolve())
        TransformersConverter(both).convert(str(folder / "gpt2-ctranslate2"))


def for_llama_cpp():
    """A GGUF file without a vocabulary. Matrices are [out, in] there, where GPT-2's checkpoints have [in, out]."""
    import gguf
    from safetensors.torch import load_file

    config, unfinished = GPT2Config.from_pretrained(model), folder / "unfinished.gguf"
    weights = {name.removeprefix("transformer."): w.float() for name, w in load_file(model / "model.safetensors").items()}
    writer = gguf.GGUFWriter(unfinished, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    tensors = {"token_embd.weight": weights["wte.weight"], "position_embd.weight": weights["wpe.weight"]}
    for part in ("weight", "bias"):
        tensors[f"output_norm.{part}"] = weights[f"ln_f.{part}"]
        for layer in range(config.n_layer):
            for ours, theirs in names.items():
                w = weights[f"h.{layer}.{ours}.{part}"]
                tensors[f"blk.{layer}.{theirs}.{part}"] = w.T.contiguous() if w.dim() == 2 else w
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(folder / "gpt2-random.gguf")


for made, make in (("gpt2-ctranslate2", for_ctranslate2), ("gpt2-random.gguf", for_llama_cpp)):
    if not (folder / made).exists():
        try:
            make()
        except ImportError as e:
            print(f"without {made}: {e}", file=sys.stderr)
