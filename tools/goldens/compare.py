"""How far two runs of one row are apart, and what a golden file looks like.

Owns the hook names in order, the one error measure of this folder, the refusal, and the padding of ragged rows.
Knows nothing of how values are computed: see expected.py, lens.py and plain.py for that.
"""

import numpy as np

ATTENTION = ("hook_attn_scores", "hook_pattern")  # [B, H, P, P]; everything else is [B, P, ...]


class Refused(Exception):
    """Two computations that must agree do not: nothing is written."""


def hook_names(n_layer):
    """Every hook of the dictionary, in the order in which values appear."""
    norm = ("hook_scale", "hook_normalized", "hook_out")
    attn = ("q", "k", "v", "attn_scores", "pattern", "z", "result")
    names = ["hook_embed", "hook_pos_embed"]
    for i in range(n_layer):
        names += [f"blocks.{i}.{part}" for part in (
            "hook_resid_pre", *(f"ln1.{n}" for n in norm), *(f"attn.hook_{a}" for a in attn), "hook_attn_out",
            "hook_resid_mid", *(f"ln2.{n}" for n in norm), "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out",
            "hook_resid_post")]
    return names + [f"ln_final.{n}" for n in norm] + ["unembed.hook_out"]


def is_attention(name):
    return name.endswith(ATTENTION)


def worst_token_error(got, want, name):
    """max over tokens of ||got - want||_2 / ||want||_2, norms over all that the hook holds at that token.

    For the two [B, H, P, P] hooks a token is a query position and its vector the finite entries of its row in every
    head; the places of -inf must be the same in both. A token whose true vector is zero counts by ||got||_2.
    """
    if got.shape != want.shape:
        raise Refused(f"{name}: shape {got.shape}, expected {want.shape}")
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    if is_attention(name):
        got, want = np.moveaxis(got, 2, 1), np.moveaxis(want, 2, 1)
    if not np.array_equal(np.isneginf(got), np.isneginf(want)):
        return np.inf
    finite = ~np.isneginf(want)
    got, want = np.where(finite, got, 0.0), np.where(finite, want, 0.0)
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return np.inf
    tokens = want.shape[0] * want.shape[1]
    apart = np.linalg.norm((got - want).reshape(tokens, -1), axis=1)
    size = np.linalg.norm(want.reshape(tokens, -1), axis=1)
    return float((apart / np.where(size == 0, 1.0, size)).max())


def worst_hook(rows_got, rows_want):
    """{hook: worst error over the rows}; both arguments are lists with one {hook: array} a row."""
    if len(rows_got) != len(rows_want) or any(g.keys() != w.keys() for g, w in zip(rows_got, rows_want)):
        raise Refused("not the same rows and hooks on both sides")
    return {name: max(worst_token_error(g[name], w[name], name) for g, w in zip(rows_got, rows_want))
            for name in rows_want[0]}


def refuse_above(tolerance, errors, what):
    """Returns the worst (error, hook), or raises with the first hook, in order of computation, that is too far off."""
    for name, error in errors.items():
        if not error <= tolerance:
            over = sum(not e <= tolerance for e in errors.values())
            raise Refused(f"{what}: {name} is off by {error:.2e} (at most {tolerance:.0e}); so are {over - 1} others")
    return max((error, name) for name, error in errors.items())


def pad(rows, name):
    """One array [B, P, ...] (or [B, H, P, P]) from arrays with batch 1: padded on the right with zeros."""
    length = max(row[name].shape[-1 if is_attention(name) else 1] for row in rows)
    padded = []
    for row in rows:
        value = row[name]
        missing = [(0, 0)] * value.ndim
        for axis in ((2, 3) if is_attention(name) else (1,)):
            missing[axis] = (0, length - value.shape[axis])
        padded.append(np.pad(value, missing))
    return np.concatenate(padded)
