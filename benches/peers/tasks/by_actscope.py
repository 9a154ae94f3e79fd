"""The ten tasks of python_table.py with actscope. Each gives what the others give."""
import numpy as np

import actscope


def load(folder):
    return actscope.load(str(folder / "gpt2-random"), device="cpu")


def last_layer(m, t):
    return m.run([t.ids], "resid_post.11")["resid_post.11"][0]


def all_streams(m, t):
    return list(m.run([t.ids], "resid_post.*").values())


def pattern(m, t):
    return m.run([t.ids], "pattern.5")["pattern.5"][0]


def neurons_and_heads(m, t):
    cache = m.run([t.ids], ["mlp_post.*", "z.*"])
    return [cache["mlp_post", 11][0], cache["z", 11][0]]


def many_texts(m, t):
    return m.run(t.texts, "resid_post.11", pos=-1)["resid_post.11"][:, 0]


def ablate_head(m, t):
    return m.run([t.ids], "logits", pos=-1, edits="z.5@head=3:zero")["logits"][0, 0]


def steer(m, t):
    edit = actscope.Edit("resid_pre.6", "add", t.vector)
    return m.run([t.ids], "logits", pos=-1, edits=[edit])["logits"][0, 0]


def patching(m, t):
    return m.patch([t.clean], [t.ids], t.answer, t.wrong).values


def generate(m, t):
    written = m.generate([t.ids], t.new, hooks="resid_post.6")
    return written.cache["resid_post.6"][0, :-1]


def lens(m, t):
    return np.array([[reading.top[0][1] for reading in row[0]] for row in m.lens([t.ids], top=1)])
