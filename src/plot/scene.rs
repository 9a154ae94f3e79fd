//! A picture under construction: text, lines and grids of coloured cells, in pixels. It is written as SVG, PNG or PDF;
//! resvg rasterises it. Uses no activations.
//!
//! Text in an SVG stays text, so that it can be selected, searched and edited. The SVG embeds the fonts that it needs.
//! Viewers that ignore them fall back to a monospaced font of the same width, and use their own fonts for characters
//! that ours lack. A small grid consists of rectangles with a tooltip of their value. A large grid is an embedded
//! image, which nearly every viewer shows far faster. Read next: `font.rs` and `colour.rs`.

use super::colour::{Rgb, Scale, number};
use super::font::{self, FONTS};
use crate::output::escape_xml;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ndarray::Array2;
use resvg::tiny_skia::{FilterQuality, Pixmap, PixmapPaint, Transform};
use resvg::usvg;
use std::fmt::Write;

/// Pixels of a PNG per pixel of the scene, unless the PNG would be too large.
const SHARPNESS: f32 = 2.0;
/// A PNG with more pixels than this is drawn without [`SHARPNESS`].
const MANY_PIXELS: f32 = 6e7;
/// The most cells of a picture that are drawn as rectangles.
const MOST_RECTANGLES: usize = 10_000;

/// Which point of a text is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are SVG's")]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A grid as an image with one pixel per cell, shown enlarged.
#[derive(Debug)]
struct Image {
    x: f32,
    y: f32,
    cell: (f32, f32),
    cells: Pixmap,
}

/// A picture.
#[derive(Debug)]
pub struct Scene {
    width: f32,
    height: f32,
    images: Vec<Image>,
    rectangles: String,
    rectangles_left: usize,
    over: String,
    /// Which of [`FONTS`] the texts need.
    fonts: [bool; FONTS.len()],
    /// Whether a text has characters that none of [`FONTS`] has.
    needs_more: bool,
    title: String,
}

/// The size of a picture's text.
pub const TEXT: f32 = 11.0;

impl Scene {
    /// An empty picture whose grids will have `cells` cells in total. `title` describes it for people who cannot see
    /// it.
    pub fn new(width: f32, height: f32, cells: usize, title: &str) -> Scene {
        let rectangles_left = if cells <= MOST_RECTANGLES { cells } else { 0 };
        Scene {
            width: width.ceil(),
            height: height.ceil(),
            images: Vec::new(),
            rectangles: String::new(),
            rectangles_left,
            over: String::new(),
            fonts: [false; FONTS.len()],
            needs_more: false,
            title: title.into(),
        }
    }

    /// A text with its baseline at `y`.
    pub fn text(&mut self, x: f32, y: f32, size: f32, anchor: Anchor, colour: Rgb, text: &str) {
        self.put(&format!("x=\"{x:.1}\" y=\"{y:.1}\""), size, anchor, colour, text);
    }

    /// A text in the middle of a cell. The pointer does not see it, so that the cell keeps its tooltip.
    pub fn text_in_cell(&mut self, (x, y): (f32, f32), size: f32, colour: Rgb, text: &str) {
        let y = y + 0.36 * size;
        self.put(&format!("x=\"{x:.1}\" y=\"{y:.1}\" pointer-events=\"none\""), size, Anchor::Middle, colour, text);
    }

    /// A text rotated to read upwards, with its baseline at `x`.
    pub fn text_upwards(&mut self, x: f32, y: f32, size: f32, anchor: Anchor, text: &str) {
        self.put(&format!("transform=\"translate({x:.1} {y:.1}) rotate(-90)\""), size, anchor, Rgb(0, 0, 0), text);
    }

    fn put(&mut self, place: &str, size: f32, anchor: Anchor, colour: Rgb, text: &str) {
        for font in text.chars().map(font::font_of) {
            match font {
                Some(font) => self.fonts[font] = true,
                None => self.needs_more = true,
            }
        }
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let fill = if colour == Rgb(0, 0, 0) { String::new() } else { format!(" fill=\"{}\"", colour.css()) };
        let size = if size == TEXT { String::new() } else { format!(" font-size=\"{size}\"") };
        let _ = writeln!(self.over, "<text {place}{size}{anchor}{fill}>{}</text>", escape_xml(text));
    }

    /// A line.
    pub fn line(&mut self, (x1, y1): (f32, f32), (x2, y2): (f32, f32)) {
        let _ =
            writeln!(self.over, "<path d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\" stroke=\"#000\" stroke-width=\"0.8\"/>");
    }

    /// A curve from one point upwards to another, which it reaches from below. In between it swings `aside` pixels to the right.
    /// `told` is its tooltip.
    pub fn curve(
        &mut self,
        ((x1, y1), (x2, y2)): ((f32, f32), (f32, f32)),
        aside: f32,
        (width, colour): (f32, Rgb),
        told: &str,
    ) {
        let bend = ((y1 - y2) / 2.0).max(12.0);
        let (c1, c2) = ((x1 + aside, y1 - bend), (x2 + aside, y2 + bend));
        let _ = writeln!(
            self.over,
            "<path d=\"M{x1:.1} {y1:.1}C{:.1} {:.1} {:.1} {:.1} {x2:.1} {y2:.1}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width:.1}\"><title>{}</title></path>",
            c1.0,
            c1.1,
            c2.0,
            c2.1,
            colour.css(),
            escape_xml(told)
        );
    }

    /// A white box with a text in its centre.
    pub fn label(&mut self, (x, y): (f32, f32), (width, height): (f32, f32), text: &str) {
        let _ = writeln!(
            self.over,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" fill=\"#fff\" stroke=\"#000\" stroke-width=\"0.8\"/>"
        );
        self.text(x + width / 2.0, y + height / 2.0 + 4.0, TEXT, Anchor::Middle, Rgb(0, 0, 0), text);
    }

    /// The outline of a rectangle.
    pub fn frame(&mut self, x: f32, y: f32, width: f32, height: f32, stroke: f32) {
        let _ = writeln!(
            self.over,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" stroke=\"#000\" stroke-width=\"{stroke}\"/>"
        );
    }

    /// A triangle of colour through three points.
    fn triangle(&mut self, points: [(f32, f32); 3], colour: Rgb) {
        let [a, b, c] = points.map(|(x, y)| format!("{x:.1} {y:.1}"));
        let _ = writeln!(
            self.over,
            "<path d=\"M{a}L{b}L{c}Z\" fill=\"{}\" stroke=\"#000\" stroke-width=\"0.8\"/>",
            colour.css()
        );
    }

    /// Coloured cells of `cell` pixels (width, height), row by row from (x, y). `tell` returns a cell's tooltip.
    pub fn grid(
        &mut self,
        (x, y): (f32, f32),
        cell: (f32, f32),
        colours: &Array2<Rgb>,
        tell: impl Fn(usize, usize) -> String,
    ) {
        let (rows, cols) = colours.dim();
        if colours.len() <= self.rectangles_left {
            self.rectangles_left -= colours.len();
            for ((row, col), colour) in colours.indexed_iter() {
                let (x, y) = (x + col as f32 * cell.0, y + row as f32 * cell.1);
                let ((width, height), fill) = (cell, colour.css());
                let place = format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"");
                let _ = match tell(row, col) {
                    told if told.is_empty() => writeln!(self.rectangles, "{place}/>"),
                    told => writeln!(self.rectangles, "{place}><title>{}</title></rect>", escape_xml(&told)),
                };
            }
        } else if let Some(mut cells) = Pixmap::new(cols as u32, rows as u32) {
            for (pixel, Rgb(r, g, b)) in cells.data_mut().chunks_exact_mut(4).zip(colours) {
                pixel.copy_from_slice(&[*r, *g, *b, 255]);
            }
            self.images.push(Image { x, y, cell, cells });
        }
    }

    /// A scale as a vertical bar from (x, y), a whole number of pixels high. Its numbers are to the right, its notes
    /// below, its name beside it. Its ends are arrows if values are beyond them.
    pub fn colour_bar(&mut self, (x, y): (f32, f32), height: f32, scale: &Scale, name: &str) {
        let lowest = if scale.signed() { -1.0 } else { 0.0 };
        let steps = height as usize;
        let at = |step: usize| 1.0 - (1.0 - lowest) * (step as f32 + 0.5) / height;
        let bar = Array2::from_shape_fn((steps, 1), |(step, _)| scale.colour_at(at(step)));
        self.rectangles_left += steps;
        self.grid((x, y), (BAR_WIDTH, 1.0), &bar, |_, _| String::new());
        self.frame(x, y, BAR_WIDTH, height, 0.8);
        if scale.clipped() {
            let middle = x + BAR_WIDTH / 2.0;
            let bottom = y + height;
            self.triangle([(x, y), (middle, y - 8.0), (x + BAR_WIDTH, y)], scale.colour_at(1.0));
            self.triangle([(x, bottom), (middle, bottom + 8.0), (x + BAR_WIDTH, bottom)], scale.colour_at(-1.0));
        }
        for tick in scale.ticks((height / 26.0) as usize) {
            let place = (scale.place(tick) - lowest) / (1.0 - lowest);
            let at = y + height * (1.0 - place);
            self.line((x + BAR_WIDTH, at), (x + BAR_WIDTH + 4.0, at));
            self.text(x + BAR_WIDTH + 7.0, at + 4.0, TEXT, Anchor::Start, Rgb(0, 0, 0), &number(tick));
        }
        self.text_upwards(x + BAR_WIDTH + 62.0, y + height / 2.0, TEXT, Anchor::Middle, name);
        for (i, note) in scale.notes().iter().enumerate() {
            self.text(x, y + height + 24.0 + 14.0 * i as f32, 10.0, Anchor::Start, Rgb(0, 0, 0), note);
        }
    }

    /// The picture as an SVG document.
    pub fn svg(&self) -> Result<String, String> {
        let mut fonts = String::new();
        for (font, _) in FONTS.iter().zip(self.fonts).filter(|(_, used)| *used) {
            let data = BASE64_STANDARD.encode(font.woff);
            let family = font.family;
            let _ = writeln!(fonts, "@font-face{{font-family:'{family}';src:url(data:font/woff;base64,{data})}}");
        }
        let images = self.images()?;
        Ok(self.document(&format!(
            "<style>{fonts}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{images}"
        )))
    }

    /// The grids that are images, as elements.
    fn images(&self) -> Result<String, String> {
        let mut images = String::new();
        for Image { x, y, cell, cells } in &self.images {
            // One image pixel per pixel of the scene, because some viewers blur enlarged images.
            let large = enlarged(cells, (cell.0.round().max(1.0), cell.1.round().max(1.0)))?;
            let data = BASE64_STANDARD.encode(large.encode_png().map_err(|e| e.to_string())?);
            let (width, height) = (cells.width() as f32 * cell.0, cells.height() as f32 * cell.1);
            let _ = writeln!(
                images,
                "<image x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" preserveAspectRatio=\"none\" style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{data}\"/>"
            );
        }
        Ok(images)
    }

    /// The picture as a PNG file, with two pixels per pixel of the scene unless that is too large.
    pub fn png(&self) -> Result<Vec<u8>, String> {
        let sharpness = if self.width * self.height * SHARPNESS * SHARPNESS > MANY_PIXELS { 1.0 } else { SHARPNESS };
        let (width, height) = (self.width * sharpness, self.height * sharpness);
        let too_large =
            || format!("a picture of {width} x {height} pixels is more than can be drawn; choose less, or .svg");
        let mut pixels = Pixmap::new(width as u32, height as u32).ok_or_else(too_large)?;
        pixels.fill(resvg::tiny_skia::Color::WHITE);
        let paint = PixmapPaint { quality: FilterQuality::Nearest, ..PixmapPaint::default() };
        for Image { x, y, cell, cells } in &self.images {
            let place = Transform::from_row(cell.0, 0.0, 0.0, cell.1, *x, *y).post_scale(sharpness, sharpness);
            pixels.draw_pixmap(0, 0, cells.as_ref(), &paint, place, None);
        }
        let tree = self.tree(&self.document(""))?;
        resvg::render(&tree, Transform::from_scale(sharpness, sharpness), &mut pixels.as_mut());
        pixels.encode_png().map_err(|e| e.to_string())
    }

    /// The picture as a PDF, with one point per pixel of the scene. Text is outlines.
    #[cfg(feature = "pdf")]
    pub fn pdf(&self) -> Result<Vec<u8>, String> {
        let tree = self.tree(&self.document(&self.images()?))?;
        let outlines = usvg::WriteOptions { preserve_text: false, ..usvg::WriteOptions::default() };
        super::pdf::page(&tree.to_string(&outlines), (self.width, self.height))
    }

    /// The parsed document for the renderer, with the embedded fonts and the system's.
    fn tree(&self, document: &str) -> Result<usvg::Tree, String> {
        let mut options = usvg::Options { font_family: FONTS[0].family.into(), ..usvg::Options::default() };
        options.fontdb = font::database(self.needs_more);
        options.font_resolver = font::resolver();
        usvg::Tree::from_str(document, &options).map_err(|e| e.to_string())
    }

    /// The SVG document with extra elements between its head and the rectangles.
    fn document(&self, first: &str) -> String {
        let (width, height) = (self.width, self.height);
        let families: Vec<String> = FONTS.iter().map(|font| format!("'{}'", font.family)).collect();
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\" xml:space=\"preserve\" font-family=\"{},{OTHER_FAMILIES}\" font-size=\"{TEXT}\">\n\
             <title>{}</title>\n{first}<g shape-rendering=\"crispEdges\">\n{}</g>\n{}</svg>\n",
            families.join(","),
            escape_xml(&self.title),
            self.rectangles,
            self.over
        )
    }
}

/// System fonts that an SVG names as fallback: monospaced ones of the same width, then those for Chinese, Japanese,
/// Korean and emoji.
const OTHER_FAMILIES: &str = "Menlo,Consolas,'Noto Sans CJK SC','Noto Sans SC','PingFang SC','Microsoft YaHei','Hiragino Sans',\
                              'Yu Gothic','Apple SD Gothic Neo','Malgun Gothic','Noto Color Emoji','Apple Color Emoji',\
                              'Segoe UI Emoji',monospace";

/// Width of a colour bar's colours.
const BAR_WIDTH: f32 = 14.0;
/// Width of a colour bar with its numbers, notes and name.
pub const BAR_ROOM: f32 = 120.0;

/// Enlarges an image: every pixel becomes a rectangle.
fn enlarged(cells: &Pixmap, by: (f32, f32)) -> Result<Pixmap, String> {
    let (width, height) = (cells.width() * by.0 as u32, cells.height() * by.1 as u32);
    let mut large = Pixmap::new(width, height).ok_or("the picture is larger than can be drawn; choose less")?;
    let paint = PixmapPaint { quality: FilterQuality::Nearest, ..PixmapPaint::default() };
    large.draw_pixmap(0, 0, cells.as_ref(), &paint, Transform::from_scale(by.0, by.1), None);
    Ok(large)
}
