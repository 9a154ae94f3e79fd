//! Carries out a request while the forward pass runs: edits, taps, readback, and the early end of the run once
//! everything requested is recorded. Owns [`Recorder`]. `request.rs` owns the request, `layout.rs` its place in
//! tensors, `capture.rs` the results.
//!
//! The recorded value is the one that the rest of the model reads: [`Recorder::at`] takes a value, edits it if
//! requested, records it if requested, and returns it. Read next: `../model/forward.rs`, which calls it.

use super::capture::Sink;
use super::layout::Layout;
use super::request::{Edit, HookError, Select, hash};
use super::site::Site;
use crate::device::{Change, Device, DeviceError, MASKED, Operations, Window};
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};

/// Why a forward pass ended before its last operation. `Done` is not an error: everything requested is recorded.
#[derive(Debug)]
pub enum Stop {
    /// Everything requested is recorded.
    Done,
    /// The progress callback ended the run.
    Cancelled,
    /// The device failed.
    Fault(DeviceError),
    /// The sink failed.
    Sink(std::io::Error),
    /// The result of an edit function does not fit.
    Hook(HookError),
}

impl From<DeviceError> for Stop {
    fn from(e: DeviceError) -> Stop {
        Stop::Fault(e)
    }
}

impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Stop {
        Stop::Sink(e)
    }
}

/// A progress callback. It receives the number of finished blocks and may end the run.
pub type Progress<'a> = &'a dyn Fn(usize) -> ControlFlow<()>;

/// Sees the values of a run, each after its edits and before anything reads it.
pub trait Watch<D: Device> {
    /// Sees a value, of one text or of all texts of the run, and returns it.
    fn see(&self, dev: &D, site: Site, text: Option<usize>, x: D::Tensor) -> D::Tensor;

    /// A block was recorded.
    fn boundary(&self, dev: &D);

    /// True for a site that it must see although the request does not name it.
    fn wants(&self, site: Site) -> bool;

    /// The last site that it wants; the run goes at least that far.
    fn last(&self) -> Option<Site>;
}

/// How many submits may be unfinished on the device when the next block is recorded.
const SUBMITS_IN_FLIGHT: usize = 2;

/// A readback in flight, and where its values belong.
struct Pending<D: Device> {
    site: Site,
    text: Option<usize>,
    /// The number of texts of whose logits these are the result of [`Operations::argmax`], or 0 for values of a site.
    argmax_of: usize,
    staged: D::Staged,
}

/// Edit `n`, computed on the host.
struct HostEdit<'a> {
    n: usize,
    select: &'a Select,
    name: &'a str,
    call: &'a dyn Fn(ArrayViewD<'_, f32>) -> ArrayD<f32>,
}

/// Carries out a request while a forward pass runs over some texts of a batch.
pub struct Recorder<'a, D: Device> {
    layout: &'a Layout<'a>,
    texts: Range<usize>,
    last: Option<Site>,
    staged: Vec<Pending<D>>,
    /// What earlier submits have staged, in order.
    in_flight: VecDeque<Vec<Pending<D>>>,
    staged_bytes: usize,
    sink: &'a mut dyn Sink,
    progress: Option<Progress<'a>>,
    watch: Option<&'a dyn Watch<D>>,
    boundaries: usize,
    /// For each submit that may be unfinished, how many blocks end with it.
    submitted: VecDeque<usize>,
    finished: usize,
}

impl<D: Device> std::fmt::Debug for Recorder<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("texts", &self.texts).field("last", &self.last).finish_non_exhaustive()
    }
}

impl<'a, D: Device> Recorder<'a, D> {
    /// A recorder for a run over `texts` of the layout's batch. `sink` must be made for the same request and batch.
    /// `progress` receives the number of finished blocks.
    pub fn new(
        layout: &'a Layout<'a>,
        texts: Range<usize>,
        sink: &'a mut dyn Sink,
        progress: Option<Progress<'a>>,
    ) -> Recorder<'a, D> {
        let (staged, in_flight, submitted) = (Vec::new(), VecDeque::new(), VecDeque::new());
        let (last, staged_bytes, boundaries, finished) = (layout.hooks().last(), 0, 0, 0);
        Recorder {
            layout,
            texts,
            last,
            staged,
            in_flight,
            staged_bytes,
            sink,
            progress,
            watch: None,
            boundaries,
            submitted,
            finished,
        }
    }

    /// The same recorder, whose values `watch` sees.
    pub(crate) fn watched(self, watch: Option<&'a dyn Watch<D>>) -> Recorder<'a, D> {
        let last = self.last.max(watch.and_then(Watch::last));
        Recorder { watch, last, ..self }
    }

    /// True when `site` has a tap or an edit. Only the functions that choose between a fused and an unfused form may
    /// call it.
    pub fn wants(&self, site: Site) -> bool {
        self.layout.wants(site) || self.watch.is_some_and(|watch| watch.wants(site))
    }

    /// The positions of a text of the run whose logits are needed, or `None` for all.
    pub fn logits_of(&self, text: usize) -> Option<Vec<Range<usize>>> {
        self.layout.logits_of(self.texts.start + text)
    }

    /// Edits and records `x` as requested, and returns it.
    ///
    /// # Errors
    /// [`Stop::Done`] when no later site is requested, so that the caller's `?` ends the run here.
    pub async fn at(&mut self, dev: &D, site: Site, x: D::Tensor) -> Result<D::Tensor, Stop> {
        let x = self.touch(dev, site, None, x).await?;
        self.stop_after(site)?;
        Ok(x)
    }

    /// [`Recorder::at`] for sites that lie side by side in one tensor.
    ///
    /// # Errors
    /// As [`Recorder::at`], for the last of them.
    pub async fn at_each<const N: usize>(
        &mut self,
        dev: &D,
        sites: [Site; N],
        mut x: D::Tensor,
    ) -> Result<D::Tensor, Stop> {
        for site in sites {
            x = self.touch(dev, site, None, x).await?;
        }
        self.stop_after(sites[N - 1])?;
        Ok(x)
    }

    /// [`Recorder::at`] for sites that are computed text by text. It does not end the run, because the other texts must
    /// be recorded too; the caller calls [`Recorder::stop_after`] after the last text.
    ///
    /// # Errors
    /// As [`Recorder::at`], except [`Stop::Done`].
    pub async fn at_text(&mut self, dev: &D, site: Site, text: usize, x: D::Tensor) -> Result<D::Tensor, Stop> {
        self.touch(dev, site, Some(self.texts.start + text), x).await
    }

    /// # Errors
    /// [`Stop::Done`] when no later site is requested.
    pub fn stop_after(&self, site: Site) -> Result<(), Stop> {
        if self.last.is_none_or(|last| last <= site) { Err(Stop::Done) } else { Ok(()) }
    }

    /// Ends a block: submits the work recorded so far, if it is much for the device or if the staged bytes exceed the
    /// budget. In that case it reads back what was staged two submits before, so that the device works on the later ones
    /// meanwhile. At most two submits are in flight, so progress reports follow the device, and an error ends the run
    /// soon.
    ///
    /// # Errors
    /// [`Stop::Fault`] when the device fails, [`Stop::Sink`] when the sink fails, [`Stop::Cancelled`] when the progress
    /// callback ends the run.
    pub async fn boundary(&mut self, dev: &D) -> Result<(), Stop> {
        if let Some(watch) = self.watch {
            watch.boundary(dev);
        }
        self.boundaries += 1;
        let is_full = self.staged_bytes >= self.layout.hooks().staging_budget;
        let is_sent = if is_full {
            dev.submit();
            true
        } else {
            dev.submit_if_enough()
        };
        if is_full {
            self.staged_bytes = 0;
            self.in_flight.push_back(std::mem::take(&mut self.staged));
            if self.in_flight.len() > SUBMITS_IN_FLIGHT {
                let earliest = self.in_flight.pop_front().unwrap_or_default();
                self.collect(dev, earliest).await?;
            }
        }
        if is_sent {
            self.submitted.push_back(self.boundaries);
            dev.settle(SUBMITS_IN_FLIGHT).await?;
            while self.submitted.len() > SUBMITS_IN_FLIGHT {
                self.finished = self.submitted.pop_front().unwrap_or(self.finished);
            }
        }
        self.report()
    }

    /// Calls the progress callback.
    fn report(&self) -> Result<(), Stop> {
        match self.progress.map(|progress| progress(self.finished)) {
            Some(ControlFlow::Break(())) => Err(Stop::Cancelled),
            Some(ControlFlow::Continue(())) | None => Ok(()),
        }
    }

    /// Reads back everything still in flight, and reports that all blocks are finished: where a short run is one submit, that
    /// is the only report of more than zero blocks.
    ///
    /// # Errors
    /// As [`Recorder::boundary`].
    pub async fn finish(mut self, dev: &D) -> Result<(), Stop> {
        dev.submit();
        for earlier in std::mem::take(&mut self.in_flight) {
            self.collect(dev, earlier).await?;
        }
        let staged = std::mem::take(&mut self.staged);
        self.collect(dev, staged).await?;
        self.finished = self.boundaries;
        self.report()
    }

    /// Applies the edits, then the tap. `text` is the text that `x` holds, if it holds a single one.
    async fn touch(&mut self, dev: &D, site: Site, text: Option<usize>, mut x: D::Tensor) -> Result<D::Tensor, Stop> {
        let layout = self.layout;
        let texts = text.map_or(self.texts.clone(), |i| i..i + 1);
        for (n, select, edit) in layout.edits(site) {
            match edit {
                Edit::With(function) => {
                    let call = |values: ArrayViewD<'_, f32>| function.call(values);
                    let by = HostEdit { n, select, name: function.name(), call: &call };
                    x = self.edit_with(dev, site, by, texts.clone(), x).await?;
                }
                _ => {
                    for (text, window) in layout.windows(site, select, texts.clone()) {
                        let first = text.unwrap_or(texts.start);
                        if let (false, Some(change)) = (window.is_empty(), layout.change(n, site, edit, first, &window))
                        {
                            x = dev.edit(&x, window, change);
                        }
                    }
                }
            }
        }
        if let Some(watch) = self.watch {
            x = watch.see(dev, site, text, x);
        }
        self.record(dev, site, text, &x);
        Ok(x)
    }

    /// Records what the request taps of a site. `text` is the text that `x` holds, if it holds a single one.
    pub(crate) fn record(&mut self, dev: &D, site: Site, text: Option<usize>, x: &D::Tensor) {
        let texts = text.map_or(self.texts.clone(), |i| i..i + 1);
        let Some(select) = self.layout.hooks().tapped(site).filter(|_| self.sink.wants(site)) else { return };
        for (text, window) in self.layout.windows(site, select, texts) {
            if !window.is_empty() {
                self.staged_bytes += 4 * window.len();
                self.staged.push(Pending { site, text, argmax_of: 0, staged: dev.copy_out(x, &window) });
            }
        }
    }

    /// Records what a choice of the likeliest token needs of logits with one row for each of `n` texts from `first` on,
    /// if the request wants it.
    pub fn argmax(&mut self, dev: &D, first: usize, n: usize, logits: &D::Tensor) {
        if self.layout.hooks().argmax {
            let found = dev.argmax(logits);
            let staged = dev.copy_out(&found, &Window::all(dev.shape(&found)));
            let text = Some(self.texts.start + first);
            self.staged.push(Pending { site: Site::Unembed, text, argmax_of: n, staged });
        }
    }

    /// Reads the selected values of each text back, calls the function, and writes its result in their place. Masked
    /// entries of scores and patterns do not change.
    async fn edit_with(
        &mut self,
        dev: &D,
        site: Site,
        HostEdit { n, select, name, call }: HostEdit<'_>,
        texts: Range<usize>,
        mut x: D::Tensor,
    ) -> Result<D::Tensor, Stop> {
        for text in texts.clone() {
            if let Some(window) = self.window_of_text(site, select, text, &texts) {
                let staged = dev.copy_out(&x, &window);
                dev.submit();
                let mut values = dev.read(staged).await?;
                unmask(site, &mut values);
                let shape = self.layout.shape_of_selection(site, select, text);
                let given = ArrayViewD::from_shape(IxDyn(&shape), &values).expect("a window of one text is its shape");
                let returned = call(given);
                if returned.shape() != shape {
                    return Err(Stop::Hook(HookError::Returned {
                        site: site.name(),
                        name: name.into(),
                        text,
                        given: values.len(),
                        returned: returned.len(),
                    }));
                }
                let mut returned: Vec<f32> = returned.iter().map(|v| v.max(MASKED)).collect();
                if site.is_square() {
                    let entries = window.each_row().flat_map(|row| window.each_col().map(move |key| (row, key)));
                    for (i, (row, key)) in entries.enumerate() {
                        if !self.layout.sees(text, row, key) {
                            returned[i] = values[i].max(MASKED);
                        }
                    }
                }
                self.sink.edited(n, text, &hash(&returned));
                x = dev.edit(&x, window, Change::Replace(returned));
                dev.host_memory().give_back(values);
            }
        }
        Ok(x)
    }

    /// The window of one of the texts that run together, in the site's tensor; `None` if it is empty.
    fn window_of_text(&self, site: Site, select: &Select, text: usize, texts: &Range<usize>) -> Option<Window> {
        let batch = self.layout.batch();
        let (_, mut window) = self.layout.windows(site, select, text..text + 1).pop()?;
        let before = batch.texts()[text].start - batch.texts()[texts.start].start;
        window.rows.iter_mut().for_each(|rows| *rows = rows.start + before..rows.end + before);
        (!window.is_empty()).then_some(window)
    }

    async fn collect(&mut self, dev: &D, pending: Vec<Pending<D>>) -> Result<(), Stop> {
        for Pending { site, text, argmax_of, staged } in pending {
            let values = dev.read(staged).await?;
            if let (1.., Some(first)) = (argmax_of, text) {
                let rows = values.chunks(values.len() / argmax_of);
                rows.zip(first..).for_each(|(row, text)| self.sink.argmax(text, row));
                dev.host_memory().give_back(values);
                continue;
            }
            self.hand_over(dev, site, text, values)?;
        }
        Ok(())
    }

    /// Passes a window's values to the sink, text by text.
    fn hand_over(&mut self, dev: &D, site: Site, text: Option<usize>, mut values: Vec<f32>) -> std::io::Result<()> {
        unmask(site, &mut values);
        let (hooks, batch) = (self.layout.hooks(), self.layout.batch());
        let texts = text.map_or(self.texts.clone(), |i| i..i + 1);
        if texts.len() == 1 && !values.is_empty() {
            let shape = hooks.shape_of_text(site, batch, texts.start);
            let values = ArrayD::from_shape_vec(IxDyn(&shape), values).expect("a window of one text is its shape");
            if let Some(values) = self.sink.give(site, texts.start, values)? {
                dev.host_memory().give_back(values.into_raw_vec_and_offset().0);
            }
            return Ok(());
        }
        let mut rest = values.as_slice();
        for i in texts {
            let shape = hooks.shape_of_text(site, batch, i);
            let (of_text, later) = rest.split_at(shape.iter().product());
            rest = later;
            if !of_text.is_empty() {
                let of_text = ArrayViewD::from_shape(IxDyn(&shape), of_text).expect("it was cut to this shape");
                self.sink.put(site, i, of_text)?;
            }
        }
        dev.host_memory().give_back(values);
        Ok(())
    }
}

/// Sets masked scores to -inf, as outputs have them.
fn unmask(site: Site, values: &mut [f32]) {
    if matches!(site, Site::AttnScores(_)) {
        values.iter_mut().for_each(|v| *v = if *v == MASKED { f32::NEG_INFINITY } else { *v });
    }
}
