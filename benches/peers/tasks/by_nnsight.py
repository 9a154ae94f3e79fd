"""The ten tasks of python_table.py with nnsight. Each gives what the others give. A run is stopped where a task needs no more of it."""
import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoTokenizer, GPT2LMHeadModel

torch.set_grad_enabled(False)


def load(folder):
    hf = GPT2LMHeadModel.from_pretrained(folder / "gpt2-random", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return TransformersModel(hf, task="text-generation", tokenizer=tokenizer)


def last_layer(m, t):
    with m.trace(torch.tensor([t.ids])) as tracer:
        stream = m.transformer.h[11].output.save()
        tracer.stop()
    return stream[0]


def all_streams(m, t):
    with m.trace(torch.tensor([t.ids])) as tracer:
        streams = [block.output for block in m.transformer.h].save()
        tracer.stop()
    return streams


def pattern(m, t):
    with m.trace(torch.tensor([t.ids])) as tracer:
        weights = m.transformer.h[5].attn.output[1].save()
        tracer.stop()
    return weights[0]


def neurons_and_heads(m, t):
    with m.trace(torch.tensor([t.ids])) as tracer:
        heads, neurons = list().save(), list().save()
        for block in m.transformer.h:
            heads.append(block.attn.c_proj.input)
            neurons.append(block.mlp.c_proj.input)
        tracer.stop()
    return [neurons[11][0], heads[11][0].unflatten(-1, (12, 64))]


def many_texts(m, t):
    longest = max(map(len, t.texts))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in t.texts])
    with m.trace(padded) as tracer:
        stream = m.transformer.h[11].output.save()
        tracer.stop()
    return stream[range(len(t.texts)), [len(ids) - 1 for ids in t.texts]]


def ablate_head(m, t):
    with m.trace(torch.tensor([t.ids])):
        m.transformer.h[5].attn.c_proj.input[:, :, 3 * 64 : 4 * 64] = 0
        logits = m.lm_head.output.save()
    return logits[0, -1]


def steer(m, t):
    vector = torch.from_numpy(t.vector)
    with m.trace(torch.tensor([t.ids])):
        m.transformer.h[5].output[:] += vector
        logits = m.lm_head.output.save()
    return logits[0, -1]


def patching(m, t):
    corrupt, found = torch.tensor([t.ids]), torch.zeros(12, len(t.ids))
    with m.trace(torch.tensor([t.clean])):
        clean = [block.input for block in m.transformer.h].save()
    for layer in range(12):
        for pos in range(len(t.ids)):
            with m.trace(corrupt):
                m.transformer.h[layer].input[:, pos] = clean[layer][:, pos]
                logits = m.lm_head.output[0, -1].save()
            found[layer, pos] = logits[t.answer] - logits[t.wrong]
    return found


def generate(m, t):
    with m.generate(torch.tensor([t.ids]), max_new_tokens=t.new, do_sample=False, eos_token_id=None) as tracer:
        steps = list().save()
        for step in tracer.iter[: t.new]:
            steps.append(m.transformer.h[6].output)
    return torch.cat([step[0] for step in steps])


def lens(m, t):
    with m.trace(torch.tensor([t.ids])):
        first = m.transformer.h[0].input
        streams = [first, *(block.output for block in m.transformer.h)].save()
    return torch.stack([m.lm_head(m.transformer.ln_f(x))[0].softmax(-1).max(-1).values for x in streams])
