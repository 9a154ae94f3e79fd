"""A model on a device. Owns `load`, `devices` and `Model`."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actscope import _edits, _native, _texts
from actscope._attribute import Attribution, Edges, Gradients
from actscope._cache import Cache
from actscope._edits import Edits
from actscope._errors import error
from actscope._generate import Generated, Generation, NewToken, OnToken, Score, Scores, Stream, named, prediction
from actscope._heads import Circuit, Heads
from actscope._progress import Progress
from actscope._show import Attention, Heatmap, Lens, Panel, Report, Tokens, Verification
from actscope._sweep import Sweep
from actscope._texts import Texts
from actscope._weights import Weights


_Changed = tuple[Edits, Texts, Texts, bool]
"""`edits`, `source`, `mean_from` and `prepend_bos` as they were given."""
_Question = tuple[Any, Any, int]
"""`answer`, `wrong` and `metric_pos` as they were given."""


def load(
    model: str = "gpt2", device: object = "auto", weights: str | None = None, process: str | None = None
) -> Model:
    """Opens a model and brings it to a device. What the Hugging Face cache lacks is downloaded.

    Args:
        model: A name on the Hugging Face hub (`gpt2`, `owner/name`, `owner/name@revision`), a checkpoint's folder, or `demo`, a
            small trained model that is inside this package.
        device: `auto` (the GPU where there is one, else the CPU), `gpu` (`cuda` and `mps` mean the same), `cpu`, or `reference`
            (plain loops in f64). A torch.device works too.
        weights: `f32`, `f16` or `bf16` converts matrices; None leaves them as they are stored.
        process: Steps that change the weights as TransformerLens does before it runs a model, in f64, with commas between them: of
            `fold-ln,center-writing,center-unembed,fold-value`, or `tl` for all four. The weights become f32. None leaves them raw.

    Raises:
        Error: of kind `hub`, `weights` or `device`.
    """
    return Model(model, device=str(device), weights=weights, process=process)


def devices() -> list[str]:
    """The devices of this machine in words, those that `auto` would take first."""
    _calm_mesa()
    cpu = f"cpu: {os.cpu_count() or 1} threads"
    gpus = [(f"gpu: {name} ({detail}, {kind})", software) for name, detail, kind, software in _native.adapters()]
    hardware = [name for name, software in gpus if not software]
    return [*hardware, cpu, *(name for name, software in gpus if software), "reference: one thread, f64"]


def _calm_mesa() -> None:
    # Without a session directory Mesa's device-selection layer writes an error about Wayland to stderr whenever adapters are listed.
    if sys.platform == "linux" and "XDG_RUNTIME_DIR" not in os.environ:
        os.environ.setdefault("NODEVICE_SELECT", "1")


class Model:
    """A model on a device: see `load`. Threads may share one, their runs take turns; pickling keeps name and options.

    Wherever a text is taken, token ids are too: a list, a list of lists, an array, or what a Hugging Face tokenizer gives.

    Attributes:
        name: As asked for.
        device: The device in words.
        config: Sizes and switches, under config.json's names.
        weights: Weights by name, raw or as `process` made them.
        process: The steps that the weights went through, with commas between them; None for raw ones.
        notes: What there is to know of how the files were read.
    """

    def __init__(
        self, name: str, *, device: str = "auto", weights: str | None = None, process: str | None = None
    ) -> None:
        self._options = (name, device, weights, process)
        if device not in ("cpu", "reference"):
            _calm_mesa()
        autotune = os.environ.get("ACTSCOPE_TUNING") != "off"
        with Progress(name) as progress:
            self._session = _native.Session(str(name), device, weights, process, autotune, progress.download)
        self.name = name
        self.device = self._session.device
        self.config = self._session.config
        self.process = self._session.process or None
        self.notes = self._session.notes
        self.n_layer: int = self.config["n_layer"]
        self.n_head: int = self.config["n_head"]
        self.weights = Weights(self._session)
        # Each hook's place in the order of a run.
        self._order = {name: i for i, name in enumerate(self._session.resolve("*"))}

    def __reduce__(self) -> tuple[Any, ...]:
        return load, self._options

    def __repr__(self) -> str:
        c = self.config
        sizes = f"{c['n_layer']} blocks, {c['n_head']} heads, n_embd {c['n_embd']}, vocabulary {c['vocab_size']}"
        processed = f", weights processed ({self.process})" if self.process else ""
        return f"Model({self.name!r}, {self.device}, {sizes}{processed})"

    @property
    def hooks(self) -> list[str]:
        """All hooks in the order of a run, under TransformerLens's names."""
        return list(self._order)

    # Texts and tokens

    def encode(self, texts: Texts, *, prepend_bos: bool = False, special: bool = True) -> list[list[int]]:
        """Token ids, one list a text. `prepend_bos` puts the id that begins texts in front, unless the tokenizer does. Without
        `special` the names of special tokens in a text, such as `<|endoftext|>`, are read as plain characters."""
        return self._read(texts, prepend_bos, special)[0]

    def _read(self, texts: Texts, prepend_bos: bool, special: bool = True) -> tuple[list[list[int]], list[str]]:
        ids, given = _texts.read(texts, lambda texts: self._session.encode(texts, special))
        if prepend_bos and not (given and self._session.adds_bos):
            bos = self.config["bos_token_id"]
            if bos is None:
                raise error("tokenizer", f"{self.name} names no token that begins texts, so there is none to prepend")
            ids = [[bos, *row] for row in ids]
        return ids, given

    def _one(self, text: Texts, prepend_bos: bool, what: str) -> tuple[list[int], list[str]]:
        ids, given = self._read(text, prepend_bos)
        if len(ids) != 1:
            raise error("batch", f"{what} shows one text, and {len(ids)} were given")
        return ids[0], given

    def tokens(self, text: Texts, *, prepend_bos: bool = False) -> Tokens:
        """How a text is cut."""
        ids, _ = self._one(text, prepend_bos, "tokens")
        return Tokens(ids, self._session.written(ids), self._session.token_labels(ids))

    def token_id(self, token: str) -> int:
        """The id of a text that is one token, its leading space included: `" Paris"`. Tokens that the tokenizer itself puts around
        every text are not counted."""
        ids = self._session.encode_bare(token)
        if len(ids) != 1:
            spaced = f" {token}"
            step = "give one token, with a space in front where the text has one"
            if len(self._session.encode_bare(spaced)) == 1:
                step = f"{spaced!r}, with a space in front, is one"
            raise error("tokenizer", f"{token!r} is {len(ids)} tokens: {self._session.written(ids)}; {step}")
        return ids[0]

    # Runs

    def run(
        self,
        texts: Texts = None,
        hooks: Any = None,
        *,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        pos: Any = None,
        prepend_bos: bool = False,
        start_layer: int | None = None,
        stream: Any = None,
        stop_layer: int | None = None,
        embeds: Any = None,
    ) -> Cache:
        """Runs texts and records what `hooks` name.

        Args:
            texts: One text or several, or token ids.
            hooks: A hook or a list of them: names (TransformerLens's, Hugging Face's module paths, nnsight's), tuples such as
                `("pattern", 3)`, globs. None: every hook but `hook_result`, which `Cache.stack_head_results` makes.
            edits: A list of `Edit`s and of edits as the command line has them (`"z.2@head=4:mean"`), in order; or a mapping from hooks
                to functions, values or operations. A function is called once for each text with a float32 array [1, ...]; what
                it returns is put in place, and None stands for the array, which it may change.
            source: What `patch` takes values from: one text for all, or one for each.
            mean_from: What `mean` is taken over, where it is not the texts themselves.
            pos: Positions to record of each text: an index, a slice or a list; negative ones count from the end.
            start_layer, stream: Begin at this block, with [batch, pos, n_embd] as what enters it. Texts then only say how long
                each is; without them every text has all positions.
            stop_layer: Nothing of this block and after it is computed; counted as `hooks` are: -1 is the last block.
            embeds: [batch, pos, n_embd] in place of the token embeddings; position embeddings are added. Texts as with `stream`.

        Returns:
            A `Cache`: float32 arrays [batch, ...].

        Raises:
            Error: of kind `hook` for a request that does not fit, `batch` for texts that cannot be run, `device` or `run`.
            KeyboardInterrupt: on Ctrl-C, soon.
        """
        if stream is not None and embeds is not None:
            raise error("hook", "a run begins with a stream or with embeds, not with both")
        if (start_layer is None) != (stream is None):
            raise error("hook", "start_layer and stream belong together: the stream is what enters that block")
        given: list[str] = []
        ids: list[list[int]] | None = None
        if texts is not None:
            ids, given = self._read(texts, prepend_bos)
        start = None
        if stream is not None or embeds is not None:
            kind, layer = ("embeds", 0) if stream is None else ("stream", self._layer(start_layer))
            values, lengths = self._rows(embeds if stream is None else stream, ids)
            start = (kind, layer, values)
        elif ids is None:
            raise TypeError("texts or token ids are needed")
        else:
            lengths = [len(row) for row in ids]
        names = self._tapped(hooks, start, stop_layer)
        positions = _texts.positions(pos, lengths)
        select = (positions, None, None, None)
        edited, sources = self._changes(edits, source, mean_from, prepend_bos, lengths)
        batch = ids if ids is not None else [[0] * n for n in lengths]
        with Progress("actscope", "block") as progress:
            arrays, addresses, records = self._session.run(
                batch, [(name, select) for name in names], edited, sources, start, progress
            )
        return Cache(
            self,
            arrays,
            addresses,
            ids=ids,
            lengths=lengths,
            texts=given,
            positions=positions,
            edits=records,
        )

    def _changes(
        self,
        edits: Edits,
        source: Texts,
        mean_from: Texts,
        prepend_bos: bool,
        lengths: list[int],
        prompts: list[int] | None = None,
    ) -> tuple[list[Any], tuple[list[list[int]] | None, list[list[int]] | None]]:
        """Edits as the native side takes them, and the ids of the texts that `patch` and `mean` take values from."""

        def read(texts: Texts) -> list[list[int]] | None:
            return None if texts is None else self._read(texts, prepend_bos)[0]

        return _edits.native(_edits.read(edits), self._session, lengths, prompts), (read(source), read(mean_from))

    def _layer(self, layer: int | None) -> int:
        assert layer is not None
        if not -self.n_layer <= layer < self.n_layer:
            raise error("hook", f"layer {layer} does not exist: this model has {self.n_layer} blocks")
        return layer % self.n_layer

    def _rows(self, values: Any, ids: list[list[int]] | None) -> tuple[NDArray[np.float32], list[int]]:
        """The values of every token, text by text, without padding; and how long the texts are."""
        array = np.asarray(values, dtype=np.float32)
        if array.ndim == 2:
            array = array[np.newaxis]
        width = self.config["n_embd"]
        if array.ndim != 3 or array.shape[2] != width or array.shape[1] == 0:
            raise error("hook", f"[batch, pos, {width}] is needed, and {list(array.shape)} was given")
        lengths = [array.shape[1]] * len(array) if ids is None else [len(row) for row in ids]
        if len(lengths) != len(array) or max(lengths, default=0) != array.shape[1]:
            expected = [len(lengths), max(lengths, default=0), width]
            raise error("hook", f"the texts need {expected}, and {list(array.shape)} was given")
        rows = [array[i, :n].ravel() for i, n in enumerate(lengths)]
        return np.ascontiguousarray(np.concatenate(rows)), lengths

    def _tapped(self, hooks: Any, start: Any, stop_layer: int | None) -> list[str]:
        """The hooks to record, in the order of a run."""
        order = self._order
        first = order[f"blocks.{start[1]}.hook_resid_pre"] if start and start[0] == "stream" else 0
        last = len(order)
        if stop_layer is not None:
            if stop_layer == self.n_layer:
                last = order["ln_final.hook_scale"]
            else:
                last = order[f"blocks.{self._layer(stop_layer)}.hook_resid_pre"]
        wanted: list[Any]
        if hooks is None:
            wanted, dropped = ["*"], "attn.hook_result"
        else:
            wanted, dropped = [hooks] if isinstance(hooks, (str, tuple)) else list(hooks), "(none)"
        found: set[str] = set()
        for one in wanted:
            name = one if isinstance(one, str) else self._name_of(one)
            matched = self._session.resolve(name)
            within = [hook for hook in matched if first <= order[hook] < last]
            if not within:
                early = order[matched[-1]] < first
                where = "before the block where it begins" if early else "after the last block that is run"
                raise error("hook", f"{name} has no value in this run: it lies {where}")
            found.update(hook for hook in within if not hook.endswith(dropped))
        return sorted(found, key=order.__getitem__)

    def _name_of(self, hook: Any) -> str:
        """A hook as a name: a tuple such as `("pattern", 3)`, `("resid_post", -1)`, `("scale", 3, "ln1")`."""
        if not isinstance(hook, tuple) or not 1 <= len(hook) <= 3:
            raise TypeError(f"a hook's name or a tuple such as ('pattern', 3) is needed, and {hook!r} was given")
        name, layer, kind = (*hook, None, None)[:3]
        if layer is None:
            return str(name)
        layer = self._layer(layer)
        return f"blocks.{layer}.{kind}.hook_{name}" if kind else f"{name}.{layer}"

    # Text that it writes

    def generate(
        self,
        texts: Texts,
        new_tokens: int = 40,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        samples: int = 1,
        stop: str | list[str] | None = None,
        alternatives: int = 0,
        lens: int = 0,
        hooks: Any = None,
        pos: Any = None,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
        on_token: OnToken | None = None,
    ) -> Generation:
        """Goes on with texts, token by token, as one batch.

        Args:
            texts: Prompts, or token ids.
            new_tokens: Of each text at most; no text becomes longer than the model has positions.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            top_k, top_p, min_p: Draw from the k likeliest tokens; from the smallest set of likeliest ones whose probabilities reach p;
                from those at least p times as likely as the likeliest. In transformers' order and arithmetic; nothing is filtered
                by default.
            repetition_penalty: For tokens that the text already has, positive logits are divided by it and negative ones multiplied.
            seed: The same one gives the same text on the same device and version. None: one is made up; `Generation.seed` has it.
            samples: Texts for each prompt.
            stop: A text, or several, after which a text ends. It also ends after the model's end-of-text token.
            alternatives: How many of the likeliest tokens to give for each step.
            lens: How many of the likeliest tokens of each layer to give for each step: the logit lens.
            hooks, pos: What to record, as in `run`, of prompt and new tokens; nothing by default. `pos="new"` is every new
                token; negative positions count from the prompt's end.
            edits: As in `run`, applied at the positions that they name as these come; positions as in `pos`. A function is called for the
                prompt, and then for each new token; a cache lists it without a hash. `mean`, `patch` and `freeze` reach prompts only.
            source, mean_from: As in `run`.
            on_token: Hears every token as it comes: a `NewToken`. `False` ends the run.

        Returns:
            A `Generation`, a sequence of texts, with a `Cache` of what was recorded.

        Raises:
            Error: of kind `hook` for a setting or a request that does not fit, `batch` for prompts that cannot be run, `device` or
                `run`.
            KeyboardInterrupt: on Ctrl-C, soon.
        """
        ids, given = self._read(texts, prepend_bos)
        seed = secrets.randbits(63) if seed is None else seed
        if seed < 0 or seed >= 2**64:
            raise error("hook", f"the seed {seed} is none of: 0 to 2^64 - 1")
        counts = {"new_tokens": new_tokens, "samples": samples, "alternatives": alternatives, "lens": lens}
        for what, n in counts.items():
            if n < (what in ("new_tokens", "samples")):
                raise error("hook", f"{what} is {n}, and must be at least {int(what in ('new_tokens', 'samples'))}")
        if top_k is not None and top_k < 1:
            raise error("hook", f"top_k is {top_k}, and must be at least 1")
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        settings = (
            (new_tokens, samples, alternatives, lens),
            (float(temperature), top_k, top_p, min_p, float(repetition_penalty)),
            seed,
            stops,
        )
        longest = _native.longest(self._session, ids, settings)
        prompts = [len(ids[i // samples]) for i in range(len(longest))]
        names = [] if hooks is None else self._tapped(hooks, None, None)
        positions = _texts.positions(pos, longest, prompts)
        select = (positions, None, None, None)
        edited, sources = self._changes(edits, source, mean_from, prepend_bos, longest, prompts)
        written = self._session.written

        def tell(text: int, id: int, piece: str, logprob: float, likeliest: Any, stop: str | None) -> bool:
            assert on_token is not None
            token = NewToken(text, id, written([id])[0], piece, logprob, named(likeliest, written), stop)
            return on_token(token) is not False

        # Who hears tokens sees how far it is.
        with Progress("actscope", "token") as progress:
            found, arrays, addresses, run, records, made = _native.generate(
                self._session,
                ids,
                settings,
                [(name, select) for name in names],
                edited,
                sources,
                None if on_token is None else tell,
                progress if on_token is None else None,
            )
        generated = [Generated(one, written) for one in found]
        cache = None
        if names:
            reached = [one.ids[:n] for one, n in zip(generated, run, strict=True)]
            # The texts are those that were run: prompts with what was written.
            decoded = [self._session.decode(row) for row in reached] if given else []
            if positions is not None:
                positions = [[at for at in of if at < n] for of, n in zip(positions, run, strict=True)]
            cache = Cache(
                self,
                arrays,
                addresses,
                ids=reached,
                lengths=run,
                texts=decoded,
                positions=positions,
                edits=records,
                generation=made,
            )
        return Generation(generated, cache, seed, _native.lens_hooks(self._session) if lens else [])

    def stream(self, texts: Texts, new_tokens: int = 40, **options: Any) -> Stream:
        """`generate` as an iterator of `NewToken`s: takes the same options but `on_token`.

        Example:
            `for token in model.stream("The cat sat"): print(token.piece, end="")`
        """
        if "on_token" in options:
            raise TypeError("stream gives the tokens; on_token is generate's")
        return Stream(lambda hear: self.generate(texts, new_tokens, on_token=hear, **options))

    def score(
        self, texts: Texts, *, window: int | None = None, stride: int | None = None, prepend_bos: bool = False
    ) -> Scores:
        """How likely texts are: the log-probability of every token but the first, and perplexity.

        Args:
            texts: Of any length, or token ids.
            window, stride: A text that is longer than the context, or than `window`, is run in windows of as many tokens, each
                `stride` (half a window) after the one before; a token is scored in the window where it has most context.

        Raises:
            Error: of kind `batch` for texts that cannot be run, `run` for a text whose score is not a number.
        """
        ids, _ = self._read(texts, prepend_bos)
        if window is None and stride is not None:
            raise error("batch", "stride is how far apart windows are: give window too")
        windows = None
        if window is not None:
            windows = (window, -(-window // 2) if stride is None else stride)
            if min(windows) < 1:
                raise error("batch", f"a window of {window} tokens, each {windows[1]} after the one before, does not exist")
        with Progress("actscope", "block") as progress:
            scores = _native.score(self._session, ids, windows, progress)
        return Scores([Score(row, self._session.written(row), found) for row, found in zip(ids, scores, strict=True)])

    # Pictures

    def _tokens_of(self, ids: list[int]) -> list[tuple[int, bytes | None]]:
        return list(zip(ids, self._session.token_bytes(ids), strict=True))

    def heatmap(
        self,
        text: Texts,
        layer: int = -1,
        *,
        hooks: Any = None,
        dims: int | str = 100,
        scale: str = "linear",
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Heatmap:
        """Tokens by dimensions.

        Args:
            layer: A block's output; -1 is after the final LayerNorm.
            hooks: Hooks of [pos, n] instead, as `run` takes them; each is a panel.
            dims: So many evenly spaced; or `all`, a list such as `5,6,7`, `a..b`, or `top:N` for the strongest.
            scale: `linear` (clipped where a few values are far larger than the rest), `symlog`, or `per-layer`.
            edits, source, mean_from: As in `run`.
        """
        ids, _ = self._one(text, prepend_bos, "a heatmap")
        names = self._tapped([self._session.layer_hook(layer)] if hooks is None else hooks, None, None)
        panels = []
        for name in names:
            axes = self._session.axes(name)
            if len(axes) != 2:
                raise error("hook", f"{name} is [{', '.join(axes)}], and a heatmap shows hooks of [pos, n]")
            kinds = {"d_mlp": "neuron", "d_vocab": "token of the vocabulary"}
            panels.append((name, kinds.get(axes[1], "hidden dimension")))
        cache = self.run(text, names, edits=edits, source=source, mean_from=mean_from, prepend_bos=prepend_bos)
        tokens = self._tokens_of(ids)
        shown = names[0] if len(names) == 1 else f"{len(names)} hooks"
        picture, numbers = _native.heatmap(
            [(name, of, np.ascontiguousarray(cache[name][0])) for name, of in panels],
            list(enumerate(tokens)),
            tokens,
            f"{shown} of {self.name}{_mark(cache.edits)}",
            str(dims),
            scale,
        )
        drawn = [Panel(name, chosen, values) for name, (chosen, values, _) in zip(names, numbers, strict=True)]
        return Heatmap(picture, drawn, self._session.written(ids))

    def attention(
        self,
        text: Texts,
        layer: Any = None,
        head: Any = None,
        *,
        kind: str = "pattern",
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Attention:
        """Which token looks at which.

        Args:
            layer, head: An index, a slice or a list; None for all.
            kind: `pattern` (the softmax over keys) or `scores` (what goes into it).
            edits, source, mean_from: As in `run`.
        """
        if kind not in ("pattern", "scores"):
            raise error("hook", f"kind {kind!r} is none of: pattern, scores")
        ids, _ = self._one(text, prepend_bos, "attention")
        layers = _texts.indices(slice(None) if layer is None else layer, self.n_layer, "layer")
        heads = _texts.indices(slice(None) if head is None else head, self.n_head, "head")
        if not layers or not heads:
            raise error("hook", "there is no head to show: the slice of layers or heads is empty")
        names = [f"{kind}.{one}" for one in layers]
        cache = self.run(text, names, edits=edits, source=source, mean_from=mean_from, prepend_bos=prepend_bos)
        values = np.stack([cache[kind, one][0][heads] for one in layers])
        squares = [(l, h, values[i, j]) for i, l in enumerate(layers) for j, h in enumerate(heads)]
        noun = "attention pattern" if kind == "pattern" else "attention scores"
        which = f"layer {layers[0]}, head {heads[0]}" if len(squares) == 1 else f"{len(squares)} heads"
        what = f"{noun} of {which} of {self.name}{_mark(cache.edits)}"
        picture = _native.attention(squares, self._tokens_of(ids), what, kind == "scores")
        return Attention(picture, values, layers, heads, self._session.written(ids))

    def lens(
        self,
        texts: Texts,
        *,
        top: int = 5,
        of: str = "accumulated",
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Lens:
        """The logit lens: each residual stream through the final LayerNorm and the unembedding.

        Args:
            top: How many of the likeliest tokens are kept.
            of: `accumulated`, the stream after each block; or `component`, what the embeddings and each block's attention and MLP
                add to it, each by itself and without biases.
            edits, source, mean_from: As in `run`.
        """
        if top < 1:
            raise error("hook", "top must be at least 1")
        if of not in ("accumulated", "component"):
            raise error("hook", f"of {of!r} is none of: accumulated, component")
        ids, _ = self._read(texts, prepend_bos)
        edited, sources = self._changes(edits, source, mean_from, prepend_bos, [len(row) for row in ids])
        with Progress("actscope", "layer") as progress:
            rows, pictures = self._session.lens(ids, top, of == "component", edited, sources, progress)
        written = self._session.written
        read = [[[prediction(one, written) for one in text] for text in of_row] for _, of_row in rows]
        return Lens([hook for hook, _ in rows], read, pictures)

    def report(
        self,
        text: Texts,
        path: str | os.PathLike[str] | None = None,
        *,
        edits: Edits = None,
        source: Texts = None,
        prepend_bos: bool = False,
    ) -> Report:
        """One text's activations as a page to look around in: shown in a notebook, and written to `path` where one is given.

        Beside its numbers the page has the commands that print them. With an edit that is not a string it has none, since no command
        can make that edit.
        """
        ids, given = self._one(text, prepend_bos, "a report")
        words = ["--model", self.name]
        for option, value in (("--weights", self._options[2]), ("--process", self.process)):
            words += [] if value is None else [option, value]
        words += ["--ids", " ".join(map(str, ids))]
        listed = _edits.read(edits)
        edited, sources = self._changes(listed, source, None, prepend_bos, [len(ids)])
        written = [edit for edit in listed if isinstance(edit, str)]
        words += [word for edit in written for word in ("--edit", edit)]
        for of_patch in sources[0] or []:
            words += ["--source-ids", " ".join(map(str, of_patch))]
        # A command without one of the edits would print other numbers than the page.
        arguments = shlex.join(words) if len(written) == len(listed) else None
        with Progress("actscope") as progress:
            page, notes = self._session.report(ids, arguments, edited, sources, progress)
        report = Report(page, notes, given[0] if given else " ".join(self._session.written(ids)))
        if path is not None:
            report.save(path)
        return report

    # Sweeps

    def patch(
        self,
        clean: Texts,
        corrupt: Texts,
        answer: Any = None,
        wrong: Any = None,
        *,
        at: str | list[str] = "resid_pre",
        by: str | list[str] | None = None,
        metric: str | None = None,
        metric_pos: int = -1,
        noise: bool = False,
        path: str | None = None,
        frozen: bool = False,
        fast: bool = False,
        align: str = "start",
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Sweep:
        """Activation patching: values of the clean run put into the corrupt one, one place at a time. Which place brings the
        answer back?

        Args:
            clean, corrupt: Two texts of as many tokens, or two lists of as many texts.
            answer, wrong: Tokens, by text (with its leading space) or id: one for all pairs, or one for each.
            at: Sites without their layer: `resid_pre`, `z`, `pattern`, ...; `every` for resid_pre, attn_out and mlp_out, or z, q, k,
                v and pattern where heads are an axis.
            by: Axes of `layer`, `pos`, `head`, `dim`, `key`: one run for each combination. By default layer and head for sites
                with heads, layer and pos for the rest.
            metric: `logit-diff` (the default with `wrong`), `logit`, `logprob`, `prob`, `loss`, `kl`.
            metric_pos: The position whose logits are read; -1 is each text's last.
            noise: The other way round: values of the corrupt run put into the clean one.
            path: One path in place of `at`, `FROM...TO`, such as `head...q.3.4` or `mlp.0...logits`: what FROM writes is that of the
                clean run, and only what TO makes of it reaches the rest. Numbers that FROM leaves out are axes.
            frozen: Along the path every other head keeps the value that it had; MLPs follow.
            fast: Estimate every cell from one gradient, instead of running it (attribution patching).
            align: `start`, or `end`, which lines up texts of different length by their last tokens.
            edits, source, mean_from: As in `run`: applied in every run, the clean and the corrupt one too.

        Raises:
            Error: of kind `hook` for texts that do not line up, and for a request that does not fit.
        """
        if align not in ("start", "end"):
            raise error("hook", f"align {align!r} is none of: start, end")
        pairs = self._pairs(clean, corrupt, prepend_bos, align == "end")
        if fast and path is not None:
            raise error("hook", "a path is run, and not estimated: leave out fast or path")
        if frozen and path is None:
            raise error("hook", "frozen holds heads still along a path: give path")
        how = "patched, estimated" if fast else "patched"
        if path is not None:
            how = "sent along the path, heads frozen" if frozen else "sent along the path"
        metric = self._metric(metric, answer, wrong, loss=False)
        asked = self._patching(pairs, noise, (answer, wrong, metric_pos), (edits, source, mean_from, prepend_bos))
        sites, axes = self._places(at if path is None else path, by)
        of_path = None if path is None else (path, frozen)
        with Progress("actscope", "run") as progress:
            found = _native.sweep(
                self._session, asked, sites, axes, metric, "patch", not noise, of_path, fast, align == "end", progress
            )
        return self._swept(found, pairs, metric, noise, how)

    def patch_fast(
        self,
        clean: Texts,
        corrupt: Texts,
        answer: Any = None,
        wrong: Any = None,
        *,
        by: Mapping[str, str | list[str]],
        metric: str | None = None,
        metric_pos: int = -1,
        noise: bool = False,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> dict[str, Sweep]:
        """`patch(fast=True)` of several sites by axes of their own, all estimated from one gradient.

        Args:
            by: Axes by site, such as `{"z": "layer,pos,head", "mlp_out": "layer,pos"}`.

        The other arguments are those of `patch`. Gives a sweep for each site.

        Raises:
            Error: of kind `hook` for texts that do not line up, and for a request that does not fit.
        """
        pairs = self._pairs(clean, corrupt, prepend_bos)
        metric = self._metric(metric, answer, wrong, loss=False)
        asked = self._patching(pairs, noise, (answer, wrong, metric_pos), (edits, source, mean_from, prepend_bos))
        places = [(site, self._places(site, axes)[1]) for site, axes in by.items()]
        with Progress("actscope", "block") as progress:
            each = _native.sweep_fast(self._session, asked, places, metric, not noise, progress)
        found = zip(by, each, strict=True)
        return {site: self._swept(of, pairs, metric, noise, "patched, estimated") for site, of in found}

    def _pairs(
        self, clean: Texts, corrupt: Texts, prepend_bos: bool, of_any_length: bool = False
    ) -> list[list[list[int]]]:
        """Two lists of token ids that line up."""
        pairs = [self._read(texts, prepend_bos)[0] for texts in (clean, corrupt)]
        if len(pairs[0]) != len(pairs[1]):
            raise error("batch", f"there are {len(pairs[0])} clean texts and {len(pairs[1])} corrupt ones")
        for i, (one, other) in enumerate(zip(*pairs, strict=True)):
            if len(one) != len(other) and not of_any_length:
                written = " / ".join(" ".join(self._session.written(ids)) for ids in (one, other))
                raise error(
                    "hook",
                    f"pair {i}: the clean text has {len(one)} tokens and the corrupt one {len(other)}, so they do not line up: "
                    f"{written}",
                )
        return pairs

    def ablate(
        self,
        texts: Texts,
        *,
        to: str = "zero",
        at: str | list[str] = "resid_pre",
        by: str | list[str] | None = None,
        metric: str | None = None,
        metric_pos: int = -1,
        answer: Any = None,
        wrong: Any = None,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Sweep:
        """Ablation: one place at a time is changed to other values.

        Args:
            to: `zero`; `mean`, over all positions of all texts; or a file of values as an edit takes it, `[F*]FILE[#ARRAY]`.

        The metric is the loss by default (the mean over the text, in nats); the rest is as in `patch`.
        """
        ids, _ = self._read(texts, prepend_bos)
        metric = self._metric(metric, answer, wrong, loss=True)
        asked = self._asked(ids, None, (answer, wrong, metric_pos), (edits, source, mean_from, prepend_bos))
        sites, axes = self._places(at, by)
        with Progress("actscope", "run") as progress:
            found = _native.sweep(self._session, asked, sites, axes, metric, to, False, None, False, False, progress)
        return self._swept(found, [ids, ids], metric, False, f"ablated with {to}")

    def _places(self, at: str | list[str], by: str | list[str] | None) -> tuple[list[str], list[str]]:
        """Sites and axes."""
        axes = by.split(",") if isinstance(by, str) else list(by or [])
        every = ["z", "q", "k", "v", "pattern"] if "head" in axes else ["resid_pre", "attn_out", "mlp_out"]
        sites = [name for one in ([at] if isinstance(at, str) else at) for name in (every if one == "every" else [one])]
        return sites, axes

    def _patching(self, pairs: list[list[list[int]]], noise: bool, question: _Question, changed: _Changed) -> Any:
        """`_asked` of values of the clean texts in runs of the corrupt ones; with `noise` the other way round."""
        runs, sources = (pairs[0], pairs[1]) if noise else (pairs[1], pairs[0])
        return self._asked(runs, sources, question, changed)

    def _asked(
        self, runs: list[list[int]], sources: list[list[int]] | None, question: _Question, changed: _Changed
    ) -> Any:
        """Cases, and the edits of their runs and of their source runs."""
        edited, texts = self._changes(*changed, [len(ids) for ids in runs])
        of_sources = [] if sources is None else self._changes(*changed, [len(ids) for ids in sources])[0]
        return self._cases(runs, sources, question), edited, of_sources, texts

    def _swept(
        self, found: dict[str, Any], pairs: list[list[list[int]]], metric: str, noise: bool, how: str
    ) -> Sweep:
        """What a sweep found, with its title and labels."""
        text = pos_labels = None
        of = f", mean of {len(pairs[0])}"
        if len(pairs[0]) == 1:
            # Texts of different length line up by their last tokens.
            n = min(len(ids) for (ids,) in pairs)
            clean, corrupt = (ids[-n:] for (ids,) in pairs)
            text, of = (self._tokens_of(clean), self._tokens_of(corrupt)), ""
            pos_labels = self._session.written(clean)
        edits = _edits.recorded(found["edits"])
        title = f"{', '.join(found['sites'])} of {self.name} {how}, {metric}{of}{_mark(edits)}"
        return Sweep(found, edits, title=title, metric=metric, noise=noise, text=text, pos_labels=pos_labels)

    def _metric(self, metric: str | None, answer: Any, wrong: Any, *, loss: bool) -> str:
        """The metric, or what fits the tokens; `loss` where that is the default."""
        if metric is None:
            of_answer = "loss" if loss and answer is None else "logit"
            metric = of_answer if wrong is None else "logit-diff"
        if answer is None and metric not in ("loss", "kl"):
            raise error("hook", f"the metric {metric} is about a token: give answer")
        if wrong is None and metric == "logit-diff":
            raise error("hook", "the metric logit-diff needs a wrong token to compare with: give wrong")
        return metric

    def _cases(self, runs: list[list[int]], sources: list[list[int]] | None, question: _Question) -> list[Any]:
        answer, wrong, at = question
        answers, wrongs = (self._token_ids(one, len(runs)) for one in (answer, wrong))

        def read(i: int, ids: list[int]) -> tuple[list[int], int]:
            return ids, _texts.indices(at, len(ids), f"text {i}: metric_pos: position")[0]

        of_sources = [None] * len(runs) if sources is None else [read(i, ids) for i, ids in enumerate(sources)]
        of_runs = [read(i, ids) for i, ids in enumerate(runs)]
        return list(zip(of_runs, of_sources, answers, wrongs, strict=True))

    # Where it comes from

    def attribute(
        self,
        text: Texts,
        answer: Any,
        wrong: Any = None,
        *,
        by: str | None = None,
        method: str = "direct",
        steps: int = 50,
        baseline: Texts = None,
        top: int | None = None,
        at: int = -1,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Attribution:
        """Divides the logit of a token, or its difference to that of another, into parts.

        Args:
            text: One text, or its ids.
            answer, wrong: Tokens, by text (with its leading space) or id.
            by: `component`, `layer`, `head`, `neuron` or `position`. By default `component`, and of integrated gradients `position`.
            method: `direct`, what each part adds through the final LayerNorm as it was, an exact sum; `gradient`, each value times
                the logit's gradient; `integrated`, the same along the line to the text's token embeddings.
            steps, baseline: Of `integrated`: points of the line, and the text of as many tokens where it starts; None is zeros.
            top: Only the largest parts; the others go into the remainder.
            at: The position whose logits are divided; -1 is the last.
            edits, source, mean_from: As in `run`.

        Raises:
            Error: of kind `hook` for a request that does not fit.
        """
        ids, _ = self._one(text, prepend_bos, "attribute")
        known = {"direct": None, "gradient": 0, "integrated": steps}
        if method not in known:
            raise error("hook", f"the method {method!r} is none of: {', '.join(known)}")
        if method == "integrated" and steps < 1:
            raise error("hook", f"integrated gradients need at least one step, and {steps} were given")
        if baseline is not None and method != "integrated":
            raise error("hook", "a baseline is where the line of integrated gradients starts: give method='integrated'")
        start = None if baseline is None else self._one(baseline, prepend_bos, "a baseline")[0]
        by = by or ("position" if method == "integrated" else "component")
        (position,) = _texts.indices(at, len(ids), "at: position")
        right, other = (None if one is None else self._token_ids(one, 1)[0] for one in (answer, wrong))
        if right is None:
            raise error("hook", "a token's logit is divided: give answer")
        edited, sources = self._changes(edits, source, mean_from, prepend_bos, [len(ids)])
        with Progress("actscope", "block") as progress:
            asked = (position, right, other)
            total, labels, values, remainder, records = _native.attribute(
                self._session, ids, asked, by, known[method], start, edited, sources, progress
            )
        names = [self._session.token_labels([one])[0] for one in (right, other) if one is not None]
        of = " less that of ".join(f'"{name}"' for name in names)
        recorded = _edits.recorded(records)
        title = f"logit of {of} at position {position}, {method}, {self.name}{_mark(recorded)}"
        shape = (self.n_layer, self.n_head)
        found = (total, labels, values, remainder)
        tokens = self._tokens_of(ids)
        return Attribution(found, recorded, by=by, method=method, top=top, title=title, text=tokens, shape=shape)

    def grad(
        self,
        texts: Texts,
        hooks: Any = None,
        *,
        metric: str | None = None,
        answer: Any = None,
        wrong: Any = None,
        at: int = -1,
        pos: Any = None,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        values: bool = True,
        checkpoint: bool = False,
        prepend_bos: bool = False,
    ) -> Gradients:
        """Runs texts, and differentiates a metric by every value that `hooks` name. Edits are differentiated through.

        Args:
            texts, hooks, pos, edits, source, mean_from: As in `run`.
            metric: `logit-diff` (the default with `wrong`), `logit`, `logprob`, `prob`, `loss` (the default without `answer`), `kl`, or
                `dot:SITE[@SELECT]=V`, the sum of a hook's values times numbers, SITE, SELECT and V being as in an edit.
            answer, wrong: Tokens, by text (with its leading space) or id: one for all texts, or one for each.
            at: The position whose logits are read; -1 is each text's last.
            values: False leaves the values out, which takes less time and memory.
            checkpoint: Run each block again on the way back: memory for one block at a time, and half as much time again.

        Raises:
            Error: of kind `hook` for a request that does not fit.
        """
        ids, given = self._read(texts, prepend_bos)
        lengths = [len(row) for row in ids]
        questions: list[tuple[int, int, int]] | None = None
        if metric is not None and metric.startswith("dot:"):
            if answer is not None:
                raise error("hook", "answer and wrong are about logits, and dot: is not: leave them out")
            what = metric.removeprefix("dot:")
            record: dict[str, Any] = {"metric": metric}
        else:
            what = self._metric(metric, answer, wrong, loss=True)
            answers, wrongs = (self._token_ids(one, len(ids)) for one in (answer, wrong))
            places = [_texts.indices(at, n, f"text {i}: at: position")[0] for i, n in enumerate(lengths)]
            questions = list(zip(places, answers, wrongs, strict=True))
            # What the metric reads, as the command line's files have it: one token for all texts where it is the same.
            record = {"metric": what}
            if what != "loss":
                record["position"] = places
            if what not in ("loss", "kl"):
                record["answer"] = answers[0] if len(set(answers)) == 1 else answers
            if what == "logit-diff":
                record["wrong"] = wrongs[0] if len(set(wrongs)) == 1 else wrongs
        positions = _texts.positions(pos, lengths)
        taps: list[Any] = [(name, (positions, None, None, None)) for name in self._tapped(hooks, None, None)]
        edited, sources = self._changes(edits, source, mean_from, prepend_bos, lengths)
        with Progress("actscope", "block") as progress:
            of_values, of_gradients, target, records = _native.grad(
                self._session, ids, taps, (what, questions), edited, sources, values, checkpoint, progress
            )

        def cache(found: tuple[dict[str, Any], dict[str, int]], gradient: dict[str, Any] | None) -> Cache:
            return Cache(
                self,
                *found,
                ids=ids,
                lengths=lengths,
                texts=given,
                positions=positions,
                edits=records,
                gradient=gradient,
            )

        return Gradients(cache(of_values, None), cache(of_gradients, record), np.asarray(target))

    def edges(
        self,
        clean: Texts,
        corrupt: Texts,
        answer: Any = None,
        wrong: Any = None,
        *,
        metric: str | None = None,
        metric_pos: int = -1,
        steps: int = 1,
        prepend_bos: bool = False,
    ) -> Edges:
        """Edge attribution patching: what each part of the model tells each later part. A score is the change of what the writer
        writes, from the corrupt run to the clean one, times the gradient of the metric by what the reader reads.

        Args:
            clean, corrupt, answer, wrong, metric, metric_pos: As in `patch`.
            steps: 1 takes the gradient at the corrupt run (EAP); more take the mean over so many points from the corrupt text's
                embeddings to the clean one's (EAP-IG).

        Raises:
            Error: of kind `hook` for texts that do not line up, and for a request that does not fit.
        """
        pairs = self._pairs(clean, corrupt, prepend_bos)
        of = self._metric(metric, answer, wrong, loss=False)
        if steps < 1:
            raise error("hook", f"at least one step is needed, and {steps} were given")
        cases = self._cases(pairs[1], pairs[0], (answer, wrong, metric_pos))

        def circuit(kept: list[tuple[int, int]]) -> list[float]:
            with Progress("actscope", "pair") as progress:
                return _native.edge_circuit(self._session, cases, of, kept, progress)

        with Progress("actscope", "block") as progress:
            return Edges(_native.edges(self._session, cases, of, steps, progress), circuit)

    def heads(
        self,
        texts: Texts = None,
        *,
        repeats: int = 8,
        length: int = 50,
        seed: int = 0,
        measure: str = "mul",
        exclude_bos: bool = False,
        exclude_current: bool = False,
        edits: Edits = None,
        source: Texts = None,
        mean_from: Texts = None,
        prepend_bos: bool = False,
    ) -> Heads:
        """Which heads look at the token before, at earlier tokens that are the same, or at those after them.

        Args:
            texts: Of two tokens or more. None: `repeats` texts of `length` random tokens, each text's tokens twice, by `seed`.
            measure: `mul`, the share of a head's attention that falls where such a head looks; `abs`, 1 minus the sum over keys of
                the absolute difference from 1 there and 0 elsewhere, averaged over queries; it may be negative.
            exclude_bos: Leaves out the attention to the first position, which inactive heads attend to.
            exclude_current: Leaves out the attention that tokens pay to themselves.
            edits, source, mean_from: As in `run`.

        Raises:
            Error: of kind `hook` for a request that does not fit, `run` for heads that have no score.
        """
        if texts is None:
            room = (self.config["n_positions"] - (self.config["bos_token_id"] is not None)) // 2
            if repeats < 1 or not 1 <= length <= room:
                raise error("hook", f"{repeats} texts of {length} tokens twice: at least 1 text, and 1 to {room} tokens")
            ids = _native.random_repeats(self._session, repeats, length, seed)
            what = f"{repeats} texts of {length} random tokens twice, seed {seed}"
        else:
            ids, _ = self._read(texts, prepend_bos)
            what = "1 text" if len(ids) == 1 else f"{len(ids)} texts"
        for i, row in enumerate(ids):
            if len(row) < 2:
                raise error("batch", f"text {i} has {len(row)} tokens, and a head looks from one token at another: two are needed")
        edited, sources = self._changes(edits, source, mean_from, prepend_bos, [len(row) for row in ids])
        excluded = (exclude_bos, exclude_current)
        with Progress("actscope", "block") as progress:
            scores, records = _native.head_kinds(self._session, ids, measure, excluded, edited, sources, progress)
        recorded = _edits.recorded(records)
        left_out = [", first position left out"] * exclude_bos + [", the token itself left out"] * exclude_current
        title = f"kinds of head of {self.name}, {what}, measure {measure}{''.join(left_out)}{_mark(recorded)}"
        return Heads(scores, recorded, title=title, text=self._tokens_of(ids[0]) if len(ids) == 1 else None)

    def circuit(self, layer: int, head: int, kind: str = "ov", *, top: int = 10) -> Circuit:
        """What a head's weights do, whatever the text is. Of the weights as they are: `process="tl"` has LayerNorm's gain in them.

        Args:
            layer, head: The head; negative ones count from the end.
            kind: `ov`, from the token that is looked at to those that it makes likelier; `qk`, from a query's token to the tokens
                that are looked at.
            top: How many pairs of tokens, and of directions that are read as tokens.

        Raises:
            Error: of kind `hook` for a head that does not exist, `run` for weights that are no numbers.
        """
        if top < 1:
            raise error("hook", "top must be at least 1")
        (at,) = _texts.indices(head, self.n_head, "head")
        layer = self._layer(layer)
        found = _native.circuit(self._session, (layer, at), kind, top)
        return Circuit(found, kind, (layer, at), self._session.written)

    def _token_ids(self, tokens: Any, n: int) -> list[int]:
        """A token for each of `n` texts; 0 where none is asked about."""
        if tokens is None:
            return [0] * n
        many = hasattr(tokens, "__len__") and not isinstance(tokens, str)
        listed = list(tokens) if many else [tokens] * n
        if len(listed) != n:
            raise error("batch", f"there are {n} texts and {len(listed)} tokens to ask about")
        ids = [self.token_id(one) if isinstance(one, str) else int(one) for one in listed]
        for one in ids:
            if not 0 <= one < self.config["vocab_size"]:
                raise error("batch", f"the token id {one} does not exist: the vocabulary ends at {self.config['vocab_size'] - 1}")
        return ids

    def verify(self) -> Verification:
        """Are the numbers right on this machine? Compares every kernel, every hook and every operation of whole runs with plain
        loops in f64; takes some seconds. Of the reference itself nothing is compared.

        Raises:
            Error: of kind `device` for the reference, which is what the others are held against.
        """
        if self._session.device_kind == "reference":
            raise error("device", "the reference is what the others are held against; verify gpu or cpu")
        shares = {"kernels": (0, 60), "hooks": (60, 20), "lockstep": (80, 18), "pieces": (98, 2)}
        with Progress("verify", "%") as progress:

            def tell(stage: str, done: int, of: int) -> None:
                begin, width = shares[stage]
                progress(begin + width * done // max(of, 1), 100)

            return Verification(self._session.verify(tell))


def _mark(edits: list[dict[str, str]]) -> str:
    """What stands in a title behind what is shown."""
    more = f" and {len(edits) - 1} more" if len(edits) > 1 else ""
    return f", edited: {edits[0]['edit']}{more}" if edits else ""
