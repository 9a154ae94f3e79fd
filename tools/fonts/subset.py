"""Makes src/plot/fonts from the fonts that the packages below ship.

    npm pack dejavu-fonts-ttf@2.37.3 @expo-google-fonts/noto-emoji@0.4.7 @expo-google-fonts/noto-sans-jp@0.4.3
    for f in *.tgz; do mkdir -p ${f%.tgz} && tar xzf $f -C ${f%.tgz}; done
    pip install fonttools==4.68.0
    python tools/fonts/subset.py FOLDER-WITH-THE-UNPACKED-PACKAGES

What is kept is every character that is whole within one token of GPT-2's own vocabulary (but marks and signs that nobody can
see alone, which pictures escape), the blocks that such characters come
from where that is cheap, and the emoticons. Other characters are left to the system's fonts. Each font is one .woff file: SVG
files carry it as it is, and the rasteriser gets the TrueType tables that are deflated in it. Fonts are kept under their names:
DejaVu's licence asks for new ones only for "Bitstream", "Vera", "Arev" and "Tavmjong Bah", and the Noto fonts reserve none.
"""

import subprocess
import sys
from pathlib import Path

from fontTools.ttLib import TTFont

OUT = Path(__file__).parents[2] / "src/plot/fonts"

MONO = [
    (0x20, 0x52F),  # Latin, IPA, combining marks, Greek, Cyrillic
    (0x600, 0x6FF),  # Arabic
    (0x1E00, 0x27BF),  # more Latin and Greek, punctuation, currency, arrows, mathematics, boxes, symbols, dingbats
    (0xFB00, 0xFDFF),  # ligatures, Arabic forms
    (0xFE70, 0xFEFF),
    (0xFFFD, 0xFFFD),
]
HEBREW = [(0x590, 0x5FF)]
EMOTICONS = [(0x1F600, 0x1F64F)]
# Kana with their punctuation, and what else GPT-2's vocabulary has that the other fonts lack.
JAPANESE = [(0x3001, 0x30FF)] + [
    (ord(c), ord(c)) for c in "ⓘㅋ一三上不中之五人代作使光喚士大天契女姫子将戦方是極機武版王生田的神者装裏覚醒闘魔黒龍"
]

FONTS = [
    ("DejaVuSansMono", "dejavu-fonts-ttf-2.37.3/package/ttf/DejaVuSansMono.ttf", MONO),
    ("DejaVuSans", "dejavu-fonts-ttf-2.37.3/package/ttf/DejaVuSans.ttf", HEBREW),
    ("NotoEmoji", "expo-google-fonts-noto-emoji-0.4.7/package/400Regular/NotoEmoji_400Regular.ttf", EMOTICONS),
    ("NotoSansJP", "expo-google-fonts-noto-sans-jp-0.4.3/package/400Regular/NotoSansJP_400Regular.ttf", JAPANESE),
]


def main(packages: Path) -> None:
    for name, source, ranges in FONTS:
        has = TTFont(packages / source).getBestCmap()
        kept = [c for a, b in ranges for c in range(a, b + 1) if c in has]
        out = OUT / f"{name}.woff"
        # Arabic is unreadable without its layout features; those of the Japanese font are other shapes, four times the size.
        features = "" if name == "NotoSansJP" else "*"
        options = [f"--layout-features={features}", "--no-hinting", "--notdef-outline", "--name-IDs=*", "--flavor=woff"]
        unicodes = "--unicodes=" + ",".join(f"{c:X}" for c in kept)
        subprocess.run(["pyftsubset", packages / source, unicodes, f"--output-file={out}", *options], check=True)
        print(f"{out.name}: {len(kept)} characters, {out.stat().st_size:,} bytes")


main(Path(sys.argv[1]))
