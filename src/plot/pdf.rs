//! A scene as a PDF. Text becomes outlines: the SVG library that also draws PNGs lays it out, and krilla writes the
//! outlines to a page. Read next: `scene.rs`.

use krilla::Document;
use krilla::geom::Size;
use krilla::page::PageSettings;
use krilla_svg::{SurfaceExt, SvgSettings};
use usvg_of_krilla as usvg;

/// The page of an SVG without text, `width` by `height` points.
pub(super) fn page(svg: &str, (width, height): (f32, f32)) -> Result<Vec<u8>, String> {
    let tree = usvg::Tree::from_str(svg, &usvg::Options::default()).map_err(|e| e.to_string())?;
    let size = || Size::from_wh(width, height).ok_or("the picture has no size");
    let mut document = Document::new();
    let mut page = document.start_page_with(PageSettings::new(size()?));
    let mut surface = page.surface();
    surface.draw_svg(&tree, size()?, SvgSettings::default()).ok_or("the picture cannot be drawn on a page")?;
    surface.finish();
    page.finish();
    document.finish().map_err(|e| format!("{e:?}"))
}
