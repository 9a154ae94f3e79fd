"""Odd strings with the ids that transformers' GPT2TokenizerFast gives them, and odd ids with the text they decode to.

Two engines must agree on every line, or nothing is written: GPT2TokenizerFast, which takes vocabulary and merges from
tokenizer.json and brings its own rules, and the file as it stands in the bare `tokenizers` package.
"""

import json
import random
import unicodedata

from tokenizers import Tokenizer
from transformers import GPT2TokenizerFast

from compare import Refused

COUNT, SEED = 3000, 20261123
END = "<|endoftext|>"
FIXED = """
It's we're I've I'm you'll he'd don't 'tis IT'S WE'RE it’s 's''t'' 'S 'RE ' s o'clock rock'n'roll
The cat sat on the mat.|In the beginning God created the heaven and the earth.|Call me Ishmael.
Ça va? 東京 🙂|naïve façade Zoë coöperate|Straße STRASSE ẞ|İstanbul ıi|Ελληνικά Русский Հայերեն ქართული
fn main() { println!("{:?}", x[0..3]); }|for(i=0;i<n;++i){a[i]=~b[i]^0x1F;}|https://a.b/c?d=e&f=%20#g|a@b.co
3.14159 1,000,000 1e-10 0xFF ½ ² Ⅷ ٣٤٥ 一二三 ➂ 1st 2nd 10% $5 €6 ¥7 007|2026-11-23T05:30:00Z|v1.2.3-rc.4+5
""".strip()
ATOMS = {
    "space": [" ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\u00a0", "\u1680", "\u2003", "\u2009", "\u2028",
              "\u2029", "\u202f", "\u3000", "\u200b", "\u2060", "\ufeff", "\u0085", "\u180e"],
    "emoji": ["🙂", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷", "🇫", "1️⃣", "❤️", "❤",
              "🧑🏿‍🚀", "\u200d", "\ufe0f", "☃", "🫠"],
    "combining": ["e\u0301", "é", "a\u0308\u0304", "\u0301", "n\u0303\u0303\u0303",
                  "Z\u0351\u036b\u0343\u0321a\u0328", "각", "\u1100\u1161\u11a8", "ก็", "क्षि", "\u0e33", "ﬁ",
                  "ﷺ", "\u1e9b\u0323", "ǆ"],
    "cjk": ["東京", "中文字符", "ひらがな", "カタカナ", "ｶﾀｶﾅ", "한국어", "「引用」", "、。！？", "𠮷野家", "々〆〇",
            "Ｆｕｌｌ", "㍿"],
    "rtl": ["שלום", "עִבְרִית", "مرحبا", "العَرَبِيَّة", "\u200f", "\u202e", "\u202c", "\u2067x\u2069", "۱۲۳", "ـ",
            "؟", "لا"],
    "control": [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0xFFFD, 0xFFFE, 0xFFFF, 0x10FFFF, 0xE000)],
    "contraction": ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "'", "''", "it", "We", "you", " he",
                    "n"],
    "number": ["0", "7", "42", "1999", "1,000", "3.5", "½", "²", "Ⅷ", "٣", "๓", "𝟘", "①", "1e9", "-1", "+", "%", "x86"],
    "end": [END, "<|endoftext|", "|endoftext|>", "<|ENDOFTEXT|>", "<|", "|>", "<", "endoftext", " ", "\n", "a", " the"],
    "symbol": [*"!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~§°€£™→∑√∞≠", "...", "--", "—", "“", "”", "‘", "://", "/*", "*/",
               "==="],
    "word": ["the", " the", "The", " of", " and", "cat", " sat", "God", " ship", "whale", "ing", " President", "tion",
             "ABC", "camelCase", "snake_case", " I", "a", "Zz", "qx", " United", " States", "thou", "ſ", "Ω", "µ", "ß",
             "þ"],
    "any": [],  # drawn from all of Unicode: see strings()
}
LONG = [("a", 300), (" ", 200), ("\n", 100), ("!", 150), ("ab", 120), ("🙂", 40), ("東", 60), ("0", 130), ("\t ", 50),
        ("=", 90), ("é", 80), ("'s", 60), (" the", 80), ("\u0301", 50), ("\0", 40), (END, 6), ("A", 257), ("-", 64),
        ("\r\n", 40), (".", 65)]


def strings(seed, count):
    """`count` different strings: whole lines, every character below 256, long runs, then seeded mixtures."""
    rng = random.Random(seed)
    lines = FIXED.replace("|", "\n").split("\n")
    made = dict.fromkeys(["", *lines, *(chr(c) for c in range(256)), *(atom * n for atom, n in LONG),
                          *(atom for atoms in ATOMS.values() for atom in atoms)])

    def any_character():  # assigned ones only: what an unassigned one counts as changes with the Unicode version
        while True:
            c = chr(rng.randrange(rng.choice([0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])))
            if unicodedata.category(c) not in ("Cn", "Cs"):
                return c

    draw = lambda kind: any_character() if kind == "any" else rng.choice(ATOMS[kind])
    kinds = list(ATOMS)
    while len(made) < count:
        kind = rng.choice(kinds)
        mixed = rng.choice([0.0, 0.2, 0.9])
        pieces = (draw(rng.choice(kinds) if rng.random() < mixed else kind) for _ in range(rng.randint(2, 14)))
        made["".join(pieces)] = None
    return list(made)


def odd_ids(seed, count, ids_of, size):
    """Token sequences that no text need encode to: characters cut in the middle, lone bytes, any ids in any order."""
    rng = random.Random(seed)
    texts = [text for text in strings(seed, COUNT) if not text.isascii()]
    made = [[i] for i in range(0, size, max(1, size // 300))]
    while len(made) < count:
        ids = ids_of(rng.choice(texts))
        start, end = sorted((rng.randint(0, len(ids)), rng.randint(0, len(ids))))
        made += [ids[start:end], [rng.randrange(size) for _ in range(rng.randint(1, 6))]]
        made.append(rng.sample(ids, len(ids))[:12])
    return made[:count]


def write(model, folder):
    fast = GPT2TokenizerFast.from_pretrained(model)
    bare = Tokenizer.from_file(str(model / "tokenizer.json"))
    decode = lambda ids: fast.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def ids_of(text):
        ids = fast.encode(text, add_special_tokens=False)
        other = bare.encode(text, add_special_tokens=False).ids
        if ids != other:
            raise Refused(f"{text!r}: GPT2TokenizerFast gives {ids}, tokenizer.json as it stands {other}")
        if decode(ids) != text:
            raise Refused(f"{text!r} comes back as {decode(ids)!r}")
        return ids

    def text_of(ids):
        if decode(ids) != bare.decode(ids, skip_special_tokens=False):
            raise Refused(f"{ids}: decoded differently by GPT2TokenizerFast and by tokenizer.json as it stands")
        return decode(ids)

    encode = [{"text": text, "ids": ids_of(text)} for text in strings(SEED, COUNT)]
    decoded = [{"ids": ids, "text": text_of(ids)} for ids in odd_ids(SEED, COUNT // 2, ids_of, len(fast))]
    for name, entries in (("tokenizer_odd_strings.json", encode), ("tokenizer_odd_ids.json", decoded)):
        lines = (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries)
        text = "[\n" + ",\n".join(lines) + "\n]\n"
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name:26} {len(text.encode()) / 1e3:7.0f} kB  {len(entries)} entries")
