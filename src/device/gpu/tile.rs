//! How the tiles of a product are cut. Owns the ways there are; which of them is fastest is the adapter's to say.

/// A workgroup's tile: `lanes` x `lanes` invocations, each with `rows` rows x `4 * fours` columns of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub(super) lanes: u32,
    pub(super) rows: u32,
    pub(super) fours: u32,
}

impl Tile {
    const fn new(lanes: u32, rows: u32, fours: u32) -> Tile {
        Tile { lanes, rows, fours }
    }

    /// 64 x 64 results.
    pub(super) const DEFAULT: Tile = Tile::new(16, 4, 1);

    /// All ways. Workgroup memory, 256 bytes for every row and every column of the tile, is at most what WebGPU promises.
    pub(super) const PRESETS: [Tile; 4] = [Tile::DEFAULT, Tile::new(16, 8, 1), Tile::new(16, 8, 2), Tile::new(8, 8, 2)];

    /// The constants of a kernel that is cut so, in the order of its table entry.
    pub(super) fn settings(self) -> [u32; 3] {
        [self.lanes, self.rows, self.fours]
    }

    /// Workgroups for so many rows and columns.
    pub(super) fn groups(self, rows: usize, cols: usize) -> [u32; 3] {
        let of = |n: usize, each: u32| n.div_ceil(each as usize) as u32;
        [of(cols, 4 * self.lanes * self.fours), of(rows, self.lanes * self.rows), 1]
    }
}
