//! Collects a report's data: runs the model group by group of layers, so that memory is bounded, and packs the values
//! that the page shows. Owns the choice of what to store when not everything fits. Read next: `pack.rs` for the byte
//! layouts, `page/data.js`, which unpacks them.

use super::Page;
use super::pack::{self, BLOCK, Coarse, Rows, strongest};
use crate::analysis::lens::{self, LensRow};
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::capture::Capture;
use crate::hooks::non_number::NonNumber;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::session::{Error, Model, Progress, Session};
use ndarray::{Array, Array2, Array3, ArrayView1, Axis, Dimension, s};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The largest page in bytes. Browsers open pages of this size quickly, and they can be mailed.
pub const LARGEST: usize = 20_000_000;

/// Neurons stored per token and block.
const NEURONS: usize = 10;

/// Most likely tokens stored per position and layer.
const LIKELIEST: usize = 5;

/// Dimensions stored per token and layer if not all of them fit.
const DIMENSIONS: usize = 32;

/// The smallest observed size of one stored attention weight, deflated, in bytes. The search for how many fit begins
/// here.
const BYTES_OF_A_WEIGHT: f64 = 1.7;

/// Bytes of captured neurons and patterns in memory at once.
const GROUP_BYTES: usize = 256 << 20;

/// How the residual stream is stored: the most exact form that leaves room for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// Every value, as f16.
    F16,
    /// Every value, in 8 bits: see [`Coarse`].
    Coarse,
    /// The [`DIMENSIONS`] strongest, as f16.
    Strongest,
}

impl Stream {
    /// Chooses the form for `n_pos` tokens if all values may take `room` bytes. The stream may take half of that as
    /// f16, and four fifths in 8 bits.
    fn choose(config: &Config, n_pos: usize, room: usize) -> Stream {
        let rows = streams(config).count() * n_pos;
        if Rows::bytes(rows, rows * config.n_embd) <= room / 2 {
            Stream::F16
        } else if Coarse::bytes(rows, config.n_embd) <= room / 5 * 4 {
            Stream::Coarse
        } else {
            Stream::Strongest
        }
    }

    /// The page's metadata.
    fn describe(self) -> Value {
        match self {
            Stream::F16 => json!({"as": "f16"}),
            Stream::Coarse => json!({"as": "8-bit", "block": BLOCK}),
            Stream::Strongest => json!({"as": "strongest", "n": DIMENSIONS}),
        }
    }
}

/// Bytes of packed values that fit into a page of `largest` bytes: base64 makes four bytes of three, and the page
/// itself and the tokens' texts need some room.
fn room(largest: usize, n_pos: usize) -> usize {
    largest.saturating_sub(100_000 + 100 * n_pos) / 4 * 3
}

/// The stages of the residual stream that the page shows: the input of the first block, the output of each block, and
/// the input of the unembedding.
fn streams(config: &Config) -> impl Iterator<Item = Site> {
    lens::sites(config.n_layer).chain([Site::LnFinalOut])
}

/// Named parts of the page's data, deflated.
type Parts = Vec<(String, Vec<u8>)>;

fn part(name: impl Into<String>, bytes: &[u8]) -> (String, Vec<u8>) {
    (name.into(), pack::deflate(bytes))
}

/// Bytes of all parts.
fn total(parts: &Parts) -> usize {
    parts.iter().map(|(_, bytes)| bytes.len()).sum()
}

/// Runs the one text of `batch` and packs what the page shows, for a page of at most `largest` bytes (normally
/// [`LARGEST`]). The values that are always stored may exceed that for a model of hundreds of layers. `progress`
/// receives the number of finished steps and their total.
///
/// # Errors
/// As [`Session::run_async`].
pub async fn gather(
    session: &Session,
    batch: &Batch,
    edited: &Hooks,
    largest: usize,
    progress: Option<Progress<'_>>,
) -> Result<Page, Error> {
    let config = session.model().config();
    let n_pos = batch.n_pos();
    let room = room(largest, n_pos);
    let per_layer = 4 * n_pos * (config.n_inner + config.n_head * n_pos);
    let layers: Vec<usize> = (0..config.n_layer).collect();
    let groups: Vec<&[usize]> = layers.chunks((GROUP_BYTES / per_layer).max(1)).collect();
    let blocks_of = |group: &[usize]| group.last().map_or(0, |layer| layer + 1);
    // The lens runs all blocks and then evaluates a row for each; a group runs the blocks up to its last.
    let of_lens = 2 * config.n_layer + 1;
    let steps = of_lens + groups.iter().map(|group| blocks_of(group)).sum::<usize>();
    let before = Cell::new(0);
    let told = |done: usize, _of: usize| {
        progress.map_or(ControlFlow::Continue(()), |progress| progress(before.get() + done, steps))
    };

    let mut hooks = edited.clone();
    for site in (0..config.n_layer).map(Site::ResidMid).chain([Site::LnFinalOut]) {
        hooks.tap_at(site, Select::all())?;
    }
    let (readings, mut capture) = session.lens_async(batch, &hooks, LIKELIEST, Some(&told)).await?;
    before.set(of_lens);
    let mut non_number = NonNumber::find_in(&capture);
    let mids: Vec<Array2<f32>> = (0..config.n_layer).map(|layer| taken(&mut capture, Site::ResidMid(layer))).collect();
    let stages: Vec<Array2<f32>> = streams(config).map(|site| taken(&mut capture, site)).collect();
    let stream = Stream::choose(config, n_pos, room);
    let mut parts = pack_stream(stream, &stages);
    parts.push(pack_norms(&stages, &mids));
    drop((mids, stages, capture));
    parts.extend(pack_lens(session.model(), &readings));

    let mut neurons = Picked::default();
    let mut attention = Attention::new(config, n_pos, room.saturating_sub(total(&parts)));
    for group in groups {
        let mut hooks = edited.clone();
        for &layer in group {
            hooks.tap_at(Site::MlpPost(layer), Select::all())?.tap_at(Site::Pattern(layer), Select::all())?;
        }
        let mut capture = session.run_async(batch, &hooks, Some(&told)).await?;
        before.set(before.get() + blocks_of(group));
        let found = NonNumber::find_in(&capture);
        let is_first = |found: &NonNumber| non_number.as_ref().is_none_or(|first| found.site < first.site);
        if found.as_ref().is_some_and(is_first) {
            non_number = found;
        }
        for &layer in group {
            let posts: Array2<f32> = taken(&mut capture, Site::MlpPost(layer));
            posts.rows().into_iter().for_each(|row| neurons.push(&strongest(&row.to_vec(), NEURONS)));
            attention.push(&taken(&mut capture, Site::Pattern(layer)));
        }
    }
    parts.extend(neurons.pack("neurons"));
    let (described, weights) = attention.pack(room.saturating_sub(total(&parts)));
    parts.extend(weights);

    let kept = json!({
        "stream": stream.describe(), "attention": described, "neurons": NEURONS.min(config.n_inner),
        "lens": LIKELIEST.min(config.vocab_size),
    });
    Ok(Page { kept, non_number, parts })
}

/// The values of the one text at a site.
fn taken<D: Dimension>(capture: &mut Capture, site: Site) -> Array<f32, D> {
    let array = capture.take(site).expect("a tapped site is in the capture").index_axis_move(Axis(0), 0);
    array.into_dimensionality().expect("the dictionary says how many axes a site has")
}

/// One row per stage and position.
fn pack_stream(stream: Stream, stages: &[Array2<f32>]) -> Parts {
    let rows = || stages.iter().flat_map(|stage| stage.rows().into_iter().map(|row| row.to_vec()));
    match stream {
        Stream::F16 => {
            let mut packed = Rows::default();
            rows().for_each(|row| packed.push(&row));
            vec![part("stream", &packed.into_bytes())]
        }
        Stream::Coarse => {
            let mut packed = Coarse::default();
            rows().for_each(|row| packed.push(&row));
            vec![part("stream", &packed.codes), part("stream.scales", &packed.scales.into_bytes())]
        }
        Stream::Strongest => {
            let mut packed = Picked::default();
            rows().for_each(|row| packed.push(&strongest(&row, DIMENSIONS)));
            packed.pack("stream")
        }
    }
}

/// One row of norms (one per position) for each stage, then for each resid_mid.
fn pack_norms(stages: &[Array2<f32>], mids: &[Array2<f32>]) -> (String, Vec<u8>) {
    let norm = |row: ArrayView1<'_, f32>| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
    let mut packed = Rows::default();
    for stage in stages.iter().chain(mids) {
        let norms: Vec<f32> = stage.rows().into_iter().map(norm).collect();
        packed.push(&norms);
    }
    part("norms", &packed.into_bytes())
}

/// By layer and position: the most likely tokens' ids, their probabilities, the entropy, and rank and probability of
/// the actual next token (zeros at the last position). Also the text of every listed token.
fn pack_lens(files: &Model, rows: &[LensRow]) -> Parts {
    let (mut ids, mut ranks, mut labels) = (Vec::new(), Vec::new(), BTreeMap::new());
    let (mut probabilities, mut entropies, mut nexts) = (Rows::default(), Rows::default(), Rows::default());
    for readings in rows.iter().map(|row| &row.texts[0]) {
        for reading in readings {
            let (of_row, probable): (Vec<u32>, Vec<f32>) = reading.top.iter().copied().unzip();
            for id in &of_row {
                labels.entry(*id).or_insert_with(|| files.token(*id).label());
            }
            ids.extend(of_row);
            probabilities.push(&probable);
            ranks.push(reading.next.map_or(0, |next| next.rank as u32));
        }
        entropies.push(&readings.iter().map(|reading| reading.entropy).collect::<Vec<_>>());
        let next = readings.iter().map(|reading| reading.next.map_or(0.0, |next| next.probability));
        nexts.push(&next.collect::<Vec<_>>());
    }
    vec![
        part("lens.ids", &pack::whole(&ids)),
        part("lens.probabilities", &probabilities.into_bytes()),
        part("lens.entropy", &entropies.into_bytes()),
        part("lens.rank", &pack::whole(&ranks)),
        part("lens.next", &nexts.into_bytes()),
        part("labels", json!(labels).to_string().as_bytes()),
    ]
}

/// Some values of each row, with their indices.
#[derive(Default)]
struct Picked {
    places: Vec<u32>,
    values: Rows,
}

impl Picked {
    fn push(&mut self, row: &[(u32, f32)]) {
        let (places, values): (Vec<u32>, Vec<f32>) = row.iter().copied().unzip();
        self.places.extend(places);
        self.values.push(&values);
    }

    fn pack(self, name: &str) -> Parts {
        let places = part(format!("{name}.places"), &pack::whole(&self.places));
        vec![places, part(name, &self.values.into_bytes())]
    }
}

/// Attention patterns. A row has the weights of one query of one head, over its own position and those before it.
enum Attention {
    /// All weights: one part per layer, its rows by head and query.
    Whole(Parts),
    /// The largest weights of every row, by layer, as many as may be in memory. At the end, as many as fit are stored.
    Strongest { most: usize, layers: Vec<Vec<Vec<(u32, f32)>>> },
}

impl Attention {
    /// `room` is the current estimate of the bytes that the patterns may take.
    fn new(config: &Config, n_pos: usize, room: usize) -> Attention {
        let rows = config.n_layer * config.n_head * n_pos;
        if Rows::bytes(rows, rows * (n_pos + 1) / 2) <= room {
            return Attention::Whole(Vec::new());
        }
        let most = (room as f64 / rows as f64 / BYTES_OF_A_WEIGHT) as usize;
        Attention::Strongest { most: most.clamp(1, n_pos), layers: Vec::new() }
    }

    /// Adds the pattern [head, query, key] of the next layer.
    fn push(&mut self, pattern: &Array3<f32>) {
        let seen = |(query, row): (usize, ArrayView1<'_, f32>)| row.slice(s![..=query]).to_vec();
        let rows = pattern.outer_iter().flat_map(|head| {
            let rows: Vec<Vec<f32>> = head.rows().into_iter().enumerate().map(seen).collect();
            rows
        });
        match self {
            Attention::Whole(parts) => {
                let mut packed = Rows::default();
                rows.for_each(|row| packed.push(&row));
                parts.push(part(format!("attention.{}", parts.len()), &packed.into_bytes()));
            }
            Attention::Strongest { most, layers } => layers.push(rows.map(|row| strongest(&row, *most)).collect()),
        }
    }

    /// The page's metadata, and the parts. They take at most `room` bytes, unless one weight per row takes more.
    fn pack(self, room: usize) -> (Value, Parts) {
        let (mut n, layers) = match self {
            Attention::Whole(parts) => return (json!({"as": "f16"}), parts),
            Attention::Strongest { most, layers } => (most, layers),
        };
        loop {
            let parts: Parts = layers.iter().enumerate().flat_map(|(layer, rows)| pack_keys(layer, rows, n)).collect();
            if total(&parts) <= room || n == 1 {
                return (json!({"as": "strongest", "n": n}), parts);
            }
            n = (n * room / total(&parts)).clamp(1, n - 1);
        }
    }
}

/// The `n` largest weights of every row. Keys ascend, and each is stored as its distance from the one before, because
/// small numbers deflate well.
fn pack_keys(layer: usize, rows: &[Vec<(u32, f32)>], n: usize) -> Parts {
    let mut packed = Picked::default();
    for row in rows {
        let mut row = row[..n.min(row.len())].to_vec();
        row.sort_unstable_by_key(|(key, _)| *key);
        let mut before = 0;
        row.iter_mut().for_each(|(key, _)| (before, *key) = (*key, *key - before));
        packed.push(&row);
    }
    packed.pack(&format!("attention.{layer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpt2() -> Config {
        let json = r#"{"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}"#;
        Config::from_json(json).unwrap()
    }

    /// What README and the page state for gpt2's shape.
    #[test]
    fn what_is_kept_at_which_length() {
        let of = |n_pos| Stream::choose(&gpt2(), n_pos, room(LARGEST, n_pos));
        assert_eq!(
            (of(7), of(340), of(360), of(1024), of(1100)),
            (Stream::F16, Stream::F16, Stream::Coarse, Stream::Coarse, Stream::Strongest)
        );
        let whole = |n_pos| matches!(Attention::new(&gpt2(), n_pos, room(LARGEST, n_pos) / 2), Attention::Whole(_));
        assert!(whole(220) && !whole(240));
    }
}
