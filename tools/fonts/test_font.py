"""Makes tests/fonts/square.ttf: a font whose one character, U+13000, is a black square as large as the letters are.

    pip install fonttools==4.68.0
    python tools/fonts/test_font.py

The character is an Egyptian hieroglyph, which neither the embedded fonts nor those of most machines have.
"""

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen


def square(size: int):
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in [(0, size), (size, size), (size, 0)]:
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


font = FontBuilder(1000, isTTF=True)
font.setupGlyphOrder([".notdef", "square"])
font.setupCharacterMap({0x13000: "square"})
font.setupGlyf({".notdef": square(0), "square": square(1000)})
font.setupHorizontalMetrics({".notdef": (0, 0), "square": (1000, 0)})
font.setupHorizontalHeader(ascent=1000, descent=0)
font.setupNameTable({"familyName": "Square", "styleName": "Regular", "psName": "Square-Regular"})
font.setupOS2()
font.setupPost()
font.font["head"].created = font.font["head"].modified = 0
font.save(Path(__file__).parents[2] / "tests/fonts/square.ttf")
