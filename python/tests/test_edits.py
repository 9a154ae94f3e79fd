"""Edits: objects and Python functions, their values, their selections, and what is refused."""

from typing import Any

import numpy as np
import pytest
from conftest import TEXT

import actscope
from actscope import Edit

TEXTS = ["The cat sat on the mat.", "A dog"]


def test_a_function_is_given_each_text_and_its_result_is_put_in_place(model: actscope.Model) -> None:
    plain = model.run(TEXTS, "resid_pre.1")["resid_pre.1"]
    given: list[np.ndarray] = []

    def double(x: np.ndarray) -> np.ndarray:
        given.append(x.copy())
        return x * 2

    cache = model.run(TEXTS, ["resid_pre.1", "logits"], edits={"blocks.1.hook_resid_pre": double})
    lengths = [len(tokens) for tokens in cache.tokens]
    assert [x.shape for x in given] == [(1, n, model.config["n_embd"]) for n in lengths]
    assert all(x.dtype == np.float32 for x in given)
    for i, n in enumerate(lengths):
        np.testing.assert_array_equal(given[i][0], plain[i, :n])
    np.testing.assert_array_equal(cache["resid_pre.1"], plain * 2)
    assert not np.allclose(cache["logits"], model.run(TEXTS, "logits")["logits"])
    assert len(cache.edits) == 1 and "double" in cache.edits[0]["edit"] and cache.edits[0]["sha256"]


def test_a_function_may_change_its_array_in_place(model: actscope.Model) -> None:
    def zero_first(x: np.ndarray) -> None:
        x[:, 0] = 0.0

    got = model.run(TEXT, "resid_mid.0", edits={"resid_mid.0": zero_first})["resid_mid.0"]
    want = model.run(TEXT, "resid_mid.0", edits=[Edit("resid_mid.0", "zero", pos=0)])["resid_mid.0"]
    np.testing.assert_array_equal(got, want)
    assert not got[0, 0].any() and got[0, 1].any()


def test_operations_and_selections(model: actscope.Model) -> None:
    plain = model.run(TEXTS, "z.2")["z.2"]
    n = [len(model.encode(text)[0]) for text in TEXTS]
    vector = np.arange(plain.shape[-1], dtype=np.float32)
    cases: list[tuple[Edit, Any]] = [
        (Edit("z.2", "zero", head=1), lambda w: w[:, :, 1].fill(0)),
        (Edit("z.2", "scale", 3.0, pos=-1), lambda w: [np.multiply(w[i, m - 1], 3, out=w[i, m - 1]) for i, m in enumerate(n)]),
        (Edit("z.2", "set", 1.5, dim=[0, -1]), lambda w: [w[i, :m].__setitem__((..., [0, -1]), 1.5) for i, m in enumerate(n)]),
        (Edit("z.2", "add", vector, head=0, text=1), lambda w: w[1, : n[1], 0].__iadd__(vector)),
        (Edit("z.2", lambda x: x + 1, head=slice(2, 4), pos=[0, 1]), lambda w: w[:, :2, 2:4].__iadd__(1)),
    ]
    for edit, apply in cases:
        want = plain.copy()
        apply(want)
        got = model.run(TEXTS, "z.2", edits=[edit])["z.2"]
        np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=repr(edit))
        assert not np.array_equal(want, plain)


def test_a_pattern_is_edited_where_a_query_sees_the_key(model: actscope.Model) -> None:
    got = model.run(TEXT, "pattern.0", edits=[Edit("pattern.0", "zero", head=2, key=0)])["pattern.0"]
    assert not got[0, 2, :, 0].any() and got[0, 1, :, 0].all()


def test_edits_apply_in_order_and_a_glob_edits_all(model: actscope.Model) -> None:
    edits = [Edit("resid_post.0", "set", 1.0), Edit("resid_post.0", "scale", 5.0)]
    assert (model.run(TEXT, "resid_post.0", edits=edits)["resid_post.0"] == 5.0).all()
    got = model.run(TEXT, "attn_out.*", edits={"blocks.*.hook_attn_out": "zero"})
    assert len(got) == model.n_layer and not any(values.any() for values in got.values())
    same = model.run(TEXT, "attn_out.*", edits={"blocks.*.hook_attn_out": 0.0})
    assert all(np.array_equal(same[hook], got[hook]) for hook in got)


def test_what_a_function_raises_comes_out(model: actscope.Model) -> None:
    class Mine(Exception):
        pass

    def fail(x: np.ndarray) -> None:
        raise Mine("here")

    with pytest.raises(Mine, match="here"):
        model.run(TEXT, "ln_f", edits={"resid_pre.0": fail})
    with pytest.raises(actscope.Error, match=r"was given \[1, 7, 160\] and returned \[3\]") as e:
        model.run(TEXT, "ln_f", edits={"resid_pre.0": lambda x: np.zeros(3)})
    assert e.value.kind == "hook"
    with pytest.raises(actscope.Error, match="cannot run the same model"):
        model.run(TEXT, "ln_f", edits={"resid_pre.0": lambda x: model.run(TEXT, "resid_pre.0")["resid_pre.0"]})
    # And the next run is as if nothing had been.
    assert np.isfinite(model.run(TEXT, "ln_f")["ln_f"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edit("z.0", "zap"), "there is no edit 'zap'"),
        (lambda: Edit("z.0", "zero", 1.0), "takes no value"),
        (lambda: Edit("z.0", "scale"), "needs a value"),
        (lambda: Edit("z.0", "zero", head=99), "head 99 does not exist"),
        (lambda: Edit("z.0", "zero", pos=99), "position 99 does not exist"),
        (lambda: Edit("z.0", "zero", key=0), "no key axis"),
        (lambda: Edit("pattern.0", "zero", dim=0), "no dimensions"),
        (lambda: Edit("resid_pre.0", "zero", head=0), "no head axis"),
        (lambda: Edit("z.0", "zero", text=7), "text 7 does not exist"),
        (lambda: Edit("nonsense", "zero"), "nearest"),
        (lambda: Edit("z.0", "set", [1.0, 2.0, 3.0]), "gives 3 values"),
        (lambda: "z.0", "has no `:OP`"),
        (lambda: "z.0@head=99:zero", "head 99 of 5 heads"),
        (lambda: "z.0:patch", "source"),
    ],
)
def test_edits_that_do_not_fit_are_refused(model: actscope.Model, make: Any, message: str) -> None:
    with pytest.raises(actscope.Error, match=message) as e:
        model.run(TEXTS, "ln_f", edits=[make()])
    assert e.value.kind == "hook"


def test_pictures_take_edits(model: actscope.Model) -> None:
    plain = model.attention(TEXT, 2).values
    edited = model.attention(TEXT, 2, edits={"resid_pre.2": "zero"}).values
    assert not np.allclose(plain, edited)
    assert model.lens(TEXT)[-1][0][0] != model.lens(TEXT, edits={"resid_post.1": "zero"})[-1][0][0]


def test_edits_as_the_command_line_writes_them(model: actscope.Model) -> None:
    def logits(**options: Any) -> np.ndarray:
        return model.run(TEXTS, "logits", **options)["logits"]

    np.testing.assert_array_equal(logits(edits="z.2@head=1,pos=-1:zero"), logits(edits=[Edit("z.2", "zero", head=1, pos=-1)]))
    np.testing.assert_array_equal(logits(edits={"z.2@head=1": "scale=2"}), logits(edits=[Edit("z.2", "scale", 2.0, head=1)]))
    mixed = [Edit("resid_pre.1", "set", 1.0), "resid_pre.1:scale=5", Edit("resid_pre.1", lambda x: x + 1)]
    cache = model.run(TEXTS, "resid_pre.1", edits=mixed)
    assert (cache["resid_pre.1"][cache.attention_mask.astype(bool)] == 6.0).all()
    assert [one["edit"].split(":")[1].split("=")[0] for one in cache.edits] == ["set", "scale", "with"]


def test_edits_that_take_values_from_other_runs(model: actscope.Model) -> None:
    other = "The dog sat on the mat."
    assert len(model.encode(other)[0]) == len(model.encode(TEXT)[0])
    got = model.run(TEXT, "logits", edits="resid_pre.2:patch", source=other)["logits"]
    np.testing.assert_allclose(got, model.run(other, "logits")["logits"], rtol=1e-4, atol=1e-4)
    mean = model.run(TEXT, "z.1", edits="z.1:mean")["z.1"][0]
    np.testing.assert_allclose(mean, np.broadcast_to(model.run(TEXT, "z.1")["z.1"][0].mean(0), mean.shape), rtol=1e-4, atol=1e-6)
    elsewhere = model.run(TEXT, "z.1", edits="z.1:mean", mean_from=TEXTS[1])["z.1"][0, 0]
    np.testing.assert_allclose(elsewhere, model.run(TEXTS[1], "z.1")["z.1"][0].mean(0), rtol=1e-4, atol=1e-6)
    frozen = model.run(TEXT, "attn_out.3", edits=["resid_pre.1:zero", "attn_out.3:freeze"])["attn_out.3"]
    np.testing.assert_array_equal(frozen, model.run(TEXT, "attn_out.3")["attn_out.3"])
    stream = model.run(TEXT, "resid_pre.1")["resid_pre.1"]
    with pytest.raises(actscope.Error, match="begins with token ids"):
        model.run(TEXT, "ln_f", start_layer=1, stream=stream, edits="z.2:mean")
