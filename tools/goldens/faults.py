"""Injects each likely mistake into the expected values and shows that both other sources detect it."""

import pathlib
import tempfile

import torch
from transformers.activations import ACT2FN

import compare
import lens
import plain
import expected
from checkpoints import SPECS, write


def other_gelu(model):
    """erf where tanh belongs, and tanh where erf belongs."""
    name = model.config.activation_function
    if "gelu" not in name:
        return False
    for block in model.transformer.h:
        block.mlp.act = ACT2FN["gelu_new" if name == "gelu" else "gelu"]


def tenth_of_epsilon(model):
    """1e-6 where 1e-5 belongs."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps /= 10


def mask_off_by_one(model):
    """Every token sees the next one."""
    def widen(module, args, kwargs):
        kwargs["attention_mask"] = kwargs["attention_mask"].triu(2)
        return args, kwargs
    for block in model.transformer.h:
        block.attn.register_forward_pre_hook(widen, with_kwargs=True)


def swapped_heads(model):
    """The values of the first two heads change places."""
    if model.config.n_head < 2:
        return False
    d, D = model.config.n_embd // model.config.n_head, model.config.n_embd
    order = torch.arange(3 * D)
    order[2 * D : 2 * D + 2 * d] = order[2 * D : 2 * D + 2 * d].roll(d)
    for block in model.transformer.h:
        conv = block.attn.c_attn
        conv.weight.data, conv.bias.data = conv.weight.data[:, order], conv.bias.data[order]


def key_and_query_swapped(model):
    """c_attn's columns taken as k|q|v."""
    D = model.config.n_embd
    order = torch.arange(3 * D)
    order[: 2 * D] = order[: 2 * D].roll(D)
    for block in model.transformer.h:
        conv = block.attn.c_attn
        conv.weight.data, conv.bias.data = conv.weight.data[:, order], conv.bias.data[order]


def head_taken_as_tied(model):
    """lm_head.weight ignored."""
    if torch.equal(model.lm_head.weight, model.transformer.wte.weight):
        return False
    model.lm_head.weight.data = model.transformer.wte.weight.data


def default_scale(model):
    """1/sqrt(head_dim), whatever the config says."""
    usual = (model.config.n_embd // model.config.n_head) ** -0.5
    if all(block.attn.scaling == usual for block in model.transformer.h):
        return False
    for block in model.transformer.h:
        block.attn.scaling = usual


FAULTS = (other_gelu, tenth_of_epsilon, mask_off_by_one, swapped_heads, key_and_query_swapped, head_taken_as_tied,
          default_scale)


def show(tolerance, f32_tolerance):
    """Prints, fault by fault and check by check, the first hook that is refused and the largest error of any hook."""
    missed = 0
    for spec in SPECS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            rows = write(spec, folder)
            bridge, larger = lens.bridge(folder)
            single = expected.load(folder, torch.float32)
            checks = {"TransformerLens": (tolerance, [lens.activations(bridge, larger, ids) for ids in rows]),
                      "plain numpy": (tolerance, [plain.activations(*plain.load(folder), ids) for ids in rows]),
                      "PyTorch in float32": (f32_tolerance, [expected.activations(single, ids) for ids in rows])}
            for fault in FAULTS:
                model = expected.load(folder, torch.float64)
                if fault(model) is False:
                    continue
                wrong = [expected.activations(model, ids) for ids in rows]
                for what, (limit, values) in checks.items():
                    errors = compare.worst_hook(values, wrong)
                    try:
                        compare.refuse_above(limit, errors, what)
                        missed += 1
                        print(f"{spec.name:17} {fault.__name__:22} NOT SEEN by {what}")
                    except compare.Refused as red:
                        print(f"{spec.name:17} {fault.__name__:22} {red}; worst {max(errors.values()):.1e}")
    raise SystemExit(f"{missed} not seen" if missed else 0)
