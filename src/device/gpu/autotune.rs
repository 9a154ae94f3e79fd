//! Autotuning: which tile configuration products of many rows take. Owns the configurations there are, and finding out which of
//! them is the fastest on an adapter, for each range of row counts: none is the best everywhere, and a poor one costs half of
//! what a GPU can do. None is taken whose results are wrong.

use super::Gpu;
use super::kernels::{self, Kernel};
use crate::device::lockstep::Lockstep;
use crate::device::{Blob, Device, DeviceCache, DeviceError, Dtype, Operations, Part, StoredWeight};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A workgroup's tile of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// `side_y` x `side_x` invocations, each with `rows` rows x `4 * fours` columns. All of these add up in the same order.
    Invocations {
        /// Along the columns of the tile.
        side_x: u32,
        /// Along its rows.
        side_y: u32,
        /// Of each invocation.
        rows: u32,
        /// Groups of four columns of each invocation.
        fours: u32,
    },
    /// Four subgroups of so many invocations, each with 32 x 32 results in cooperative matrices.
    Matrices {
        /// Invocations of a subgroup.
        subgroup_size: u32,
    },
}

impl Tile {
    const fn new(side_x: u32, side_y: u32, rows: u32, fours: u32) -> Tile {
        Tile::Invocations { side_x, side_y, rows, fours }
    }

    /// 64 x 64 results.
    const DEFAULT: Tile = Tile::new(16, 16, 4, 1);

    /// 16 x 64 results.
    const OF_16_ROWS: Tile = Tile::new(16, 4, 4, 1);

    /// 32 x 64 results.
    const OF_32_ROWS: Tile = Tile::new(16, 8, 4, 1);

    /// The tiles that every adapter has. Workgroup memory, 64 bytes for every row and every column of the tile, is at most what
    /// WebGPU promises.
    pub const PRESETS: [Tile; 7] = [
        Tile::DEFAULT,
        Tile::OF_16_ROWS,
        Tile::OF_32_ROWS,
        Tile::new(16, 8, 8, 1),
        Tile::new(8, 8, 8, 1),
        Tile::new(16, 16, 8, 1),
        Tile::new(16, 16, 8, 2),
    ];

    /// The kernel of a product with a weight, and that of the unembedding.
    pub fn kernels(self) -> [&'static Kernel; 2] {
        match self {
            Tile::Invocations { .. } => [&kernels::LINEAR, &kernels::UNEMBED],
            Tile::Matrices { .. } => [&kernels::LINEAR_MATRICES, &kernels::UNEMBED_MATRICES],
        }
    }

    /// The generated constants of its kernels, in the order of their table entries.
    pub fn settings(self) -> Vec<u32> {
        match self {
            Tile::Invocations { side_x, side_y, rows, fours } => vec![side_x, side_y, rows, fours],
            Tile::Matrices { subgroup_size } => vec![subgroup_size],
        }
    }

    /// Workgroups for so many rows and columns.
    pub(super) fn groups(self, rows: usize, cols: usize) -> [u32; 3] {
        let of = |n: usize, each: u32| n.div_ceil(each as usize) as u32;
        let [tile_rows, tile_cols] = match self {
            Tile::Invocations { side_x, side_y, rows, fours } => [side_y * rows, 4 * side_x * fours],
            Tile::Matrices { .. } => [64, 64],
        };
        [of(cols, tile_cols), of(rows, tile_rows), 1]
    }

    /// Whether products in such tiles may go through a kernel.
    pub(super) fn has(self, kernel: &Kernel) -> bool {
        let all = [Tile::DEFAULT, Tile::Matrices { subgroup_size: 0 }].map(Tile::kernels).concat();
        let among = |of: &[&Kernel]| of.iter().any(|one| one.name == kernel.name);
        among(&self.kernels()) || !among(&all)
    }
}

/// How products with a certain number of rows are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The tile.
    pub tile: Tile,
    /// Where the result has fewer tiles, k is shared among workgroups until there are about so many.
    pub least_groups: u32,
}

impl Choice {
    /// As it is kept.
    fn name(self) -> String {
        match self.tile {
            Tile::Invocations { side_x, side_y, rows, fours } => {
                format!("{side_x}x{side_y}x{rows}x{fours}/{}", self.least_groups)
            }
            Tile::Matrices { subgroup_size } => format!("matrices of {subgroup_size}/{}", self.least_groups),
        }
    }
}

/// The largest number of rows of each class of products but the last.
const CLASSES: [usize; 3] = [16, 32, 128];

/// What products of each class of row counts take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning([Choice; CLASSES.len() + 1]);

/// Enough workgroups for two on each core of a large GPU.
const MANY_GROUPS: u32 = 128;

impl Tuning {
    /// Where nothing was measured.
    pub const DEFAULT: Tuning = Tuning([
        Choice { tile: Tile::OF_16_ROWS, least_groups: MANY_GROUPS },
        Choice { tile: Tile::OF_32_ROWS, least_groups: MANY_GROUPS },
        Choice { tile: Tile::DEFAULT, least_groups: MANY_GROUPS },
        Choice { tile: Tile::DEFAULT, least_groups: MANY_GROUPS },
    ]);

    /// One tile for all row counts.
    pub fn all(tile: Tile) -> Tuning {
        Tuning([Choice { tile, least_groups: MANY_GROUPS }; CLASSES.len() + 1])
    }

    /// The choice for a number of rows.
    pub fn of(&self, rows: usize) -> Choice {
        self.0[CLASSES.iter().position(|most| rows <= *most).unwrap_or(CLASSES.len())]
    }

    /// Whether products may go through a kernel.
    pub(super) fn has(&self, kernel: &Kernel) -> bool {
        self.0.iter().any(|choice| choice.tile.has(kernel))
    }

    /// As it is kept.
    fn name(&self) -> String {
        self.0.map(Choice::name).join(" ")
    }
}

/// Nothing more is tried after this long, compiling included: what is under way then is over within two seconds on whatever runs
/// a product of this size in a tenth of one.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The part of the default's time that another configuration may take at most to be taken: less is chance.
const CLEARLY: f64 = 0.97;

/// A time so long that measuring it once is enough.
const CLEAR: Duration = Duration::from_millis(30);

/// Rows of the products that each class is measured with.
const TRIAL_ROWS: [usize; CLASSES.len() + 1] = [16, 32, 64, 512];

/// k and columns of those: gpt2's attention output and c_fc.
const TRIAL: [[usize; 2]; 2] = [[768, 768], [768, 3072]];

/// Rows, k and columns of the product whose result is looked at: more than one tile of every configuration, and part of one, and k
/// in several shares.
const SAMPLE: [usize; 3] = [133, 201, 261];

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

/// The inputs of a trial: x, and each weight with its bias.
struct TrialInputs {
    x: super::Tensor,
    weights: Vec<[super::Weight; 2]>,
}

impl Gpu {
    /// The device with the tile configurations that are the fastest on this machine: those that `cache` has for this adapter,
    /// driver and kernels, else those that win when they are timed, which are stored. Software adapters have other kernels and are
    /// left as they are.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when the device failed meanwhile.
    pub async fn autotuned(self, cache: Option<&dyn DeviceCache>) -> Result<Gpu, DeviceError> {
        if self.info.software { Ok(self) } else { self.with_best_tiles(cache, PATIENCE).await }
    }

    /// [`Gpu::autotuned`], whatever the adapter. The result of a trial that ran out of time is not stored.
    #[doc(hidden)]
    pub async fn with_best_tiles(
        mut self,
        cache: Option<&dyn DeviceCache>,
        patience: Duration,
    ) -> Result<Gpu, DeviceError> {
        let mut hash = crc32fast::Hasher::new();
        let tiles = self.tiles();
        tiles.iter().flat_map(|tile| tile.kernels()).for_each(|kernel| hash.update(kernel.module(&[]).as_bytes()));
        let name = format!("tiles of kernels {:08x} on {} ({})", hash.finalize(), self.info.name, self.info.detail);
        if let Some(tuning) = cache.and_then(|cache| cache.get(&name)).and_then(|kept| self.kept_tuning(&kept)) {
            return Ok(Gpu { tuning, ..self });
        }
        let (tuning, all_tried) = self.trial(patience).await?;
        self.tuning = tuning;
        if let (true, Some(cache)) = (all_tried, cache) {
            cache.put(&name, tuning.name().as_bytes());
        }
        Ok(self)
    }

    /// What was kept, where each of its choices is among those of its class.
    fn kept_tuning(&self, kept: &[u8]) -> Option<Tuning> {
        let mut tuning = Tuning::DEFAULT;
        let mut rest = std::str::from_utf8(kept).ok()?;
        for class in 0..tuning.0.len() {
            let choice = self.choices(class).into_iter().find(|choice| {
                let after = rest.strip_prefix(&choice.name());
                after.is_some_and(|after| after.is_empty() || after.starts_with(' '))
            })?;
            rest = rest[choice.name().len()..].trim_start_matches(' ');
            tuning.0[class] = choice;
        }
        rest.is_empty().then_some(tuning)
    }

    /// Every tile that this adapter has.
    pub(super) fn tiles(&self) -> Vec<Tile> {
        let matrices = self.matrices.map(|subgroup_size| Tile::Matrices { subgroup_size });
        Tile::PRESETS.into_iter().chain(matrices).collect()
    }

    /// The choices of a class, its default first. The default tile is among all, so that a driver that gets small ones wrong has
    /// another.
    fn choices(&self, class: usize) -> Vec<Choice> {
        let default = Tuning::DEFAULT.0[class];
        let fits = |tile: &Tile| match tile {
            Tile::Invocations { side_y, rows, .. } => match class {
                0 | 1 => side_y * rows <= 32 || *tile == Tile::DEFAULT,
                2 => (32..=64).contains(&(side_y * rows)),
                _ => side_y * rows >= 64,
            },
            Tile::Matrices { .. } => class >= 2,
        };
        let mut all = vec![default];
        for tile in self.tiles().into_iter().filter(fits) {
            // Products of many rows have many tiles.
            let groups: &[u32] = if class < CLASSES.len() { &[MANY_GROUPS, 1] } else { &[MANY_GROUPS] };
            for least_groups in groups {
                let choice = Choice { tile, least_groups: *least_groups };
                if choice != default {
                    all.push(choice);
                }
            }
        }
        all
    }

    /// The fastest right choice of every class, the class of most rows first; and whether there was time for all.
    async fn trial(&mut self, patience: Duration) -> Result<(Tuning, bool), DeviceError> {
        let mut weights = Vec::new();
        for [k, cols] in TRIAL {
            weights.push([self.load(&weight(k, cols))?, self.load(&weight(1, cols))?]);
        }
        let begin = Instant::now();
        let mut tuning = Tuning::DEFAULT;
        let mut wrong: Vec<Tile> = Vec::new();
        for class in (0..TRIAL_ROWS.len()).rev() {
            let inputs = TrialInputs { x: tensor(self, TRIAL_ROWS[class], TRIAL[0][0]), weights };
            for choice in self.in_order_of_speed(class, &inputs, begin, patience).await {
                if wrong.contains(&choice.tile) {
                    continue;
                }
                self.tuning = Tuning::all(choice.tile);
                if self.is_right().await {
                    tuning.0[class] = choice;
                    break;
                }
                wrong.push(choice.tile);
            }
            weights = inputs.weights;
        }
        Ok((tuning, begin.elapsed() <= patience))
    }

    /// The choices of a class, the fastest first. Every one in turn, compiled and warmed up before any is timed, three times; the
    /// shortest time of each counts. One that fails, since a driver refuses it, is left out.
    async fn in_order_of_speed(
        &mut self,
        class: usize,
        inputs: &TrialInputs,
        begin: Instant,
        patience: Duration,
    ) -> Vec<Choice> {
        let choices = self.choices(class);
        let mut shortest = vec![None; choices.len()];
        for repeats in [0, 1, 4, 4] {
            for (choice, shortest) in choices.iter().zip(&mut shortest) {
                let warm = repeats > 0;
                let clear = repeats > 1 && shortest.is_some_and(|time| time > CLEAR);
                if begin.elapsed() > patience || warm && shortest.is_none() || clear {
                    continue;
                }
                self.tuning.0[class] = *choice;
                let turn = Instant::now();
                let done = self.products(inputs, repeats.max(1)).await;
                *shortest = match (done, repeats) {
                    (Err(_), _) => {
                        self.fault.forget();
                        None
                    }
                    (Ok(()), 0) => Some(Duration::MAX),
                    (Ok(()), n) => Some((turn.elapsed() / n).min(shortest.unwrap_or(Duration::MAX))),
                };
            }
        }
        let default = choices[0];
        let mut timed: Vec<(Duration, Choice)> = shortest
            .into_iter()
            .zip(choices)
            .filter_map(|(shortest, choice)| Some((shortest.filter(|time| *time < Duration::MAX)?, choice)))
            .map(|(time, choice)| (if choice == default { time.mul_f64(CLEARLY) } else { time }, choice))
            .collect();
        timed.sort_by_key(|(time, _)| *time);
        timed.into_iter().map(|(_, choice)| choice).collect()
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

    /// Carries out each product `n` times and waits for them.
    async fn products(&self, inputs: &TrialInputs, n: u32) -> Result<(), DeviceError> {
        for _ in 0..n {
            inputs.weights.iter().for_each(|[w, bias]| drop(Operations::linear(self, &inputs.x, w, bias)));
        }
        self.submit();
        self.settle(0).await
    }
}
