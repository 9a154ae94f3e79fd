"""What each attention head does on random repeated tokens.

Owns: the sequences and the plain scores, the means of the pattern's diagonals. The scores of
TransformerLens's own head detector are in `report.py`, which reads the same patterns.

A sequence is `[<|endoftext|>] S S`, S being `length` tokens drawn uniformly from all but
<|endoftext|>. Over the rows of the second S, averaged, a head's attention to
- the token before (offset -1): previous-token score;
- the same token in the first S (offset -length): duplicate-token score;
- the token after that one (offset -(length - 1)): induction score.
All three are 0..1; 1 is a head that does nothing else there.
"""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model import GPT2, gpt2_tensors
from tokenizer import END_OF_TEXT_ID

KINDS = ["previous token", "duplicate token", "induction"]


def repeated(length: int, rows: int, bos: bool, vocabulary: int = END_OF_TEXT_ID) -> torch.Tensor:
    """Random repeated tokens out of the first `vocabulary`, [rows, bos + 2 * length]; seeded."""
    rng = np.random.default_rng(length)
    stretch = rng.integers(0, vocabulary, (rows, length))
    start = np.full((rows, int(bos)), END_OF_TEXT_ID)
    return torch.from_numpy(np.concatenate([start, stretch, stretch], axis=1))


def patterns(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Attention patterns, [layer, rows, head, query, key]."""
    with torch.no_grad():
        return torch.stack(model(ids, output_attentions=True).attentions)


def diagonal_scores(pattern: torch.Tensor, length: int) -> torch.Tensor:
    """[kind, layer, head], in the order of KINDS."""
    scores = []
    second = pattern.shape[-1] - length  # where the second copy begins
    for offset in [1, length, length - 1]:
        diagonal = pattern.diagonal(offset=-offset, dim1=-2, dim2=-1)  # entry i is row i + offset
        scores.append(diagonal[..., second - offset :].mean(dim=(1, 3)))
    return torch.stack(scores)


def as_hugging_face(model: GPT2) -> GPT2LMHeadModel:
    """The model in training as GPT2LMHeadModel, with attention that can be looked at."""
    c = model.config
    config = GPT2Config(
        n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.n_positions,
        vocab_size=c.vocab_size, attn_implementation="eager",
        bos_token_id=END_OF_TEXT_ID, eos_token_id=END_OF_TEXT_ID,
    )  # fmt: skip
    out = GPT2LMHeadModel(config).eval()
    out.transformer.load_state_dict(gpt2_tensors(model))
    return out
