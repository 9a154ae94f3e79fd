"""Text that a model writes, with its activations, and how likely texts are. Owns `Generation`, `Stream` and `Scores`."""

from __future__ import annotations

import html
import math
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actscope._show import Prediction, _Listed, _table

if TYPE_CHECKING:
    from actscope._cache import Cache

Numbers = NDArray[np.float64]


class NewToken(NamedTuple):
    """A token as it comes.

    Attributes:
        text: The text that it belongs to: prompt by prompt, and sample by sample within a prompt.
        id: Its id.
        token: As the vocabulary writes it (`Ġcat`).
        piece: What can be read since this text's token before: whole characters only, and nothing of a token that ends the text.
        logprob: In nats, under the model's own distribution: after edits, before penalty, temperature and filters.
        alternatives: The likeliest tokens with their probabilities, as many as were asked for.
        stop: Why the text ends here; None where it goes on. See `Generated`.
    """

    text: int
    id: int
    token: str
    piece: str
    logprob: float
    alternatives: list[tuple[str, float]]
    stop: str | None


OnToken = Callable[[NewToken], Any]
"""Hears every token. `False` ends the run, and what was written so far is given back."""


class Generated:
    """One text.

    Attributes:
        prompt: The prompt that it goes on from, by its index.
        sample: Which of the prompt's samples it is.
        prompt_ids: The prompt.
        ids: Prompt and new tokens, one that ends the text included.
        tokens: The new tokens as the vocabulary writes them, one that ends the text included.
        text: The new tokens' text, without one that ends the text; None without a tokenizer.
        logprobs: float64 [new], see `NewToken`.
        alternatives: For each new token the likeliest ones with their probabilities.
        lens: `lens[row][step]`: what each layer would have said, a `Prediction`; rows are those of `Generation.lens_hooks`.
        stop: `length`, `end-of-text`, `stop-text`, `context` (the model has no more positions), or `interrupted`.
    """

    def __init__(self, found: dict[str, Any], written: Callable[[list[int]], list[str]]) -> None:
        n = found["prompt_tokens"]
        self.prompt: int = found["prompt"]
        self.sample: int = found["sample"]
        self.ids: list[int] = found["ids"]
        self.prompt_ids: list[int] = self.ids[:n]
        self.tokens: list[str] = written(self.ids[n:])
        self.text: str | None = found["text"]
        self.logprobs: Numbers = found["logprobs"]
        self.alternatives = [named(of_step, written) for of_step in found["alternatives"]]
        self.lens = [[prediction(one, written) for one in row] for row in found["lens"]]
        self.stop: str = found["stop"]

    def __repr__(self) -> str:
        return f"Generated({self.text!r}, {len(self.tokens)} tokens, {self.stop})"

    def __str__(self) -> str:
        return self.text if self.text is not None else " ".join(self.tokens)


class Generation(_Listed[Generated]):
    """The texts that were written: prompt by prompt, and sample by sample within a prompt.

    Attributes:
        cache: What `hooks` named, of prompt and new tokens, from the run that wrote them; None without hooks.
        seed: Of the draws.
        lens_hooks: The rows of each text's `lens`.
    """

    def __init__(self, texts: list[Generated], cache: Cache | None, seed: int, lens_hooks: list[str]) -> None:
        super().__init__(texts)
        self.cache = cache
        self.seed = seed
        self.lens_hooks = lens_hooks

    def __repr__(self) -> str:
        return f"Generation({self._listed!r})"

    def _repr_html_(self) -> str:
        rows = [(one.prompt, one.sample, str(one), len(one.tokens), one.stop) for one in self]
        return _table(("prompt", "sample", "text", "tokens", "stop"), rows, [False] * len(rows))


class Stream(Iterator[NewToken]):
    """Tokens as they come: an iterator. The model runs on a thread of its own, ahead of what reads; leaving a `with` block,
    `close`, and Ctrl-C end it. Other runs of the same model wait until it has ended.

    Attributes:
        result: The `Generation`, once the iterator is at its end or was closed.
    """

    def __init__(self, run: Callable[[OnToken], Generation]) -> None:
        self.result: Generation | None = None
        self._tokens: queue.SimpleQueue[NewToken | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._closed = threading.Event()
        tokens, closed = self._tokens, self._closed

        def hear(token: NewToken) -> bool:
            tokens.put(token)
            return not closed.is_set()

        # The thread holds what it fills and not the iterator, so that an iterator which nobody has any more is closed.
        found: list[Any] = [None, None]

        def work() -> None:
            try:
                found[0] = run(hear)
            except BaseException as e:  # It is raised where the tokens are read.
                found[1] = e
            tokens.put(None)

        self._found = found
        self._thread = threading.Thread(target=work, name="actscope", daemon=True)
        self._thread.start()

    def __next__(self) -> NewToken:
        if self._ended():
            raise StopIteration
        try:
            token = self._tokens.get()
        except BaseException:
            self.close()
            raise
        if token is not None:
            return token
        self._end()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def _ended(self) -> bool:
        return self.result is not None or self._closed.is_set()

    def _end(self) -> None:
        self._thread.join()
        self.result, self._error = self._found
        self._closed.set()

    def close(self) -> None:
        """Ends the run after the token that it is at, and waits for that."""
        if not self._ended():
            self._closed.set()
            self._end()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # Tells the thread, and does not wait.
        self._closed.set()


class Score:
    """How likely the model finds one text.

    Attributes:
        ids: The text.
        tokens: As the vocabulary writes them.
        logprobs: float64 [pos - 1]: of every token but the first the log-probability, in nats, given those before it.
        total: Their sum.
        perplexity: `exp` of the mean negative log-probability; None for a text of one token.
    """

    def __init__(self, ids: list[int], tokens: list[str], logprobs: Numbers) -> None:
        self.ids = ids
        self.tokens = tokens
        self.logprobs = logprobs
        self.total = float(logprobs.sum())
        self.perplexity = _perplexity(self.total, len(logprobs))

    def __repr__(self) -> str:
        return f"Score({len(self.ids)} tokens, total {self.total:.4f} nats, perplexity {self.perplexity})"


class Scores(_Listed[Score]):
    """The score of each text.

    Attributes:
        total: The log-probability of all of them, in nats.
        perplexity: Of all of them.
    """

    def __init__(self, scores: list[Score]) -> None:
        super().__init__(scores)
        self.total = sum(score.total for score in scores)
        self.perplexity = _perplexity(self.total, sum(len(score.logprobs) for score in scores))

    def __repr__(self) -> str:
        return f"Scores({len(self)} texts, total {self.total:.4f} nats, perplexity {self.perplexity})"

    def _repr_html_(self) -> str:
        shown = []
        for score in self:
            marks = []
            for token, logprob in zip(score.tokens, [None, *score.logprobs], strict=True):
                # Half a token's probability is a light mark, one in ten thousand the strongest.
                strength = 0.0 if logprob is None else min(1.0, max(0.0, -logprob / 9.2))
                title = "nothing comes before it" if logprob is None else f"{logprob:.4f} nats"
                marks.append(
                    f'<span title="{title}" style="background:rgba(230,80,40,{strength:.2f});color:#000;padding:1px 2px;'
                    f'font-family:monospace;white-space:pre">{html.escape(token)}</span>'
                )
            shown.append(f"<div>{''.join(marks)} <small>{score.total:.2f} nats</small></div>")
        return "".join(shown)


def _perplexity(total: float, n: int) -> float | None:
    return math.exp(-total / n) if n else None


def named(likeliest: list[tuple[int, float]], written: Callable[[list[int]], list[str]]) -> list[tuple[str, float]]:
    """Tokens with their probabilities, by the tokens' names."""
    names = written([id for id, _ in likeliest])
    return [(name, probability) for name, (_, probability) in zip(names, likeliest, strict=True)]


def prediction(of: Any, written: Callable[[list[int]], list[str]]) -> Prediction:
    """A prediction of the logit lens by the tokens' names."""
    likeliest, entropy, following = of
    after = following and (written([following[0]])[0], following[1], following[2])
    return Prediction(named(likeliest, written), entropy, after)
