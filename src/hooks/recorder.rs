//! Carries out a request while the forward pass runs: edits, taps, readback, and the end of the run once everything asked
//! for is had. Owns [`Recorder`]; `hooks.rs` owns what is asked and what comes back.
//!
//! What is tapped is what flows on: [`Recorder::at`] takes a value, changes it if asked, records it if asked, and hands it
//! on. Read next: `model.rs`, which calls it.

use crate::device::{Device, DeviceError, Edit, MASKED, Window, buffer_pool};
use crate::hooks::capture::Sink;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::model::batch::Batch;
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use std::ops::Range;

/// Why a forward pass ended before its last operation. `Done` is no fault: everything asked for is recorded.
#[derive(Debug)]
pub enum Stop {
    /// The last request is met.
    Done,
    /// The device failed.
    Fault(DeviceError),
    /// The sink takes no more.
    Full(std::io::Error),
}

impl From<DeviceError> for Stop {
    fn from(e: DeviceError) -> Stop {
        Stop::Fault(e)
    }
}

impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Stop {
        Stop::Full(e)
    }
}

/// How many submitted blocks the device may still be busy with when the next one is recorded.
const BLOCKS_UNDER_WAY: usize = 2;

/// A copy on its way to the host, and where it belongs.
struct Pending<D: Device> {
    site: Site,
    text: Option<usize>,
    staged: D::Staged,
}

/// Carries out [`Hooks`] while a forward pass runs over some texts of a batch.
pub struct Recorder<'a, D: Device> {
    hooks: &'a Hooks,
    batch: &'a Batch,
    texts: Range<usize>,
    last: Option<Site>,
    staged: Vec<Pending<D>>,
    in_flight: Vec<Pending<D>>,
    staged_bytes: usize,
    sink: &'a mut dyn Sink,
    progress: Option<&'a dyn Fn(usize)>,
    boundaries: usize,
}

impl<'a, D: Device> Recorder<'a, D> {
    /// For a run over `texts` of `batch`, into a sink made for the same request and batch. `progress` is told the number of
    /// finished blocks.
    pub fn new(
        hooks: &'a Hooks,
        batch: &'a Batch,
        texts: Range<usize>,
        sink: &'a mut dyn Sink,
        progress: Option<&'a dyn Fn(usize)>,
    ) -> Recorder<'a, D> {
        let (staged, in_flight) = (Vec::new(), Vec::new());
        let last = hooks.last();
        Recorder { hooks, batch, texts, last, staged, in_flight, staged_bytes: 0, sink, progress, boundaries: 0 }
    }

    /// True when anything is asked of `site`. Only the helpers that hide a fusion may ask.
    pub fn wants(&self, site: Site) -> bool {
        self.hooks.tapped(site).is_some() || self.hooks.edits(site).next().is_some()
    }

    /// Changes and records `x` as asked, and hands it on.
    ///
    /// # Errors
    /// [`Stop::Done`] when nothing after `site` was asked for, so that the caller's `?` ends the run here.
    pub fn at(&mut self, dev: &D, site: Site, mut x: D::Tensor) -> Result<D::Tensor, Stop> {
        self.touch(dev, site, None, &mut x);
        self.stop_after(site)?;
        Ok(x)
    }

    /// [`Recorder::at`] for sites that lie side by side in one tensor.
    ///
    /// # Errors
    /// As [`Recorder::at`], for the last of them.
    pub fn at_each<const N: usize>(&mut self, dev: &D, sites: [Site; N], mut x: D::Tensor) -> Result<D::Tensor, Stop> {
        for site in sites {
            self.touch(dev, site, None, &mut x);
        }
        self.stop_after(sites[N - 1])?;
        Ok(x)
    }

    /// [`Recorder::at`] for sites that are computed text by text. Never ends the run: the other texts must pass too;
    /// [`Recorder::stop_after`] is the caller's to say.
    pub fn at_text(&mut self, dev: &D, site: Site, text: usize, mut x: D::Tensor) -> D::Tensor {
        self.touch(dev, site, Some(self.texts.start + text), &mut x);
        x
    }

    /// # Errors
    /// [`Stop::Done`] when nothing after `site` was asked for.
    pub fn stop_after(&self, site: Site) -> Result<(), Stop> {
        if self.last.is_none_or(|last| last <= site) { Err(Stop::Done) } else { Ok(()) }
    }

    /// The end of a block: what was recorded so far begins to run, and once the staged bytes pass the budget, what the
    /// blocks *before* this one recorded is read, so that the device always has this block to work on meanwhile. Never more
    /// than two blocks are under way: progress is what the device has done, and a fault ends the run soon.
    ///
    /// # Errors
    /// [`Stop::Fault`] when the device failed, [`Stop::Full`] when the sink did.
    pub async fn boundary(&mut self, dev: &D) -> Result<(), Stop> {
        dev.submit();
        if self.staged_bytes >= self.hooks.staging_budget {
            self.staged_bytes = 0;
            let earlier = std::mem::replace(&mut self.in_flight, std::mem::take(&mut self.staged));
            self.collect(dev, earlier).await?;
        }
        dev.settle(BLOCKS_UNDER_WAY).await?;
        self.boundaries += 1;
        if let Some(progress) = self.progress {
            progress(self.boundaries.saturating_sub(BLOCKS_UNDER_WAY));
        }
        Ok(())
    }

    /// Reads what is still on its way.
    ///
    /// # Errors
    /// As [`Recorder::boundary`].
    pub async fn finish(mut self, dev: &D) -> Result<(), Stop> {
        dev.submit();
        let in_flight = std::mem::take(&mut self.in_flight);
        self.collect(dev, in_flight).await?;
        let staged = std::mem::take(&mut self.staged);
        self.collect(dev, staged).await
    }

    /// Edits, then the tap. `text` is the one that `x` holds, where it holds one.
    fn touch(&mut self, dev: &D, site: Site, text: Option<usize>, x: &mut D::Tensor) {
        let hooks = self.hooks;
        let texts = text.map_or(self.texts.clone(), |i| i..i + 1);
        for (select, edit) in hooks.edits(site) {
            let earlier = hooks.windows(site, select, self.batch, 0..texts.start);
            let before = earlier.iter().map(|(_, window)| window.len()).sum();
            for (_, window) in hooks.windows(site, select, self.batch, texts.clone()) {
                if !window.is_empty() {
                    dev.edit(x, &window, &part_of(edit, before, &window));
                }
            }
        }
        let Some(select) = hooks.tapped(site) else { return };
        for (text, window) in hooks.windows(site, select, self.batch, texts) {
            if !window.is_empty() {
                self.staged_bytes += 4 * window.len();
                self.staged.push(Pending { site, text, staged: dev.copy_out(x, &window) });
            }
        }
    }

    async fn collect(&mut self, dev: &D, pending: Vec<Pending<D>>) -> Result<(), Stop> {
        for Pending { site, text, staged } in pending {
            let values = dev.read(staged).await?;
            self.hand_over(site, text, values)?;
        }
        Ok(())
    }

    /// Gives a window's values to the sink, text by text.
    fn hand_over(&mut self, site: Site, text: Option<usize>, mut values: Vec<f32>) -> std::io::Result<()> {
        if matches!(site, Site::AttnScores(_)) {
            values.iter_mut().for_each(|v| *v = if *v == MASKED { f32::NEG_INFINITY } else { *v });
        }
        let texts = text.map_or(self.texts.clone(), |i| i..i + 1);
        if texts.len() == 1 && !values.is_empty() {
            let shape = self.hooks.shape_of_text(site, self.batch, texts.start);
            let values = ArrayD::from_shape_vec(IxDyn(&shape), values).expect("a window of one text is its shape");
            return self.sink.give(site, texts.start, values);
        }
        let mut rest = values.as_slice();
        for i in texts {
            let shape = self.hooks.shape_of_text(site, self.batch, i);
            let (of_text, later) = rest.split_at(shape.iter().product());
            rest = later;
            if !of_text.is_empty() {
                let of_text = ArrayViewD::from_shape(IxDyn(&shape), of_text).expect("it was cut to this shape");
                self.sink.put(site, i, of_text)?;
            }
        }
        buffer_pool::give_back(values);
        Ok(())
    }
}

/// The part of an edit's values that falls on a window, which starts `before` values into the whole.
fn part_of(edit: &Edit, before: usize, window: &Window) -> Edit {
    let cut = |values: &Vec<f32>| match values.len() == window.cols.len() {
        true => values.clone(),
        false => values[before..before + window.len()].to_vec(),
    };
    match edit {
        Edit::Zero => Edit::Zero,
        Edit::Scale(factor) => Edit::Scale(*factor),
        Edit::Add(values) => Edit::Add(cut(values)),
        Edit::Replace(values) => Edit::Replace(cut(values)),
    }
}
