"""Writes tests/inputs/tokenizers: folders as people have them, and the ids that transformers gives for strings.

    venv4/bin/python make_tokenizers.py old       folders that transformers 4 saves
    venv5/bin/python make_tokenizers.py new       folders that transformers 5 saves
    venv5/bin/python make_tokenizers.py ids       the ids, by AutoTokenizer of transformers 5
"""

import json
import sys
from pathlib import Path

import tokenizer_folders

ROOT = Path(__file__).resolve().parents[2] / "tests/inputs/tokenizers"
END = "<|endoftext|>"

STRINGS = [
    "The cat sat on the mat.",
    " The cat",
    "the cat",
    "  two  spaces  ",
    "\n\nlines\r\n\tand tabs\n",
    "",
    " ",
    "naïve café Müller NAÏVE",
    "e\u0301 é ﬁ ½",
    "你好, 世界!",
    "Привет 🙂 👩‍👩‍👧 \u200b\u202e",
    "It's 12345 o'clock, doesn't it?",
    f"one{END}two {END} three{END}",
    f"{END}",
    "<pad> <pad><pad> a<pad>b",
    "[PAD][CLS] x [SEP] [MASK] [UNK] [unk]",
    "<x> a<x>b  <x>  c",
    "a <left> b<left>c   <left>",
    "a <right> b<right>c <right>   d",
    "a  <both>  b<both>c",
    "word words a word. word,word _word_ wordword",
    "ÀB àb Àb ab AB",
    "the cat the cats cathedral Cathedral CATHEDRAL",
    "<user> hello <bot> hi <user><bot>  <bot>",
    "<s> a </s> <unk> <mask> <cls> <image> [BOS]",
    "<new><newer> <new> x",
    "Ġthe theĠ the",
    "\x00\x07 control \ufffd\ufeff",
    "def f(x):\n    return x ** 2",
    "a" * 120,
    "<|endoftext|",
    "Hello World HELLO world",
    "<padding> <padding>x",
]


def ids():
    import tokenizers
    import transformers
    from transformers import AutoTokenizer

    folders = {}
    for folder in sorted(path for path in ROOT.iterdir() if path.is_dir()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        folders[folder.name] = {
            "class": type(tokenizer).__name__,
            "ids": [tokenizer(text)["input_ids"] for text in STRINGS],
            # The same with special tokens read as characters.
            "plain": [tokenizer(text, split_special_tokens=True)["input_ids"] for text in STRINGS],
        }
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    # One line a folder.
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in folders.items())
    text = f'{{"made_with": {json.dumps(versions)},\n"strings": {json.dumps(STRINGS, indent=1)},\n"folders": {{\n{rows}\n}}}}\n'
    (ROOT / "ids.json").write_text(text)
    print(len(folders), "folders,", len(STRINGS), "strings")


if __name__ == "__main__":
    ROOT.mkdir(parents=True, exist_ok=True)
    for step in sys.argv[1:]:
        ids() if step == "ids" else getattr(tokenizer_folders, step)(ROOT)
