//! The fonts of pictures, which are inside the binary so that a picture looks the same everywhere: which characters they
//! have, how wide a text is, and the fonts in the form that the rasteriser and the browsers want. What they lack is written
//! as an escape (`\u{4f60}`), never as an empty box. They have every visible character that is whole within a token of
//! GPT-2's vocabulary. `tools/fonts` is their recipe; their licences lie beside them in `fonts/`.

use resvg::usvg::fontdb::Database;
use skrifa::charmap::Charmap;
use skrifa::{FontRef, MetadataProvider};
use std::sync::{Arc, LazyLock};
use unicode_width::UnicodeWidthStr;

/// One font twice: as the rasteriser reads it, and packed for SVG files.
pub(super) struct Font {
    pub family: &'static str,
    ttf: &'static [u8],
    pub woff2: &'static [u8],
}

macro_rules! font {
    ($family:literal, $file:literal) => {
        Font {
            family: $family,
            ttf: include_bytes!(concat!("fonts/", $file, ".ttf")),
            woff2: include_bytes!(concat!("fonts/", $file, ".woff2")),
        }
    };
}

/// In the order in which they are asked for a character.
pub(super) static FONTS: [Font; 4] = [
    font!("DejaVu Sans Mono", "DejaVuSansMono"),
    font!("DejaVu Sans", "DejaVuSans"),
    font!("Noto Emoji", "NotoEmoji"),
    font!("Noto Sans JP", "NotoSansJP"),
];

static CHARMAPS: LazyLock<Vec<Charmap<'static>>> = LazyLock::new(|| {
    FONTS.iter().map(|font| FontRef::new(font.ttf).expect("the binary's own fonts are whole").charmap()).collect()
});

/// The first font that has a character.
pub(super) fn font_of(c: char) -> Option<usize> {
    CHARMAPS.iter().position(|charmap| charmap.map(c).is_some())
}

/// True for characters that pictures can show.
pub fn has(c: char) -> bool {
    font_of(c).is_some()
}

/// The fonts for the rasteriser.
pub(super) fn database() -> Arc<Database> {
    static DATABASE: LazyLock<Arc<Database>> = LazyLock::new(|| {
        let mut all = Database::new();
        FONTS.iter().for_each(|font| all.load_font_data(font.ttf.to_vec()));
        Arc::new(all)
    });
    DATABASE.clone()
}

/// Width of one column of text, in units of the font's size.
const COLUMN: f32 = 0.602;

/// How wide a text is in pixels; a little too much where it holds other than the main font's characters.
pub(super) fn width(text: &str, size: f32) -> f32 {
    text.width() as f32 * COLUMN * size
}

/// As much of a text as fits into `room` pixels, with `…` where something is missing.
pub(super) fn fit(text: &str, size: f32, room: f32) -> String {
    cut(text, (room / (COLUMN * size)) as usize)
}

/// As much of a text as fits into some columns, with `…` where something is missing.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.into();
    }
    let mut kept = String::new();
    for c in text.chars() {
        let mut buffer = [0; 4];
        if kept.width() + c.encode_utf8(&mut buffer).width() + 1 > columns {
            break;
        }
        kept.push(c);
    }
    if columns > 0 { kept + "…" } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_the_vocabulary_and_what_is_lacked() {
        for c in "aé␣…→·ßЖλشא🙂ゼ龍喚ー」ⓘㅋ".chars() {
            assert!(has(c), "{c}");
        }
        assert!(!has('你') && !has('한') && !has('🦀'));
        assert_eq!(
            (cut("a token", 7), cut("a token", 6), cut("ゼウスx", 4)),
            ("a token".into(), "a tok…".into(), "ゼ…".into())
        );
    }
}
