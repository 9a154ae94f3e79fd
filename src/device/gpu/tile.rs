//! How the tiles of a product are cut. Owns the ways there are, and finding out which of them is the fastest on an adapter:
//! no cut is the best on all, and a poor one costs half of what a GPU can do. All add up in the same order.

use super::Gpu;
use crate::device::{Blob, Device, DeviceError, Dtype, Edit, Keep, Weight, Window};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A workgroup's tile: `lanes` x `lanes` invocations, each with `rows` rows x `4 * fours` columns of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    lanes: u32,
    rows: u32,
    fours: u32,
}

impl Tile {
    const fn new(lanes: u32, rows: u32, fours: u32) -> Tile {
        Tile { lanes, rows, fours }
    }

    /// 64 x 64 results.
    pub(super) const DEFAULT: Tile = Tile::new(16, 4, 1);

    /// All ways. Workgroup memory, 64 bytes for every row and every column of the tile, is at most what WebGPU promises.
    pub const PRESETS: [Tile; 4] = [Tile::DEFAULT, Tile::new(16, 8, 1), Tile::new(16, 8, 2), Tile::new(8, 8, 2)];

    /// The constants of a kernel that is cut so, in the order of its table entry.
    pub fn settings(self) -> [u32; 3] {
        [self.lanes, self.rows, self.fours]
    }

    /// Workgroups for so many rows and columns.
    pub(super) fn groups(self, rows: usize, cols: usize) -> [u32; 3] {
        let of = |n: usize, each: u32| n.div_ceil(each as usize) as u32;
        [of(cols, 4 * self.lanes * self.fours), of(rows, self.lanes * self.rows), 1]
    }

    /// As it is kept.
    fn name(self) -> String {
        format!("{}x{}x{}", self.lanes, self.rows, self.fours)
    }
}

/// Nothing more is tried after this long, compiling included: what is under way then is over within two seconds on whatever runs
/// a product of this size in a tenth of one.
const PATIENCE: Duration = Duration::from_millis(1000);

/// The part of the default's time that another cut may take at most to be taken: less is chance.
const CLEARLY: f64 = 0.97;

/// What came of a trial.
struct Trial {
    best: Tile,
    all_tried: bool,
}

/// gpt2's c_fc at 256 tokens: rows, k, columns.
const TRIAL: [usize; 3] = [256, 768, 3072];

impl Gpu {
    /// The device with what is known of this machine: its pipelines, as [`Gpu::keeping_pipelines`] says, and the cut that is the
    /// fastest here, the one that `keep` has for this adapter, driver and kernel, else the one that wins a trial, which is kept.
    /// Adapters that are programs are not tried. Where the environment variable `ACTSCOPE_TUNING` is `off`, as it is by default in
    /// builds for tests, nothing is tried and nothing is kept.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when the device failed meanwhile.
    pub async fn tuned(self, keep: Rc<dyn Keep>) -> Result<Gpu, DeviceError> {
        let off = std::env::var("ACTSCOPE_TUNING").map_or(cfg!(feature = "faults"), |value| value == "off");
        match off {
            true => Ok(self),
            false => self.tuned_anyway(keep).await,
        }
    }

    /// [`Gpu::tuned`], whatever the environment says.
    #[doc(hidden)]
    pub async fn tuned_anyway(self, keep: Rc<dyn Keep>) -> Result<Gpu, DeviceError> {
        let gpu = self.keeping_pipelines(keep.clone()).await;
        match gpu.info.software {
            true => Ok(gpu),
            false => gpu.with_best_tile(&*keep, PATIENCE).await,
        }
    }

    /// [`Gpu::tuned`], whatever the adapter. What came of a trial that ran out of patience is not kept.
    #[doc(hidden)]
    pub async fn with_best_tile(mut self, keep: &dyn Keep, patience: Duration) -> Result<Gpu, DeviceError> {
        let kernel = crc32fast::hash(super::kernels::LINEAR.source.as_bytes());
        let name = format!("tile of kernel {kernel:08x} on {} ({})", self.info.name, self.info.detail);
        let kept = keep.get(&name);
        if let Some(tile) = Tile::PRESETS.into_iter().find(|tile| kept.as_deref() == Some(tile.name().as_bytes())) {
            return Ok(Gpu { tile, ..self });
        }
        let trial = self.trial(patience).await?;
        self.tile = trial.best;
        if trial.all_tried {
            keep.put(&name, trial.best.name().as_bytes());
        }
        Ok(self)
    }

    /// Every cut in turn, compiled and warmed up before any is timed, three times; the shortest time of each counts. A cut that
    /// fails, since a driver refuses it, is out.
    async fn trial(&mut self, patience: Duration) -> Result<Trial, DeviceError> {
        let [rows, k, cols] = TRIAL;
        let numbers = |n: usize| (0..n).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect::<Vec<f32>>();
        let weight = |rows: usize, cols: usize| {
            let bytes: Vec<u8> = bytemuck::cast_slice(&numbers(rows * cols)).to_vec();
            let blob = Blob::new(Arc::new(bytes), 0..4 * rows * cols);
            self.load(&Weight { name: "trial".into(), dtype: Dtype::F32, rows, cols, blob })
        };
        let (w, bias) = (weight(k, cols)?, weight(1, cols)?);
        let mut x = self.empty(rows, k);
        self.edit(&mut x, &Window { rows: vec![0..rows], cols: 0..k }, &Edit::Replace(numbers(rows * k)));

        let begin = Instant::now();
        let mut shortest = Tile::PRESETS.map(|_| None);
        for round in 0..4 {
            for (tile, shortest) in Tile::PRESETS.into_iter().zip(&mut shortest) {
                if begin.elapsed() > patience || round > 0 && shortest.is_none() {
                    continue;
                }
                self.tile = tile;
                let turn = Instant::now();
                let done = self.products(&x, &w, &bias, if round == 0 { 1 } else { 4 }).await;
                *shortest = match (done, round) {
                    (Err(_), _) => {
                        self.fault.forget();
                        None
                    }
                    (Ok(()), 0) => Some(Duration::MAX),
                    (Ok(()), _) => Some(turn.elapsed().min(shortest.unwrap_or(Duration::MAX))),
                };
            }
        }
        let all_tried = begin.elapsed() <= patience;
        let of_default = shortest[0].unwrap_or(Duration::MAX);
        let mut best =
            (Tile::DEFAULT, if of_default == Duration::MAX { of_default } else { of_default.mul_f64(CLEARLY) });
        for (tile, shortest) in Tile::PRESETS.into_iter().zip(shortest).skip(1) {
            if let Some(shortest) = shortest.filter(|shortest| *shortest < best.1) {
                best = (tile, shortest);
            }
        }
        Ok(Trial { best: best.0, all_tried })
    }

    /// Carries out `n` products and waits for them.
    async fn products(
        &self,
        x: &super::Tensor,
        w: &super::Matrix,
        bias: &super::Matrix,
        n: usize,
    ) -> Result<(), DeviceError> {
        (0..n).for_each(|_| drop(self.linear(x, w, bias)));
        self.submit();
        self.settle(0).await
    }
}
