"""Runs that begin with embeddings or a residual stream, and runs that end early."""

import numpy as np
import pytest

import actscope

TEXTS = ["The cat sat on the mat.", "A dog"]


def test_a_run_from_a_stream_gives_what_the_whole_run_gives(model: actscope.Model) -> None:
    whole = model.run(TEXTS, "logits")["logits"]
    for layer in (0, 2, -1):
        stream = model.run(TEXTS, ("resid_pre", layer))["resid_pre", layer]
        part = model.run(TEXTS, "logits", start_layer=layer, stream=stream)
        np.testing.assert_array_equal(part["logits"], whole)
    # Without texts each row is a whole text.
    alone = model.run(start_layer=1, stream=model.run(TEXTS[1], "resid_pre.1")["resid_pre.1"])
    assert alone.tokens is None and alone.input_ids is None and alone.attention_mask.all()
    assert "resid_pre.1" in alone and "resid_pre.0" not in alone and "hook_embed" not in alone
    n = len(model.encode(TEXTS[1])[0])
    np.testing.assert_allclose(alone["logits"][0], whole[1, :n], rtol=1e-4, atol=1e-4)


def test_a_run_from_embeddings_gives_what_the_whole_run_gives(model: actscope.Model) -> None:
    embeds = model.run(TEXTS, "hook_embed")["hook_embed"]
    whole = model.run(TEXTS, "logits")["logits"]
    np.testing.assert_array_equal(model.run(TEXTS, "logits", embeds=embeds)["logits"], whole)
    np.testing.assert_array_equal(model.run("A dog", "logits", embeds=model.weights["embed.W_E"][model.encode("A dog")[0]])["logits"], model.run("A dog", "logits")["logits"])


def test_many_texts_are_cut_into_groups_with_their_streams(model: actscope.Model) -> None:
    # More tokens than one group of a run has.
    rng = np.random.default_rng(0)
    n = model.config["n_positions"]
    ids = rng.integers(0, model.config["vocab_size"], (9 * 1024 // n + 3, n)).tolist()
    stream = model.run(ids, "resid_pre.3")["resid_pre.3"]
    want = model.run(ids, "ln_f", pos=-1)["ln_f"]
    np.testing.assert_array_equal(model.run(ids, "ln_f", pos=-1, start_layer=3, stream=stream)["ln_f"], want)


def test_nothing_after_stop_layer_is_recorded(model: actscope.Model) -> None:
    cache = model.run(TEXTS, stop_layer=2)
    assert "resid_post.1" in cache and "resid_pre.2" not in cache and "logits" not in cache
    last = model.run(TEXTS, "*resid_post", stop_layer=-1)
    assert list(last) == [f"blocks.{i}.hook_resid_post" for i in range(model.n_layer - 1)]
    assert "ln_final.hook_out" not in model.run(TEXTS, stop_layer=model.n_layer)


def test_what_does_not_fit_is_refused(model: actscope.Model) -> None:
    width = model.config["n_embd"]
    with pytest.raises(actscope.Error, match="belong together"):
        model.run(TEXTS, start_layer=1)
    with pytest.raises(actscope.Error, match="not with both"):
        model.run(TEXTS, start_layer=1, stream=np.zeros((2, 3, width)), embeds=np.zeros((2, 3, width)))
    with pytest.raises(actscope.Error, match=rf"the texts need \[2, 7, {width}\]"):
        model.run(TEXTS, start_layer=1, stream=np.zeros((2, 3, width)))
    with pytest.raises(actscope.Error, match=rf"\[batch, pos, {width}\] is needed"):
        model.run(TEXTS, embeds=np.zeros((2, 7, 3)))
    with pytest.raises(actscope.Error, match="layer 99 does not exist"):
        model.run(start_layer=99, stream=np.zeros((1, 3, width)))
    with pytest.raises(actscope.Error, match="before the block where it begins"):
        model.run("A dog", "resid_pre.0", start_layer=1, stream=np.zeros((1, 2, width)))
    with pytest.raises(actscope.Error, match="after the last block that is run"):
        model.run("A dog", "logits", stop_layer=1)
    with pytest.raises(actscope.Error, match="comes before the place where this run starts"):
        model.run("A dog", "logits", start_layer=1, stream=np.zeros((1, 2, width)), edits={"resid_pre.0": "zero"})
    with pytest.raises(TypeError, match="texts or token ids are needed"):
        model.run()
