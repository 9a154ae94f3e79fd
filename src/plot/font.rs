//! The fonts of pictures: which characters can be drawn, how wide a text is, and the fonts in the formats of the
//! rasteriser and of browsers.
//!
//! Four fonts are inside the binary, so that a picture looks the same everywhere. They have every visible character
//! that a single token of GPT-2's vocabulary contains. Other characters (most of Chinese, Japanese and Korean, most
//! emoji) use system fonts: the viewer's in an SVG, which contains the character itself; this machine's in a PNG. In a
//! PNG, a character that no font has is written as an escape (`\u{4f60}`), not as an empty box. `tools/fonts` builds
//! the embedded fonts; their licences are beside them in `fonts/`. Read next: `scene.rs`.

use flate2::read::ZlibDecoder;
use resvg::usvg::FontResolver;
use resvg::usvg::fontdb::{Database, FaceInfo, ID, Source, Style};
use skrifa::charmap::Charmap;
use skrifa::{FontRef, MetadataProvider};
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, LazyLock, Mutex};
use unicode_width::UnicodeWidthStr;

/// One embedded font as WOFF 1 (each TrueType table is deflated), the form in which SVG files embed it.
pub(super) struct Font {
    pub family: &'static str,
    pub woff: &'static [u8],
}

macro_rules! font {
    ($family:literal, $file:literal) => {
        Font { family: $family, woff: include_bytes!(concat!("fonts/", $file, ".woff")) }
    };
}

/// The fonts, in the order in which they are searched for a character.
pub(super) static FONTS: [Font; 4] = [
    font!("DejaVu Sans Mono", "DejaVuSansMono"),
    font!("DejaVu Sans", "DejaVuSans"),
    font!("Noto Emoji", "NotoEmoji"),
    font!("Noto Sans JP", "NotoSansJP"),
];

/// [`FONTS`] as TrueType, for the rasteriser.
static TRUE_TYPE: LazyLock<[Vec<u8>; FONTS.len()]> =
    LazyLock::new(|| FONTS.each_ref().map(|font| true_type(font.woff).expect("the binary's own fonts are whole")));

static CHARMAPS: LazyLock<Vec<Charmap<'static>>> = LazyLock::new(|| {
    let charmap = |font: &'static Vec<u8>| FontRef::new(font).expect("the binary's own fonts are whole").charmap();
    TRUE_TYPE.iter().map(charmap).collect()
});

/// Unpacks a WOFF 1 file (W3C Recommendation, 2012) to TrueType; `None` if it is not WOFF 1.
fn true_type(woff: &[u8]) -> Option<Vec<u8>> {
    let u16_at = |at: usize| Some(u16::from_be_bytes(woff.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_be_bytes(woff.get(at..at + 4)?.try_into().ok()?));
    if woff.get(..4)? != b"wOFF" {
        return None;
    }
    let n_tables = u16_at(12)?;
    // The fields for a binary search over the table directory.
    let entry_selector = n_tables.checked_ilog2()? as u16;
    let search_range = 16u16.checked_shl(entry_selector.into())?;
    let mut font = woff.get(4..8)?.to_vec();
    for number in [n_tables, search_range, entry_selector, (n_tables * 16).checked_sub(search_range)?] {
        font.extend(number.to_be_bytes());
    }
    let mut tables = Vec::new();
    let first_table = font.len() + 16 * usize::from(n_tables);
    for entry in (0..usize::from(n_tables)).map(|i| 44 + 20 * i) {
        let [offset, packed, length] = [4, 8, 12].map(|field| u32_at(entry + field).map(|n| n as usize));
        let (offset, packed, length) = (offset?, packed?, length?);
        // Tag and checksum, then the table's offset and length.
        font.extend(woff.get(entry..entry + 4)?);
        font.extend(woff.get(entry + 16..entry + 20)?);
        font.extend(u32::try_from(first_table + tables.len()).ok()?.to_be_bytes());
        font.extend(u32::try_from(length).ok()?.to_be_bytes());
        let stored = woff.get(offset..offset.checked_add(packed)?)?;
        let begin = tables.len();
        if packed == length {
            tables.extend(stored)
        } else {
            _ = ZlibDecoder::new(stored).read_to_end(&mut tables).ok()?
        }
        if tables.len() - begin != length {
            return None;
        }
        tables.resize(tables.len().next_multiple_of(4), 0);
    }
    font.extend(tables);
    Some(font)
}

/// The first embedded font that has a character.
pub(super) fn font_of(c: char) -> Option<usize> {
    CHARMAPS.iter().position(|charmap| charmap.map(c).is_some())
}

/// Decides which characters a picture draws; the others are escaped.
pub type Shows = fn(char) -> bool;

/// For SVG: all characters, because viewers have fonts for those that ours lack.
pub fn in_svg(_: char) -> bool {
    true
}

/// For PNG: characters that an embedded font or a font of this machine has.
pub fn in_png(c: char) -> bool {
    font_of(c).is_some() || face_of_system(c).is_some()
}

/// The embedded fonts, for the rasteriser.
static OWN: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut own = Database::new();
    for font in TRUE_TYPE.iter() {
        own.load_font_source(Source::Binary(Arc::new(font.as_slice())));
    }
    Arc::new(own)
});

/// The embedded fonts, followed by this machine's. Reading all of its fonts is slow, so they are loaded only when a
/// character needs them.
static ALL: LazyLock<Arc<Database>> = LazyLock::new(|| {
    let mut all = Database::clone(&OWN);
    all.load_system_fonts();
    Arc::new(all)
});

/// This machine's fonts, those of regular weight and style first.
static OF_SYSTEM: LazyLock<Vec<ID>> = LazyLock::new(|| {
    let mut faces: Vec<&FaceInfo> = ALL.faces().skip(FONTS.len()).collect();
    faces.sort_by_key(|face| (face.style != Style::Normal, face.weight.0.abs_diff(400)));
    faces.into_iter().map(|face| face.id).collect()
});

/// The first font of this machine that can draw a character that the embedded fonts lack.
fn face_of_system(c: char) -> Option<ID> {
    static FOUND: LazyLock<Mutex<HashMap<char, Option<ID>>>> = LazyLock::new(Mutex::default);
    // A bitmap font maps characters too, but the rasteriser has only outlines.
    let draws = |data: &[u8], index: u32| {
        let Ok(font) = FontRef::from_index(data, index) else { return false };
        font.charmap()
            .map(c)
            .is_some_and(|glyph| font.outline_glyphs().get(glyph).is_some() || font.color_glyphs().get(glyph).is_some())
    };
    let find = || OF_SYSTEM.iter().copied().find(|id| ALL.with_face_data(*id, draws).unwrap_or(false));
    *FOUND.lock().ok()?.entry(c).or_insert_with(find)
}

/// The fonts for the rasteriser: the embedded ones and, if a text needs more, this machine's.
pub(super) fn database(of_system: bool) -> Arc<Database> {
    if of_system { ALL.clone() } else { OWN.clone() }
}

/// How the rasteriser chooses a font: the first embedded one, or else the first that has the character.
pub(super) fn resolver() -> FontResolver<'static> {
    let own = |font: usize| OWN.faces().nth(font).map(|face| face.id);
    FontResolver {
        select_font: Box::new(move |_, _| own(0)),
        select_fallback: Box::new(move |c, used, fonts| {
            let face = font_of(c).and_then(own).or_else(|| {
                // Used only for characters that needed them before, see `in_png`.
                if fonts.len() > FONTS.len() { face_of_system(c) } else { None }
            })?;
            Some(face).filter(|face| !used.contains(face))
        }),
    }
}

/// Width of one column of text, in units of the font's size.
const COLUMN: f32 = 0.602;

/// The width of a text in pixels. Slightly overestimated for characters outside the main font.
pub(super) fn width(text: &str, size: f32) -> f32 {
    text.width() as f32 * COLUMN * size
}

/// Truncates a text to `room` pixels, with `…` at the end if something is missing.
pub(super) fn fit(text: &str, size: f32, room: f32) -> String {
    cut(text, (room / (COLUMN * size)) as usize)
}

/// Breaks a text at spaces into lines of at most `room` pixels. At most `most` lines; the last one is truncated, with `…` at its
/// end, if something is missing.
pub(super) fn wrap(text: &str, size: f32, room: f32, most: usize) -> Vec<String> {
    let columns = (room / (COLUMN * size)) as usize;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_inclusive(' ') {
        let is_last = lines.len() == most;
        match lines.last_mut() {
            Some(line) if is_last || line.width() + word.trim_end().width() <= columns => line.push_str(word),
            _ => lines.push(word.into()),
        }
    }
    lines.into_iter().map(|line| cut(line.trim_end(), columns)).collect()
}

/// Truncates a text to some columns, with `…` at the end if something is missing.
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
            assert!(font_of(c).is_some(), "{c}");
        }
        assert!(['你', '한', '🦀'].into_iter().all(|c| font_of(c).is_none() && in_svg(c)));
        // A noncharacter: Unicode never assigns this code point.
        assert!(!in_png('\u{10ffff}'));
        assert_eq!(
            (cut("a token", 7), cut("a token", 6), cut("ゼウスx", 4)),
            ("a token".into(), "a tok…".into(), "ゼ…".into())
        );
    }

    #[test]
    fn lines_break_at_spaces() {
        let wrap = |text: &str, columns: usize, most: usize| wrap(text, 1.0, COLUMN * (columns as f32 + 0.5), most);
        assert_eq!(wrap("one two three", 7, 9), ["one two", "three"]);
        assert_eq!(wrap("one two three", 6, 9), ["one", "two", "three"]);
        assert_eq!(wrap("one two three four", 7, 2), ["one two", "three …"]);
        assert_eq!(wrap("a-word-too-long b", 7, 9), ["a-word…", "b"]);
        assert_eq!(wrap("", 7, 9), Vec::<String>::new());
    }

    /// Every table matches its checksum, the sum of its words. Seen to fail with each table shifted by one byte.
    #[test]
    fn the_tables_are_those_that_were_packed() {
        for font in TRUE_TYPE.iter() {
            let word = |at: usize| u32::from_be_bytes(font[at..at + 4].try_into().unwrap());
            let n_tables = usize::from(u16::from_be_bytes([font[4], font[5]]));
            assert!(n_tables > 8);
            for entry in (0..n_tables).map(|i| 12 + 16 * i) {
                let (at, length) = (word(entry + 8) as usize, word(entry + 12) as usize);
                let sum = (at..at + length).step_by(4).fold(0u32, |sum, at| sum.wrapping_add(word(at)));
                // The table `head` holds the whole file's checksum, which counts as 0.
                let is_head = &font[entry..entry + 4] == b"head";
                let sum = if is_head { sum.wrapping_sub(word(at + 8)) } else { sum };
                assert_eq!(sum, word(entry + 4), "{}", String::from_utf8_lossy(&font[entry..entry + 4]));
            }
        }
        assert_eq!(true_type(b"wOF2 is another format"), None);
    }
}
