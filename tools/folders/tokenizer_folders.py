"""Folders with a tokenizer as transformers saves them, each a small variant of what people have.

`old` runs with transformers 4 and `new` with transformers 5, since the two save different files. A folder gets a config.json
as a GPT-2 checkpoint has it, for its class may stand there.
"""

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
CORPUS = [
    "The cat sat on the mat. The dog sat on the cat, and the cat was not amused.",
    "It's a naïve café; the Müller family doesn't mind. 你好, 世界! Привет, мир.",
    "def f(x):\n    return x + 1\n\n\tHello World, hello world.  Two  spaces.",
] * 4


def byte_level(specials=(END,), size=330, prefix_space=False):
    """A trained byte-level BPE: (vocabulary, merges)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def word_pieces():
    """A trained WordPiece vocabulary, in order."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS + [text.lower() for text in CORPUS], trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.get)


def config(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **fields}, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")


def vocab_and_merges(folder, vocab, merges):
    """The two files of a tokenizer without tokenizer.json."""
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(merge) for merge in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def flags():
    """Added tokens with each flag."""
    return [
        AddedToken("<left>", lstrip=True),
        AddedToken("<right>", rstrip=True),
        AddedToken("<both>", lstrip=True, rstrip=True, special=True),
        AddedToken("word", single_word=True),
        AddedToken("ÀB", normalized=True),
        AddedToken("Àb", normalized=False),
        AddedToken("the cat", normalized=False),
    ]


def old(root):
    """With transformers 4."""
    from transformers import BertTokenizer, GPT2Tokenizer, GPT2TokenizerFast, RobertaTokenizerFast

    vocab, merges = byte_level()
    base = root / ".base"
    config(base)
    vocab_and_merges(base, vocab, merges)

    def save(name, tokenizer, **fields):
        folder = root / name
        config(folder, **fields)
        tokenizer.save_pretrained(folder)
        return folder

    slow = GPT2Tokenizer.from_pretrained(base)
    slow.add_special_tokens({"pad_token": "<pad>"})
    slow.add_tokens(["<x>", "cathedral"])
    save("v4_slow_pad", slow)

    slow = GPT2Tokenizer.from_pretrained(base, add_bos_token=True, add_prefix_space=True)
    slow.add_tokens(flags())
    save("v4_slow_bos_flags", slow)

    fast = GPT2TokenizerFast.from_pretrained(base)
    fast.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<user>", "<bot>"]})
    fast.add_tokens(flags())
    save("v4_fast_flags", fast)

    fast = GPT2TokenizerFast.from_pretrained(base, add_prefix_space=True)
    save("v4_fast_prefix_space", fast)

    # As before transformers 4.34: no added_tokens_decoder anywhere.
    slow = GPT2Tokenizer.from_pretrained(base)
    slow.add_special_tokens({"pad_token": "<pad>", "cls_token": "<cls>"})
    slow.add_tokens(["<x>", "cathedral"])
    folder = save("v4_slow_before_decoder", slow)
    edit(folder / "tokenizer_config.json", lambda c: (c.pop("added_tokens_decoder"), c.pop("pad_token"), c.pop("cls_token")))

    # A tokenizer.json that was saved before tokens were added with another program.
    fast = GPT2TokenizerFast.from_pretrained(base)
    folder = save("v4_stale_json", fast)
    edit(folder / "tokenizer_config.json", lambda c: c.pop("added_tokens_decoder"))
    added = {"<new>": len(vocab), "<newer>": len(vocab) + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added) + "\n")

    roberta = root / ".roberta"
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    config(roberta)
    vocab_and_merges(roberta, *byte_level(specials))
    save("v4_roberta", RobertaTokenizerFast.from_pretrained(roberta))

    bert = root / ".bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(word_pieces()) + "\n", encoding="utf-8")
    slow = BertTokenizer.from_pretrained(bert, do_lower_case=False)
    slow.add_tokens(["<x>", AddedToken("Cathedral", single_word=True)])
    save("v4_bert_slow_cased", slow, tokenizer_class="BertTokenizer")

    for folder in (base, roberta, bert):
        shutil.rmtree(folder)


def new(root):
    """With transformers 5."""
    from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

    vocab, merges = byte_level()

    def gpt2(**arguments):
        return GPT2Tokenizer(vocab=dict(vocab), merges=list(merges), **arguments)

    def save(name, tokenizer, **fields):
        folder = root / name
        config(folder, **fields)
        tokenizer.save_pretrained(folder)
        return folder

    save("v5_plain", gpt2())
    tokenizer = gpt2()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    save("v5_pad_chat", tokenizer)
    tokenizer = gpt2()
    tokenizer.add_tokens(flags())
    tokenizer.add_special_tokens({"extra_special_tokens": ["<user>", AddedToken("<bot>", lstrip=True, special=True)]})
    save("v5_flags", tokenizer)
    save("v5_prefix_space", gpt2(add_prefix_space=True, clean_up_tokenization_spaces=True))
    tokenizer = gpt2()
    tokenizer.add_tokens([AddedToken("cat", single_word=True), AddedToken("Ġthe"), AddedToken("the")])
    save("v5_tokens_of_the_vocabulary", tokenizer)

    # add_bos_token counts where there is no tokenizer.json, and only there.
    for name, add in (("v5_bos_json", True), ("slow_bos_eos", False)):
        folder = root / name
        if add:
            save(name, gpt2())
        else:
            config(folder)
            vocab_and_merges(folder, vocab, merges)
            (folder / "tokenizer_config.json").write_text("{}")
        edit(folder / "tokenizer_config.json", lambda c: c.update(add_bos_token=True, add_eos_token=not add))
    folder = root / "slow_no_bos"
    config(folder)
    vocab_and_merges(folder, vocab, merges)
    settings = {"add_bos_token": True, "bos_token": None, "pad_token": "<pad>", "image_token": "<image>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    folder = root / "slow_bare"
    config(folder)
    vocab_and_merges(folder, vocab, merges)
    folder = root / "slow_gap"
    config(folder)
    vocab_and_merges(folder, vocab, merges)
    added = {"<pad>": len(vocab) + 7, "<mask>": len(vocab) + 3}
    (folder / "added_tokens.json").write_text(json.dumps(added) + "\n")

    # A vocabulary without <|endoftext|>: the class adds it.
    folder = root / "slow_own_specials"
    specials = ["<s>", "</s>", "<unk>", "<pad>"]
    config(folder)
    vocab_and_merges(folder, *byte_level(specials))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
    settings["unk_token"] = {"__type": "AddedToken", "content": "<unk>", "lstrip": True, "normalized": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")

    # A tokenizer.json alone, and one with parts that the class does not use.
    folder = save("json_alone", gpt2())
    (folder / "tokenizer_config.json").unlink()
    backend = gpt2().backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, vocab[END])]
    )
    backend.add_tokens(flags())
    folder = root / "json_own_parts_class_gpt2"
    config(folder)
    backend.save(str(folder / "tokenizer.json"))
    save("json_own_parts_class_fast", PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>"))
    folder = root / "json_unknown_class"
    config(folder)
    backend.enable_padding(pad_id=1, pad_token="<padding>")
    backend.enable_truncation(5)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MyOwnTokenizer"}) + "\n")

    tokenizer = gpt2()
    tokenizer.add_tokens(["<x>"])
    folder = save("v5_split_special", tokenizer)
    edit(folder / "tokenizer_config.json", lambda c: c.update(split_special_tokens=True))

    # Other models behind PreTrainedTokenizerFast.
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(vocab_size=60, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    words.add_tokens(flags())
    save("fast_word_level", PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>"))

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False),
    )
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", eos_token="</s>")
    tokenizer.add_tokens(flags())
    save("fast_unigram", tokenizer)

    # WordPiece.
    pieces = {token: i for i, token in enumerate(word_pieces())}
    folder = root / "vocab_txt"
    config(folder, tokenizer_class="BertTokenizer")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    folder = root / "vocab_txt_settings"
    config(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "strip_accents": True}
    settings |= {"tokenize_chinese_chars": False, "additional_special_tokens": ["<user>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")
    tokenizer = BertTokenizer(vocab=dict(pieces), do_lower_case=False, strip_accents=False)
    tokenizer.add_tokens(flags())
    tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    save("v5_bert_flags", tokenizer)
