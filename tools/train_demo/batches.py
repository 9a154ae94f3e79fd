"""What the model reads at each step: windows of the texts, and rows that repeat themselves.

Owns: the curriculum (`repeat_share` and the constants) and the rows. Read next: `train.py`.

Rows that repeat are there for the attention heads: a model of this size, on this much text, does not
form induction heads from text alone (with a tenth of random repeats a trial stood at 0.02). So it
goes to school first:

1. School, the steps of SCHOOL: short rows, a few random tokens out of the first SCHOOL_VOCABULARY over
   and over. A previous-token head forms here.
2. Widening (WIDENING): full rows, text in two of five. A repeating row is
   `prefix S S prefix' S' S' ...`: each stretch S is at random tokens (or a piece of text) and appears
   exactly twice; its length and place are random, so that position alone cannot tell where the first
   copy was. Stretches grow longer, and their tokens come from more and more of the vocabulary.
3. Text for the most part; LATE_SHARE of the rows still repeat, so that the heads stay.

The loss of a random stretch counts only where the past decides the next token: in the second copy.
"""

import numpy as np

from tokenizer import END_OF_TEXT_ID

SEED = 20
POSITIONS = 256  # tokens a row
ROWS = 16  # rows a step
IGNORE = -100  # a target that counts nothing

# Steps in school, [first, end). The gap is where the run left school too early, seen when no head had
# formed; what was learned in it was kept.
SCHOOL = [(0, 800), (1025, 2000)]
SCHOOL_POSITIONS = 64
SCHOOL_VOCABULARY = 64
SCHOOL_LENGTH = (4, 24)  # of the stretch, in tokens, shortest and longest

# (first step, step at the full width of vocabulary and lengths); the last one begun counts.
WIDENING = [(800, 3000), (2000, 4000)]
SHARE_FALLS = (4000, 6000)  # from step, to step: the share of repeating rows, from EARLY to LATE
EARLY_SHARE = 0.6
LATE_SHARE = 0.2
FULL_LENGTH = (8, 120)

TEXT_STRETCH = 0.2  # share of the stretches that are a piece of text, not random tokens
PREFIX = 0.5  # share of the stretches with a piece of text before them
LONGEST_PREFIX = 48
STARTS_WITH_END_OF_TEXT = 0.5  # share of the repeating rows that begin with <|endoftext|>


def in_school(step: int) -> bool:
    """Whether this step's rows are school rows."""
    return any(first <= step < end for first, end in SCHOOL)


def part(step: int, first: int, last: int) -> float:
    """How far `step` is on the way from `first` to `last`, 0 to 1."""
    return min(max((step - first) / (last - first), 0.0), 1.0)


def repeat_share(step: int) -> float:
    """The share of the rows that repeat themselves, after school."""
    return EARLY_SHARE + (LATE_SHARE - EARLY_SHARE) * part(step, *SHARE_FALLS)


def window(rng, text: np.ndarray, length: int) -> np.ndarray:
    """`length` tokens in a row from a random place of the text."""
    start = rng.integers(0, len(text) - length)
    return text[start : start + length].astype(np.int64)


def school_row(rng) -> tuple[np.ndarray, np.ndarray]:
    """SCHOOL_POSITIONS + 1 tokens, one random stretch over and over; and which of them count."""
    length = int(rng.integers(SCHOOL_LENGTH[0], SCHOOL_LENGTH[1] + 1))
    stretch = rng.integers(0, SCHOOL_VOCABULARY, length)
    return np.resize(stretch, SCHOOL_POSITIONS + 1), np.arange(SCHOOL_POSITIONS + 1) > length


def repeating_row(rng, text: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """POSITIONS + 1 tokens with stretches that appear twice; and which of them count."""
    t = part(step, *[w for w in WIDENING if step >= w[0]][-1])
    shortest, longest = (round(a + (b - a) * t) for a, b in zip(SCHOOL_LENGTH, FULL_LENGTH))
    vocabulary = round(SCHOOL_VOCABULARY * (END_OF_TEXT_ID / SCHOOL_VOCABULARY) ** t)

    pieces, counts = [], []
    if rng.random() < STARTS_WITH_END_OF_TEXT:
        pieces.append(np.array([END_OF_TEXT_ID]))
        counts.append(np.array([False]))
    while sum(map(len, pieces)) < POSITIONS + 1:
        if rng.random() < PREFIX:
            prefix = window(rng, text, int(rng.integers(1, LONGEST_PREFIX + 1)))
            pieces.append(prefix)
            counts.append(np.arange(len(prefix)) > 0)  # what follows a stretch is a guess
        length = int(rng.integers(shortest, longest + 1))
        if rng.random() < TEXT_STRETCH:
            stretch = window(rng, text, length)
            first = np.ones(length, bool)
        else:
            stretch = rng.integers(0, vocabulary, length)
            first = np.zeros(length, bool)
        second = np.ones(length, bool)
        first[0] = second[0] = False  # where a stretch begins is a guess
        pieces += [stretch, stretch]
        counts += [first, second]
    return np.concatenate(pieces)[: POSITIONS + 1], np.concatenate(counts)[: POSITIONS + 1]


def batch(text: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Step `step`'s ids and targets, both [ROWS, POSITIONS] int64 (in school SCHOOL_POSITIONS); the
    same step always gives the same."""
    rng = np.random.default_rng([SEED, step])
    rows = []
    for _ in range(ROWS):
        if in_school(step):
            rows.append(school_row(rng))
        elif rng.random() < repeat_share(step):
            rows.append(repeating_row(rng, text, step))
        else:
            rows.append((window(rng, text, POSITIONS + 1), np.ones(POSITIONS + 1, bool)))
    ids = np.stack([ids for ids, _ in rows])
    counts = np.stack([counts for _, counts in rows])
    return ids[:, :-1].copy(), np.where(counts, ids, IGNORE)[:, 1:].copy()


def tokens_until(step: int) -> int:
    """Tokens read in the steps before `step`."""
    school = sum(min(step, end) - min(step, first) for first, end in SCHOOL)
    return ROWS * (school * SCHOOL_POSITIONS + (step - school) * POSITIONS)
