"""GPT-2, as small as it goes: the model that is trained, and its way into Hugging Face's format.

Owns: the architecture (`Config`, `GPT2`) and `save_as_gpt2`, which writes the folder that
`GPT2LMHeadModel.from_pretrained` loads. Read next: `train.py`.

The forward pass is GPT-2's: learned positions, pre-LayerNorm blocks, causal softmax attention scaled
by 1/sqrt(head_dim), GELU in its tanh form, a final LayerNorm, the embedding as unembedding.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tokenizer import END_OF_TEXT_ID, VOCAB_SIZE


@dataclass(frozen=True)
class Config:
    """Sizes, under GPT-2's names."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    n_positions: int = 256
    vocab_size: int = VOCAB_SIZE
    layer_norm_epsilon: float = 1e-5


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)). x is [batch, pos, n_embd]."""

    def __init__(self, config: Config):
        super().__init__()
        n = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(n, eps=config.layer_norm_epsilon)
        self.c_attn = nn.Linear(n, 3 * n)  # rows q | k | v
        self.attn_proj = nn.Linear(n, n)
        self.ln_2 = nn.LayerNorm(n, eps=config.layer_norm_epsilon)
        self.c_fc = nn.Linear(n, 4 * n)
        self.mlp_proj = nn.Linear(4 * n, n)

    def forward(self, x):
        batch, pos, n = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(batch, pos, 3, self.n_head, n // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(z.transpose(1, 2).reshape(batch, pos, n))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Token ids [batch, pos] to the mean cross-entropy (nats a token) against `targets`."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif name.endswith("_proj.weight"):  # GPT-2: the residual branches start smaller
                nn.init.normal_(p, std=0.02 / (2 * config.n_layer) ** 0.5)
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def gpt2_tensors(model: GPT2) -> dict[str, torch.Tensor]:
    """The parameters under Hugging Face's names; Conv1D weights are [in, out], so transposed."""
    renamed = {}
    for name, p in model.state_dict().items():
        name = name.replace("attn_proj", "attn.c_proj").replace("mlp_proj", "mlp.c_proj")
        name = name.replace(".c_attn", ".attn.c_attn").replace(".c_fc", ".mlp.c_fc")
        if ".c_" in name and name.endswith("weight"):
            p = p.t()
        renamed[name] = p.contiguous()
    return renamed


def save_as_gpt2(model: GPT2, folder: Path):
    """Writes config.json and model.safetensors (f16, trunk only: the tied lm_head is wte)."""
    c = model.config
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "bos_token_id": END_OF_TEXT_ID,
        "embd_pdrop": 0.0,
        "eos_token_id": END_OF_TEXT_ID,
        "initializer_range": 0.02,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "n_ctx": c.n_positions,
        "n_embd": c.n_embd,
        "n_head": c.n_head,
        "n_inner": None,
        "n_layer": c.n_layer,
        "n_positions": c.n_positions,
        "reorder_and_upcast_attn": False,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",  # to compute in: without it transformers 5 would compute in f16
        "vocab_size": c.vocab_size,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: p.to(torch.float16) for name, p in gpt2_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
