"""Small GPT-2 checkpoints as people save them, each with what transformers computes from it.

    venv/bin/python make_weights.py         writes tests/inputs/weights (torch and transformers 5)
"""

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file, save_model
from transformers import (
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

ROOT = Path(__file__).resolve().parents[2] / "tests/inputs/weights"
IDS = [3, 1, 4, 1, 5]
CONFIG = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0)


def random(kind, config=CONFIG):
    torch.manual_seed(7)
    model = kind(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


class ValueHead(torch.nn.Module):
    """The modules of trl's AutoModelForCausalLMWithValueHead."""

    def __init__(self, model):
        super().__init__()
        self.pretrained_model = model
        self.v_head = torch.nn.Module()
        self.v_head.summary = torch.nn.Linear(model.config.n_embd, 1)


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    expected = {}

    def record(name, model):
        """The stream after ln_f, in f64, as rows."""
        body = getattr(model, "transformer", model)
        with torch.no_grad():
            rows = copy.deepcopy(body).double()(torch.tensor([IDS])).last_hidden_state[0]
        expected[name] = rows.tolist()

    def folder(name, model):
        path = ROOT / name
        path.mkdir(parents=True)
        model.config.save_pretrained(path)
        record(name, model)
        return path

    def state(name, model, tensors):
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder(name, model) / "model.safetensors")

    lm = random(GPT2LMHeadModel)
    save_model(lm, str(folder("save_model_tied", lm) / "model.safetensors"))
    for name, kind in (
        ("sequence_classification", GPT2ForSequenceClassification),
        ("token_classification", GPT2ForTokenClassification),
        ("double_heads", GPT2DoubleHeadsModel),
        ("question_answering", GPT2ForQuestionAnswering),
        ("body", GPT2Model),
    ):
        model = random(kind)
        model.save_pretrained(folder(name, model))
    for name, wrapper in (("compiled", "_orig_mod."), ("data_parallel_compiled", "module._orig_mod."), ("lightning", "model.")):
        state(name, lm, {wrapper + key: value for key, value in lm.state_dict().items()})
    assert next(iter(torch.nn.DataParallel(lm).state_dict())).startswith("module.transformer.")
    assert next(iter(torch.compile(lm).state_dict())).startswith("_orig_mod.transformer.")
    state("value_head_wrapped", lm, ValueHead(lm).state_dict())
    # As trl's state_dict() has it.
    values = {key.removeprefix("pretrained_model."): value for key, value in ValueHead(lm).state_dict().items()}
    state("value_head", lm, values)
    double = random(GPT2LMHeadModel).double()
    double.save_pretrained(folder("f64", double))
    path = folder("sizes_under_other_names", lm)
    lm.save_pretrained(path)
    fields = json.loads((path / "config.json").read_text())
    for ours, other in GPT2Config.attribute_map.items():
        fields[ours] = fields.pop(other)
    (path / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    record("sizes_under_other_names", GPT2LMHeadModel.from_pretrained(path))
    (ROOT / "expected.json").write_text(json.dumps({"ids": IDS, "rows": expected}) + "\n")
    for path in ROOT.glob("*/generation_config.json"):
        path.unlink()


if __name__ == "__main__":
    main()
