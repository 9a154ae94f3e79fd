"""What transformers' `generate` writes in float64: greedy ids with their log-probabilities, plain and with a repetition penalty, and
the probabilities that its filters leave of one distribution.

Texts whose next token is a near tie are refused: float32 may take the other one. They are cut off before that token.
"""

import json
import pathlib

import torch
from safetensors import safe_open
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import expected

NEW = 24
PENALTIES = (1.0, 1.3)
# Between the two largest logits, as a share of the largest: float32 is off by 1e-5 at most (large_values).
MARGIN = 1e-3

FILTERS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"repetition_penalty": 1.4},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.08, "repetition_penalty": 1.2},
]


def prompts(folder):
    """The beginning of every row of a golden file."""
    with safe_open(folder / "golden.safetensors", "numpy") as file:
        ids, mask = file.get_tensor("input_ids"), file.get_tensor("attention_mask")
        model = (file.metadata() or {}).get("model")
    rows = [[int(i) for i, m in zip(*row) if m] for row in zip(ids, mask)]
    return model, [row[: max(1, len(row) // 2)] for row in rows]


def greedy(model, prompt, penalty):
    """New ids and their log-probabilities, up to a near tie or the last position."""
    room = min(NEW, model.config.n_positions - len(prompt))
    settings = GenerationConfig(
        max_new_tokens=room, do_sample=False, repetition_penalty=penalty, eos_token_id=None, pad_token_id=0,
        bos_token_id=None, return_dict_in_generate=True, output_scores=True)
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         generation_config=settings)
    # `generate` hands logits out in float32; the log-probabilities are of float64.
    with torch.no_grad():
        exact = model(out.sequences).logits[0, len(prompt) - 1 :].log_softmax(-1)
    assert exact.dtype == torch.float64
    new, logprobs = [], []
    for token, logprob, scores in zip(out.sequences[0, len(prompt):], exact, out.scores):
        first, second = scores[0].topk(2).values
        if first - second < MARGIN * max(abs(first), abs(second)):
            break
        new.append(int(token))
        logprobs.append(float(logprob[token]))
    return {"prompt": prompt, "penalty": penalty, "new": new, "logprobs": logprobs}


def filtered(logits, ids, settings):
    """The distribution that transformers would draw from, its processors in its own order."""
    order = [
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ]
    scores = torch.tensor([logits], dtype=torch.float64)
    for name, processor in order:
        if name in settings:
            scores = processor(settings[name])(torch.tensor([ids]), scores)
    return scores.softmax(-1)[0].tolist()


def write(root, fixtures):
    golden = {"fixtures": {}}
    for folder in sorted(path for path in fixtures.iterdir() if (path / "golden.safetensors").exists()):
        model, rows = prompts(folder)
        loaded = expected.load(root / model if model else folder, torch.float64)
        texts = [greedy(loaded, row, penalty) for row in rows for penalty in PENALTIES
                 if len(row) < loaded.config.n_positions]
        golden["fixtures"][folder.name] = [text for text in texts if text["new"]]
        print(f"{folder.name:17} new tokens {[len(text['new']) for text in texts]}")
    generator = torch.Generator().manual_seed(7)
    # As f32 has them, so that both sides begin with the same numbers.
    logits = (torch.randn(40, generator=generator) * 2).tolist()
    ids = [3, 17, 17, 30]
    golden["logits"], golden["ids"] = logits, ids
    golden["filters"] = [{"settings": s, "probabilities": filtered(logits, ids, s)} for s in FILTERS]
    path = fixtures / "generation.json"
    path.write_text(json.dumps(golden) + "\n")
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    ROOT = pathlib.Path(__file__).resolve().parents[2]
    write(ROOT, ROOT / "tests" / "fixtures")
