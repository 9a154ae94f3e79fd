"""The ten tasks of python_table.py with transformers and PyTorch's own hooks. Each gives what the others give. The unembedding is
left out where a task does not need it."""
import torch
from transformers import GPT2LMHeadModel

torch.set_grad_enabled(False)


def load(folder):
    return GPT2LMHeadModel.from_pretrained(folder / "gpt2-random", attn_implementation="eager").eval()


def last_layer(m, t):
    found = []
    hook = m.transformer.h[11].register_forward_hook(lambda module, given, out: found.append(out))
    m.transformer(torch.tensor([t.ids]))
    hook.remove()
    return found[0][0]


def all_streams(m, t):
    found = []
    hooks = [block.register_forward_hook(lambda module, given, out: found.append(out)) for block in m.transformer.h]
    m.transformer(torch.tensor([t.ids]))
    for hook in hooks:
        hook.remove()
    return found


def pattern(m, t):
    return m.transformer(torch.tensor([t.ids]), output_attentions=True).attentions[5][0]


def neurons_and_heads(m, t):
    found = {}
    keep = lambda name: lambda module, given: found.__setitem__(name, given[0])
    hooks = [m.get_submodule(name).register_forward_pre_hook(keep(name)) for name, _ in m.named_modules() if name.endswith("c_proj")]
    m.transformer(torch.tensor([t.ids]))
    for hook in hooks:
        hook.remove()
    return [found["transformer.h.11.mlp.c_proj"][0], found["transformer.h.11.attn.c_proj"][0].unflatten(-1, (12, 64))]


def many_texts(m, t):
    found = []
    longest = max(map(len, t.texts))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in t.texts])
    hook = m.transformer.h[11].register_forward_hook(lambda module, given, out: found.append(out))
    m.transformer(padded)
    hook.remove()
    return found[0][range(len(t.texts)), [len(ids) - 1 for ids in t.texts]]


def ablate_head(m, t):
    def zero(module, given):
        given[0][:, :, 3 * 64 : 4 * 64] = 0

    hook = m.transformer.h[5].attn.c_proj.register_forward_pre_hook(zero)
    logits = m(torch.tensor([t.ids])).logits
    hook.remove()
    return logits[0, -1]


def steer(m, t):
    vector = torch.from_numpy(t.vector)
    hook = m.transformer.h[5].register_forward_hook(lambda module, given, out: out + vector)
    logits = m(torch.tensor([t.ids])).logits
    hook.remove()
    return logits[0, -1]


def patching(m, t):
    clean, found = [], torch.zeros(12, len(t.ids))
    keep = lambda module, given: clean.append(given[0])
    hooks = [block.register_forward_pre_hook(keep) for block in m.transformer.h]
    m.transformer(torch.tensor([t.clean]))
    for hook in hooks:
        hook.remove()
    for layer, block in enumerate(m.transformer.h):
        for pos in range(len(t.ids)):

            def put(module, given):
                given[0][:, pos] = clean[layer][:, pos]

            hook = block.register_forward_pre_hook(put)
            logits = m(torch.tensor([t.ids])).logits[0, -1]
            hook.remove()
            found[layer, pos] = logits[t.answer] - logits[t.wrong]
    return found


def generate(m, t):
    steps = []
    hook = m.transformer.h[6].register_forward_hook(lambda module, given, out: steps.append(out[0]))
    m.generate(torch.tensor([t.ids]), max_new_tokens=t.new, do_sample=False, eos_token_id=None, pad_token_id=0)
    hook.remove()
    return torch.cat(steps)


def lens(m, t):
    states = m(torch.tensor([t.ids]), output_hidden_states=True).hidden_states
    # The last one is after ln_f already.
    logits = [m.lm_head(m.transformer.ln_f(x)) for x in states[:-1]] + [m.lm_head(states[-1])]
    return torch.stack([x[0].softmax(-1).max(-1).values for x in logits])
