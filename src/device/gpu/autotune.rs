//! Autotuning: which tile configuration the products of many rows use. Owns the list of configurations, and finds the fastest one
//! on an adapter for each range of row counts and each shape of weight. No configuration is the best on all GPUs or for all shapes,
//! and a poor one can halve the speed. It compares results with the reference device, and chooses no configuration whose results
//! are wrong. If none is right, the default stays. It also measures the speed of large products, which limits the work of one
//! submit.
//! Read next: `products.rs`, which applies the choice.

use super::Gpu;
use super::kernels::{self, Kernel};
use crate::device::instant::Instant;
use crate::device::lockstep::Lockstep;
use crate::device::{Blob, Device, DeviceCache, DeviceError, Dtype, Operations, Part, StoredWeight};
use std::sync::Arc;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A workgroup's tile of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// `side_y` x `side_x` invocations, each of which computes `rows` rows x `4 * fours` columns. All these tiles sum
    /// in the same order.
    Invocations {
        /// Invocations along the columns of the tile.
        side_x: u32,
        /// Invocations along the rows of the tile.
        side_y: u32,
        /// Rows of each invocation.
        rows: u32,
        /// Columns of each invocation, in groups of four.
        fours: u32,
    },
    /// Four subgroups, each of which computes 32 x 32 results in cooperative matrices.
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

    /// The tiles that every adapter can run. They need 64 bytes of workgroup memory per row and per column of the tile,
    /// which is at most what WebGPU promises.
    pub const PRESETS: [Tile; 8] = [
        Tile::DEFAULT,
        Tile::OF_16_ROWS,
        Tile::OF_32_ROWS,
        Tile::new(8, 8, 8, 1),
        Tile::new(8, 8, 8, 2),
        Tile::new(8, 16, 4, 3),
        Tile::new(16, 8, 8, 2),
        Tile::new(16, 16, 8, 2),
    ];

    /// The kernels of this tile: for a product with a weight, and for the unembedding.
    pub fn kernels(self) -> [&'static Kernel; 2] {
        match self {
            Tile::Invocations { .. } => [&kernels::LINEAR, &kernels::UNEMBED],
            Tile::Matrices { .. } => [&kernels::LINEAR_MATRICES, &kernels::UNEMBED_MATRICES],
        }
    }

    /// The values of the generated constants of its kernels, in the order of the table in `kernels.rs`.
    pub fn settings(self) -> Vec<u32> {
        match self {
            Tile::Invocations { side_x, side_y, rows, fours } => vec![side_x, side_y, rows, fours],
            Tile::Matrices { subgroup_size } => vec![subgroup_size],
        }
    }

    /// The workgroups for a result of this many rows and columns.
    pub(super) fn groups(self, rows: usize, cols: usize) -> [u32; 3] {
        let of = |n: usize, each: u32| n.div_ceil(each as usize) as u32;
        let [tile_rows, tile_cols] = match self {
            Tile::Invocations { side_x, side_y, rows, fours } => [side_y * rows, 4 * side_x * fours],
            Tile::Matrices { .. } => [64, 64],
        };
        [of(cols, tile_cols), of(rows, tile_rows), 1]
    }

    /// False if `kernel` is one of another kind of tile.
    pub(super) fn has(self, kernel: &Kernel) -> bool {
        let all = [Tile::DEFAULT, Tile::Matrices { subgroup_size: 0 }].map(Tile::kernels).concat();
        let among = |of: &[&Kernel]| of.iter().any(|one| one.name == kernel.name);
        among(&self.kernels()) || !among(&all)
    }
}

/// How products of one class of row counts and one shape of weight are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileConfig {
    /// The tile.
    pub tile: Tile,
    /// If the result has fewer tiles than this, k is split among workgroups until there are about this many.
    pub least_groups: u32,
}

impl TileConfig {
    /// The text form that the cache stores.
    fn name(self) -> String {
        match self.tile {
            Tile::Invocations { side_x, side_y, rows, fours } => {
                format!("{side_x}x{side_y}x{rows}x{fours}/{}", self.least_groups)
            }
            Tile::Matrices { subgroup_size } => format!("matrices-of-{subgroup_size}/{}", self.least_groups),
        }
    }
}

/// Products are classed by their number of rows. This is the largest number of each class except the last.
const CLASSES: [usize; 4] = [16, 32, 128, 512];

/// k and columns of the products that are measured, those of a block of gpt2-small. A product of another shape uses the
/// choices of the nearest of these.
const SHAPES: [[usize; 2]; 4] = [[768, 2304], [768, 768], [768, 3072], [3072, 768]];

/// The index of the nearest of [`SHAPES`]: the one whose k and columns are the smallest ratio away.
fn nearest_shape(k: usize, cols: usize) -> usize {
    let ratio = |a: usize, b: usize| a.max(b) as f64 / a.min(b) as f64;
    let distances = SHAPES.map(|[other_k, other_cols]| ratio(k, other_k) * ratio(cols, other_cols));
    (0..SHAPES.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap_or(0)
}

/// The choices for one class of row counts: one for each of [`SHAPES`].
type ByShape = [TileConfig; SHAPES.len()];

/// The choices for each class of row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning([ByShape; CLASSES.len() + 1]);

/// Floating-point operations per second of large products on an adapter that was not measured: a weak integrated GPU.
pub(super) const SLOW: f64 = 1e11;

/// A workgroup for each core of a large GPU.
const MANY_GROUPS: u32 = 128;

/// Three workgroups for each core of a large GPU, so that one computes while another waits for memory.
const MORE_GROUPS: u32 = 384;

impl Tuning {
    /// The choices without autotuning.
    pub const DEFAULT: Tuning = Tuning([
        Tuning::every_shape(Tile::OF_16_ROWS),
        Tuning::every_shape(Tile::OF_32_ROWS),
        Tuning::every_shape(Tile::DEFAULT),
        Tuning::every_shape(Tile::DEFAULT),
        Tuning::every_shape(Tile::DEFAULT),
    ]);

    const fn every_shape(tile: Tile) -> ByShape {
        [TileConfig { tile, least_groups: MANY_GROUPS }; SHAPES.len()]
    }

    /// The same tile for all products.
    pub fn all(tile: Tile) -> Tuning {
        Tuning([Tuning::every_shape(tile); CLASSES.len() + 1])
    }

    /// The choice for the product `[rows, k] . [k, cols]`.
    pub fn of(&self, rows: usize, k: usize, cols: usize) -> TileConfig {
        let class = CLASSES.iter().position(|most| rows <= *most).unwrap_or(CLASSES.len());
        self.0[class][nearest_shape(k, cols)]
    }

    /// True if products may use `kernel`.
    pub(super) fn has(&self, kernel: &Kernel) -> bool {
        self.0.iter().flatten().any(|choice| choice.tile.has(kernel))
    }

    /// The text form that the cache stores: for each class one choice for all shapes, or one for each shape.
    fn name(&self) -> String {
        let of_class = |choices: ByShape| match choices {
            [first, rest @ ..] if rest.iter().all(|choice| *choice == first) => first.name(),
            _ => choices.map(TileConfig::name).join(","),
        };
        self.0.map(of_class).join(" ")
    }

    /// Parses [`Tuning::name`]. `None` unless every choice is one of the `choices` of its class.
    fn parse(name: &str, choices: impl Fn(usize) -> Vec<TileConfig>) -> Option<Tuning> {
        let mut tuning = Tuning::DEFAULT;
        let mut classes = name.split(' ');
        for (class, of_shapes) in tuning.0.iter_mut().enumerate() {
            let choices = choices(class);
            let choice = |name: &str| choices.iter().find(|choice| choice.name() == name).copied();
            let named = classes.next()?.split(',').map(choice).collect::<Option<Vec<_>>>()?;
            *of_shapes = match named[..] {
                [all] => [all; SHAPES.len()],
                _ => named.try_into().ok()?,
            };
        }
        classes.next().is_none().then_some(tuning)
    }
}

/// After this time, compiling included, no further configuration is measured. The measurement that is running then may
/// take a little longer.
const TIME_LIMIT: Duration = Duration::from_millis(3000);

/// A configuration replaces the default if it takes at most this part of the default's time. Smaller differences are
/// noise.
const WIN_RATIO: f64 = 0.97;

/// A product that takes longer than this is not measured again, because the clock is exact enough for it.
const LONG: Duration = Duration::from_millis(8);

/// A short product is run for about this long in each measurement, but at most [`MOST_REPEATS`] times, so that the
/// time that a submit takes does not hide the product's own.
const MEASURED: Duration = Duration::from_millis(1);

const MOST_REPEATS: u32 = 64;

/// What stands between the choices and the speed of large products in 10^9 operations per second, as the cache stores it.
const SPEED: &str = "; GFLOP/s: ";

/// The number of rows with which each class is measured.
const TIMED_ROWS: [usize; CLASSES.len() + 1] = [16, 32, 64, 256, 1024];

/// Rows, k and columns of the product that is compared with the reference. In every configuration it has more than one
/// tile and a tile that is not full, and k is split into several parts.
const SAMPLE: [usize; 3] = [133, 201, 261];

/// Deterministic values in [-0.5, 0.5).
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
}

fn weight(rows: usize, cols: usize) -> StoredWeight {
    let bytes: Vec<u8> = bytemuck::cast_slice(&values(rows * cols)).to_vec();
    let blob = Blob::new(Arc::new(bytes), 0..4 * rows * cols);
    StoredWeight { name: "autotune".into(), part: Part::default(), dtype: Dtype::F32, rows, cols, blob }
}

fn tensor<D: Device>(dev: &D, rows: usize, cols: usize) -> D::Tensor {
    dev.upload([rows, cols], values(rows * cols))
}

/// The inputs of a measured product: x, and a weight with its bias.
struct TimedInputs<'a> {
    x: super::Tensor,
    weight: &'a [super::Weight; 2],
}

impl Gpu {
    /// Returns the device with the fastest tile configurations on this machine. They come from `cache` if it has them
    /// for this adapter, driver and kernels. Otherwise they are measured, and stored in `cache`. Software adapters are
    /// not tuned.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] if the device fails.
    pub async fn autotuned(self, cache: Option<&dyn DeviceCache>) -> Result<Gpu, DeviceError> {
        if self.info.software { Ok(self) } else { self.with_best_tiles(cache, TIME_LIMIT).await }
    }

    /// [`Gpu::autotuned`] on any adapter. The result is not stored if the time limit ended the measurements.
    #[doc(hidden)]
    pub async fn with_best_tiles(
        mut self,
        cache: Option<&dyn DeviceCache>,
        time_limit: Duration,
    ) -> Result<Gpu, DeviceError> {
        let mut hash = crc32fast::Hasher::new();
        let tiles = self.tiles();
        tiles.iter().flat_map(|tile| tile.kernels()).for_each(|kernel| hash.update(kernel.module(&[]).as_bytes()));
        let name = format!("tiles of kernels {:08x} on {} ({})", hash.finalize(), self.info.name, self.info.detail);
        if let Some((tuning, speed)) = cache.and_then(|cache| cache.get(&name)).and_then(|it| self.stored_tuning(&it)) {
            return Ok(self.tuned(tuning, speed));
        }
        let (tuning, speed, complete) = self.measure(time_limit).await?;
        if let (true, Some(cache)) = (complete, cache) {
            cache.put(&name, format!("{}{SPEED}{:.0}", tuning.name(), 1e-9 * speed).as_bytes());
        }
        Ok(self.tuned(tuning, speed))
    }

    fn tuned(self, tuning: Tuning, speed: f64) -> Gpu {
        Gpu { tuning, most_work: super::SECONDS_OF_A_SUBMIT * speed.max(SLOW), ..self }
    }

    /// Parses what the cache has stored: the choices, and the speed of large products. `None` unless every choice is
    /// still one of its class.
    fn stored_tuning(&self, stored: &[u8]) -> Option<(Tuning, f64)> {
        let (names, speed) = std::str::from_utf8(stored).ok()?.split_once(SPEED)?;
        let speed = 1e9 * speed.parse::<f64>().ok().filter(|speed| speed.is_finite())?;
        Some((Tuning::parse(names, |class| self.choices(class))?, speed))
    }

    /// The tile, and the least number of workgroups, for each range of row counts and each shape, in the form that the
    /// cache stores.
    pub fn tiles_by_rows(&self) -> String {
        self.tuning.name()
    }

    /// All tiles that this adapter can run.
    pub(super) fn tiles(&self) -> Vec<Tile> {
        let matrices = self.matrices.map(|subgroup_size| Tile::Matrices { subgroup_size });
        Tile::PRESETS.into_iter().chain(matrices).collect()
    }

    /// The choices of a class, its default first. Every class has [`Tile::DEFAULT`], so that there is another choice
    /// where a driver computes wrong results with small tiles.
    fn choices(&self, class: usize) -> Vec<TileConfig> {
        let [default, ..] = Tuning::DEFAULT.0[class];
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
            // Products of many rows take long to measure, and have many tiles anyway.
            let groups: &[u32] = if class < 3 { &[MANY_GROUPS, MORE_GROUPS, 1] } else { &[MORE_GROUPS, 1] };
            for least_groups in groups {
                let choice = TileConfig { tile, least_groups: *least_groups };
                if choice != default {
                    all.push(choice);
                }
            }
        }
        all
    }

    /// Measures each class, from the most rows to the fewest. Returns the fastest choices whose results are right, the
    /// floating-point operations per second of the largest products (0 if none was measured), and true if the time limit
    /// was not reached.
    async fn measure(&mut self, time_limit: Duration) -> Result<(Tuning, f64, bool), DeviceError> {
        let mut weights = Vec::new();
        for [k, cols] in SHAPES {
            weights.push([self.load(&weight(k, cols))?, self.load(&weight(1, cols))?]);
        }
        let begin = Instant::now();
        self.compile_all();
        let mut tuning = Tuning::DEFAULT;
        let mut right: Vec<(Tile, bool)> = Vec::new();
        let (mut flops, mut seconds) = (0.0, 0.0);
        for class in (0..TIMED_ROWS.len()).rev() {
            for (shape, [k, cols]) in SHAPES.into_iter().enumerate() {
                let inputs = TimedInputs { x: tensor(self, TIMED_ROWS[class], k), weight: &weights[shape] };
                for (time, choice) in self.in_order_of_speed([class, shape], &inputs, begin, time_limit).await {
                    let known = right.iter().find(|(tile, _)| *tile == choice.tile);
                    let is_right = match known {
                        Some((_, is_right)) => *is_right,
                        None => {
                            self.tuning = Tuning::all(choice.tile);
                            self.is_right().await
                        }
                    };
                    if known.is_none() {
                        right.push((choice.tile, is_right));
                    }
                    if is_right {
                        tuning.0[class][shape] = choice;
                        if class == TIMED_ROWS.len() - 1 {
                            flops += 2.0 * (TIMED_ROWS[class] * k * cols) as f64;
                            seconds += time.as_secs_f64();
                        }
                        break;
                    }
                }
            }
        }
        let speed = if seconds > 0.0 { flops / seconds } else { 0.0 };
        Ok((tuning, speed, begin.elapsed() <= time_limit))
    }

    /// Compiles the kernels of all tiles on several threads. Some drivers take half a second for one.
    #[cfg(not(target_arch = "wasm32"))]
    fn compile_all(&self) {
        // A fault is injected into the kernels that one thread compiles.
        #[cfg(feature = "mutants")]
        if super::mutants::is_injecting() {
            return;
        }
        let (tiles, next) = (self.tiles(), AtomicUsize::new(0));
        let compile = || {
            while let Some(tile) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.compile_product(*tile);
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tiles.len());
            (1..threads).for_each(|_| drop(scope.spawn(compile)));
            compile();
        });
    }

    /// In a browser kernels are compiled when they first run.
    #[cfg(target_arch = "wasm32")]
    fn compile_all(&self) {}

    /// The choices of a class with their times for one shape, the fastest first. The default comes before one that is
    /// less than [`WIN_RATIO`] faster. All are compiled and warmed up before any is timed. They are then timed in turn,
    /// up to three times, and the shortest time of each counts. A choice that fails, because the driver refuses it, is
    /// left out.
    async fn in_order_of_speed(
        &mut self,
        [class, shape]: [usize; 2],
        inputs: &TimedInputs<'_>,
        begin: Instant,
        time_limit: Duration,
    ) -> Vec<(Duration, TileConfig)> {
        let choices = self.choices(class);
        let mut shortest = vec![None; choices.len()];
        for round in 0..4 {
            for (choice, shortest) in choices.iter().zip(&mut shortest) {
                let repeats = match (round, *shortest) {
                    (0, _) | (1, Some(_)) => 1,
                    (_, Some(time)) if time <= LONG => {
                        (MEASURED.div_duration_f64(time).ceil() as u32).clamp(1, MOST_REPEATS)
                    }
                    _ => continue,
                };
                if begin.elapsed() > time_limit {
                    continue;
                }
                self.tuning.0[class][shape] = *choice;
                let start = Instant::now();
                *shortest = match self.products(inputs, repeats).await {
                    Err(_) => {
                        self.fault.forget();
                        None
                    }
                    Ok(()) if round == 0 => Some(Duration::MAX),
                    Ok(()) => Some((start.elapsed() / repeats).min(shortest.unwrap_or(Duration::MAX))),
                };
            }
        }
        let default = choices[0];
        let mut timed: Vec<(Duration, TileConfig)> = shortest
            .into_iter()
            .zip(choices)
            .filter_map(|(shortest, choice)| Some((shortest.filter(|time| *time < Duration::MAX)?, choice)))
            .collect();
        timed.sort_by_key(|(time, choice)| if *choice == default { time.mul_f64(WIN_RATIO) } else { *time });
        timed
    }

    /// True if products agree with the reference device within the tolerance of lockstep.
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

    /// Runs a product `n` times and waits for the device.
    async fn products(&self, inputs: &TimedInputs<'_>, n: u32) -> Result<(), DeviceError> {
        let TimedInputs { x, weight: [w, bias] } = inputs;
        for _ in 0..n {
            drop(Operations::linear(self, x, w, bias));
        }
        self.submit();
        self.settle(0).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_uses_the_choice_of_the_nearest_shape() {
        let mut tuning = Tuning::DEFAULT;
        tuning.0[4][3].tile = Tile::OF_16_ROWS;
        for (k, cols) in SHAPES.map(|[k, cols]| (k, cols)) {
            let expected = if k == 3072 { Tile::OF_16_ROWS } else { Tile::DEFAULT };
            assert_eq!(tuning.of(513, k, cols).tile, expected, "{k} x {cols}");
            assert_eq!(tuning.of(512, k, cols).tile, Tile::DEFAULT, "{k} x {cols}");
        }
        // The MLP's output of gpt2-xl, and its c_fc.
        assert_eq!(tuning.of(1024, 6400, 1600).tile, Tile::OF_16_ROWS);
        assert_eq!(tuning.of(1024, 1600, 6400).tile, Tile::DEFAULT);
    }

    #[test]
    fn what_is_stored_is_parsed() {
        let choices = |class: usize| {
            let tiles =
                if class < 2 { [Tile::OF_16_ROWS, Tile::OF_32_ROWS] } else { [Tile::DEFAULT, Tile::PRESETS[6]] };
            tiles.map(|tile| TileConfig { tile, least_groups: MANY_GROUPS }).to_vec()
        };
        let mut tuning = Tuning::DEFAULT;
        tuning.0[3][2].tile = Tile::PRESETS[6];
        let name = tuning.name();
        assert_eq!(Tuning::parse(&name, choices), Some(tuning), "{name}");
        for wrong in ["", &name[1..], &format!("{name} {name}"), &name.replace(',', " "), &name.replacen(',', "/", 1)] {
            assert_eq!(Tuning::parse(wrong, choices), None, "{wrong}");
        }
        let of_another_class = Tuning([Tuning::every_shape(Tile::DEFAULT); CLASSES.len() + 1]).name();
        assert_eq!(Tuning::parse(&of_another_class, choices), None);
    }
}
