"""What type checkers must accept and infer: mypy reads this file, nothing runs it."""

import numpy as np
from numpy.typing import NDArray

import actscope


def contract() -> None:
    extractor = actscope.ActivationExtractor("demo", device="cpu")
    got = extractor.get_activations("text", layer_idx=-1)
    activations: NDArray[np.float32] = got["activations"]
    tokens: list[str] = got["tokens"]
    actscope.plot_activation_heatmap(activations, tokens, "title")
    model: actscope.Model = actscope.load("demo", device="cpu", weights=None, process="tl")
    cache: actscope.Cache = model.run(["a", "b"], hooks=["resid_post.*", ("pattern", 3)], edits={"resid_pre.0": lambda x: x})
    for name, array in cache.items():
        in_order: str = name
        values: NDArray[np.float32] = array
        print(in_order, values)
    stack: NDArray[np.float32] = cache.decompose_resid()
    labelled: tuple[NDArray[np.float32], list[str]] = cache.decompose_resid(return_labels=True)
    heads: tuple[NDArray[np.float32], list[str]] = cache.stack_head_results(3, apply_ln=True, pos_slice=-1, return_labels=True)
    without: NDArray[np.float32] = cache.accumulated_resid(incl_mid=True, return_labels=False)
    # What no method has is refused, as a plain signature refuses it.
    cache.decompose_resid(incl_mid=True)  # type: ignore[call-overload]
    kinds: NDArray[np.float64] = model.heads("text").induction
    score: float = model.circuit(0, 1).score
    print(heads, without, kinds, score)
    weight: NDArray[np.float32] = model.weights["blocks.0.attn.W_O"]
    heatmap: actscope.Heatmap = model.heatmap("text")
    ok: bool = model.verify().ok
    print(stack, labelled, weight, heatmap, ok)
    try:
        model.run("text", hooks="nonsense")
    except actscope.Error as e:
        kind: str = e.kind
        print(kind)


def writes(model: actscope.Model) -> None:
    written: actscope.Generation = model.generate("text", 5, temperature=0.7, on_token=lambda token: token.piece != "\n")
    text: str | None = written[0].text
    first: list[actscope.Generated] = written[:1]
    print(first[0].stop)
    logprobs: NDArray[np.float64] = written[0].logprobs
    cache: actscope.Cache | None = written.cache
    for token in model.stream("text", 5, hooks="resid_post.3"):
        piece: str = token.piece
        print(piece, token.stop)
    score: actscope.Score = model.score("text")[0]
    perplexity: float | None = score.perplexity
    print(text, logprobs, cache, perplexity)
