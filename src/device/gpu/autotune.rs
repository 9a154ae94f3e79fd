//! How products of many rows are cut into tiles. Owns the ways there are, and finding out which of them is the fastest on an
//! adapter: no cut is the best on all, and a poor one costs half of what a GPU can do. None is taken whose results are wrong.

use super::Gpu;
use super::kernels::{self, Kernel};
use crate::device::lockstep::Lockstep;
use crate::device::{Blob, Device, DeviceCache, DeviceError, Dtype, Operations, Part, StoredWeight};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A workgroup's tile of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// `lanes` x `lanes` invocations, each with `rows` rows x `4 * fours` columns. All of these add up in the same order.
    Lanes {
        /// Along each side of the tile.
        lanes: u32,
        /// Of each invocation.
        rows: u32,
        /// Groups of four columns of each invocation.
        fours: u32,
    },
    /// Four subgroups of so many lanes, each with 32 x 32 results in cooperative matrices.
    Matrices {
        /// Of a subgroup.
        lanes: u32,
    },
}

impl Tile {
    const fn new(lanes: u32, rows: u32, fours: u32) -> Tile {
        Tile::Lanes { lanes, rows, fours }
    }

    /// 64 x 64 results.
    pub(super) const DEFAULT: Tile = Tile::new(16, 4, 1);

    /// The ways that every adapter has. Workgroup memory, 64 bytes for every row and every column of the tile, is at most what
    /// WebGPU promises.
    pub const PRESETS: [Tile; 4] = [Tile::DEFAULT, Tile::new(16, 8, 1), Tile::new(16, 8, 2), Tile::new(8, 8, 2)];

    /// The kernel of a product with a weight, and that of the unembedding.
    pub fn kernels(self) -> [&'static Kernel; 2] {
        match self {
            Tile::Lanes { .. } => [&kernels::LINEAR, &kernels::UNEMBED],
            Tile::Matrices { .. } => [&kernels::LINEAR_MATRICES, &kernels::UNEMBED_MATRICES],
        }
    }

    /// The constants of a kernel that is cut so, in the order of its table entry.
    pub fn settings(self) -> Vec<u32> {
        match self {
            Tile::Lanes { lanes, rows, fours } => vec![lanes, rows, fours],
            Tile::Matrices { lanes } => vec![lanes],
        }
    }

    /// Workgroups for so many rows and columns.
    pub(super) fn groups(self, rows: usize, cols: usize) -> [u32; 3] {
        let of = |n: usize, each: u32| n.div_ceil(each as usize) as u32;
        let [tile_rows, tile_cols] = match self {
            Tile::Lanes { lanes, rows, fours } => [lanes * rows, 4 * lanes * fours],
            Tile::Matrices { .. } => [64, 64],
        };
        [of(cols, tile_cols), of(rows, tile_rows), 1]
    }

    /// Whether products that are cut so may go through a kernel.
    pub(super) fn has(self, kernel: &Kernel) -> bool {
        let all = [Tile::DEFAULT, Tile::Matrices { lanes: 0 }].map(Tile::kernels).concat();
        let among = |of: &[&Kernel]| of.iter().any(|one| one.name == kernel.name);
        among(&self.kernels()) || !among(&all)
    }

    /// As it is kept.
    fn name(self) -> String {
        match self {
            Tile::Lanes { lanes, rows, fours } => format!("{lanes}x{rows}x{fours}"),
            Tile::Matrices { lanes } => format!("matrices of {lanes} lanes"),
        }
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

/// That of the product whose result is looked at: more than one tile of every cut, and part of one.
const SAMPLE: [usize; 3] = [133, 101, 261];

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
}

fn weight(rows: usize, cols: usize) -> StoredWeight {
    let bytes: Vec<u8> = bytemuck::cast_slice(&numbers(rows * cols)).to_vec();
    let blob = Blob::new(Arc::new(bytes), 0..4 * rows * cols);
    StoredWeight { name: "trial".into(), part: Part::default(), dtype: Dtype::F32, rows, cols, blob }
}

fn tensor<D: Device>(dev: &D, rows: usize, cols: usize) -> D::Tensor {
    dev.upload([rows, cols], numbers(rows * cols))
}

impl Gpu {
    /// The device with the tile configuration that is the fastest on this machine: the one that `cache` has for this adapter,
    /// driver and kernel, else the one that wins when they are timed, which is stored. Software adapters have other kernels and
    /// are left as they are.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when the device failed meanwhile.
    pub async fn autotuned(self, cache: Option<&dyn DeviceCache>) -> Result<Gpu, DeviceError> {
        if self.info.software { Ok(self) } else { self.with_best_tile(cache, PATIENCE).await }
    }

    /// [`Gpu::autotuned`], whatever the adapter. The result of a trial that ran out of time is not stored.
    #[doc(hidden)]
    pub async fn with_best_tile(
        mut self,
        cache: Option<&dyn DeviceCache>,
        patience: Duration,
    ) -> Result<Gpu, DeviceError> {
        let mut hash = crc32fast::Hasher::new();
        let cuts = self.cuts();
        cuts.iter().flat_map(|tile| tile.kernels()).for_each(|kernel| hash.update(kernel.source.as_bytes()));
        let name = format!("tile of kernel {:08x} on {} ({})", hash.finalize(), self.info.name, self.info.detail);
        let kept = cache.and_then(|cache| cache.get(&name));
        if let Some(tile) = cuts.into_iter().find(|tile| kept.as_deref() == Some(tile.name().as_bytes())) {
            return Ok(Gpu { tile, ..self });
        }
        let trial = self.trial(patience).await?;
        self.tile = trial.best;
        if let (true, Some(cache)) = (trial.all_tried, cache) {
            cache.put(&name, trial.best.name().as_bytes());
        }
        Ok(self)
    }

    /// Every way of cutting tiles that this adapter has, the default first.
    pub(super) fn cuts(&self) -> Vec<Tile> {
        let matrices = self.matrices.map(|lanes| Tile::Matrices { lanes });
        Tile::PRESETS.into_iter().chain(matrices).collect()
    }

    /// Every cut in turn, compiled and warmed up before any is timed, three times; the shortest time of each counts. A cut that
    /// fails, since a driver refuses it, is out, and so is one whose results are wrong.
    async fn trial(&mut self, patience: Duration) -> Result<Trial, DeviceError> {
        let [rows, k, cols] = TRIAL;
        let (w, bias) = (self.load(&weight(k, cols))?, self.load(&weight(1, cols))?);
        let x = tensor(self, rows, k);

        let begin = Instant::now();
        let cuts = self.cuts();
        let mut shortest = vec![None; cuts.len()];
        for round in 0..4 {
            for (tile, shortest) in cuts.iter().zip(&mut shortest) {
                if begin.elapsed() > patience || round > 0 && shortest.is_none() {
                    continue;
                }
                self.tile = *tile;
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
        let mut timed: Vec<(Duration, Tile)> = shortest
            .into_iter()
            .zip(cuts)
            .filter_map(|(shortest, tile)| Some((shortest.filter(|time| *time < Duration::MAX)?, tile)))
            .map(|(time, tile)| (if tile == Tile::DEFAULT { time.mul_f64(CLEARLY) } else { time }, tile))
            .collect();
        timed.sort_by_key(|(time, _)| *time);
        for (_, tile) in timed {
            self.tile = tile;
            if self.is_right().await {
                return Ok(Trial { best: tile, all_tried });
            }
        }
        Ok(Trial { best: Tile::DEFAULT, all_tried })
    }

    /// Whether products come out as on the reference, within what lockstep allows.
    async fn is_right(&self) -> bool {
        let [rows, k, cols] = SAMPLE;
        let both = Lockstep::new(self);
        let sample = async {
            let (w, bias, table) =
                (both.load(&weight(k, cols))?, both.load(&weight(1, cols))?, both.load(&weight(cols, k))?);
            let x = tensor(&both, rows, k);
            both.linear(&x, &w, &bias);
            both.unembed(&x, &table);
            Ok::<_, DeviceError>(())
        };
        let steps = match sample.await {
            Ok(()) => both.finish().await,
            Err(e) => Err(e),
        };
        self.fault.forget();
        steps.is_ok_and(|steps| steps.iter().all(|step| step.share <= 1.0))
    }

    /// Carries out `n` products and waits for them.
    async fn products(
        &self,
        x: &super::Tensor,
        w: &super::Weight,
        bias: &super::Weight,
        n: usize,
    ) -> Result<(), DeviceError> {
        (0..n).for_each(|_| drop(Operations::linear(self, x, w, bias)));
        self.submit();
        self.settle(0).await
    }
}
