//! `.npy`: the array of one hook and nothing else, for `numpy.load`. Owns the layout. Read next: `store.rs`, which
//! fills it.

use super::npz::npy_header;
use super::store::Layout;
use crate::hooks::capture::ArrayKey;

pub(super) fn layout(shapes: Vec<(ArrayKey, Vec<usize>)>) -> Layout {
    let head = shapes.first().map(|(_, shape)| npy_header("<f4", shape)).unwrap_or_default();
    let Layout { mut places, size, .. } = Layout::bare(shapes);
    let start = head.len() as u64;
    places.values_mut().for_each(|place| place.start = place.start.saturating_add(start));
    Layout { between: vec![(0, head)], places, size: size.saturating_add(start) }
}
