"""The demo model's tokenizer: byte-level BPE in GPT-2's own format, 4,096 tokens.

Owns: the vocabulary and the files of token ids. Read next: `model.py`, `train.py`.

Ids: 0..255 are the 256 bytes (GPT-2's printable stand-ins, `Ġ` for a space), then the merges in the
order they were learned, and last 4,095 is `<|endoftext|>`, GPT-2's place for it. The text is cut
before the merges by GPT-2's pattern (`ByteLevel` with `use_regex`).

    python tokenizer.py [--work target/train_demo]

Reads `WORK/texts/`, writes `WORK/tokenizer.json`, `WORK/train.u16` and `WORK/heldout.<source>.u16`
(token ids, little-endian unsigned 16 bits; each document ends with `<|endoftext|>`).
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from texts import DEFAULT_WORK, SOURCES, read_documents

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = VOCAB_SIZE - 1


def learn(documents: list[str]) -> Tokenizer:
    """Learns the merges from the documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def save_as_gpt2(tokenizer: Tokenizer, path: Path):
    """Writes tokenizer.json as GPT-2's: `<|endoftext|>` last in the vocabulary, merges as `a b`."""
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(VOCAB_SIZE - 1)), "the vocabulary is not full"
    vocab[END_OF_TEXT] = END_OF_TEXT_ID
    merges = data["model"]["merges"]
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    data["added_tokens"] = [
        {
            "id": END_OF_TEXT_ID,
            "content": END_OF_TEXT,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """The documents' ids in one row, `<|endoftext|>` after each."""
    ids = []
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(END_OF_TEXT_ID)
    return np.array(ids, dtype="<u2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    work = parser.parse_args().work

    train = {s.name: read_documents(work, s.name, "train") for s in SOURCES}
    save_as_gpt2(learn([d for ds in train.values() for d in ds]), work / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))

    documents = [d for s in SOURCES for d in train[s.name] * s.passes]
    random.Random(0).shuffle(documents)
    ids = encode(tokenizer, documents)
    ids.tofile(work / "train.u16")
    size = sum(len(d.encode()) for d in documents)
    print(f"train: {len(ids):,} tokens, {size / len(ids):.2f} bytes a token")
    for source in SOURCES:
        ids = encode(tokenizer, read_documents(work, source.name, "heldout"))
        ids.tofile(work / f"heldout.{source.name}.u16")
        print(f"held out, {source.name}: {len(ids):,} tokens")


if __name__ == "__main__":
    main()
