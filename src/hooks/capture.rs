//! The results of a run. Owns [`Sink`], which receives recorded values as they leave the device, and [`Capture`], the
//! sink that stores them in memory. `output/` has the sinks that write files. The only part of a device used here is
//! the pool of host memory. Read next: `recorder.rs`, which fills a sink.

use crate::batch::Batch;
use crate::device::host_pool::HostPool;
use crate::hooks::request::{EditRecord, HookError, Hooks};
use crate::hooks::site::Site;
use ndarray::{ArrayD, ArrayViewD, Axis, CowArray, IxDyn, Slice};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{OnceLock, Weak};

/// Receives what a run records, piece by piece, so that the values never have to be in memory all at once.
///
/// ```
/// use actscope::hooks::capture::Sink;
/// use actscope::{Session, Site};
/// use ndarray::ArrayViewD;
///
/// /// Counts values.
/// struct Count(usize);
///
/// impl Sink for Count {
///     fn put(&mut self, _: Site, _: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
///         self.0 += values.len();
///         Ok(())
///     }
/// }
///
/// let session = Session::open("demo")?;
/// let batch = session.model().encode(&["The cat sat on the mat."])?;
/// let mut hooks = session.model().hooks();
/// hooks.tap("ln_f")?;
/// let mut count = Count(0);
/// session.run_into(&batch, &hooks, &mut count)?;
/// assert_eq!(count.0, batch.n_pos() * session.model().config().n_embd);
/// # Ok::<(), actscope::Error>(())
/// ```
pub trait Sink {
    /// Receives one text's values at one site: the site's axes without the batch axis, in standard order, without
    /// padding ([`Hooks::shape_of_text`]). The pieces of a site come in the order of the texts. A text of which nothing
    /// is recorded is skipped.
    ///
    /// # Errors
    /// Those of the sink; an error ends the run.
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()>;

    /// False for a site whose values the sink has no use for; they are then not brought to the host.
    fn wants(&self, _site: Site) -> bool {
        true
    }

    /// [`Sink::put`] by value, so that the sink may store the array instead of copying it. Returns the array if the
    /// sink did not store it.
    ///
    /// # Errors
    /// As [`Sink::put`].
    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<Option<ArrayD<f32>>> {
        self.put(site, text, values.view())?;
        Ok(Some(values))
    }

    /// Receives the result of [`crate::device::Operations::argmax`] for the last logits of a text.
    fn argmax(&mut self, _text: usize, _of_chunks: &[f32]) {}

    /// Receives the sha256 of the values that the function of edit `n` returned for a text.
    fn edited(&mut self, _n: usize, _text: usize, _sha256: &str) {}
}

/// Receives pieces of arrays: [`Sink::put`] for values and gradients.
pub trait ArraySink {
    /// Receives one text's part of an array.
    ///
    /// # Errors
    /// Those of the sink; an error ends the run.
    fn put_array(&mut self, array: ArrayKey, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()>;
}

/// Receives rows of a text at one site, in order.
pub trait RowSink {
    /// Receives rows `first..` of one text's values: like [`Sink::put`], but with a part of the position axis.
    ///
    /// # Errors
    /// Ends the run.
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()>;
}

/// Receives rows of texts that grow. Rows of scores and patterns have the keys that exist so far.
pub trait StepSink: RowSink {
    /// Sets some keys of one row of scores or patterns, in every head, to a value.
    ///
    /// # Errors
    /// Ends the run.
    fn fill_keys(&mut self, site: Site, text: usize, row: usize, keys: Range<usize>, value: f32)
    -> std::io::Result<()>;
}

/// The sink that wants nothing.
impl Sink for () {
    fn put(&mut self, _: Site, _: usize, _: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        Ok(())
    }

    fn wants(&self, _: Site) -> bool {
        false
    }
}

impl RowSink for () {
    fn put_rows(&mut self, _: Site, _: usize, _: usize, _: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        Ok(())
    }
}

impl StepSink for () {
    fn fill_keys(&mut self, _: Site, _: usize, _: usize, _: Range<usize>, _: f32) -> std::io::Result<()> {
        Ok(())
    }
}

/// What one array of an output holds: a site's values, or the gradients by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArrayKey {
    /// The site.
    pub site: Site,
    /// True for the gradients.
    pub is_gradient: bool,
}

impl ArrayKey {
    /// The array's name: the hook's, for gradients with `_grad` at its end.
    pub fn name(self) -> String {
        self.site.name() + if self.is_gradient { "_grad" } else { "" }
    }
}

impl From<Site> for ArrayKey {
    fn from(site: Site) -> ArrayKey {
        ArrayKey { site, is_gradient: false }
    }
}

/// Recorded values that can be read again, text by text. Formats that are written from front to back read them.
pub trait Arrays {
    /// Every array with its shape, [batch, ...], in run order.
    fn shapes(&self) -> Vec<(ArrayKey, Vec<usize>)>;

    /// One text's part of an array, padded with zeros to the length of the longest.
    ///
    /// # Errors
    /// Those of reading the file that holds them.
    fn of_text(&self, array: ArrayKey, text: usize) -> std::io::Result<CowArray<'_, f32, IxDyn>>;
}

/// What one run recorded: one array per tapped site, in run order. An array is [batch, ...] with the axes of the hook
/// dictionary. Texts shorter than the longest are padded on the right with zeros.
///
/// ```
/// let session = actscope::Session::open("demo")?;
/// let batch = session.model().encode(&["The cat sat on the mat."])?;
/// let mut hooks = session.model().hooks();
/// hooks.tap("pattern.2")?;
/// let capture = session.run(&batch, &hooks)?;
/// let pattern = &capture["blocks.2.attn.hook_pattern"]; // [batch, head, query, key]
/// assert_eq!(pattern[[0, 4, 0, 0]], 1.0, "the first token sees only itself");
/// # Ok::<(), actscope::Error>(())
/// ```
///
/// Two captures are equal when their values are equal; the comparison ignores edit records, which are provenance.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    slots: BTreeMap<Site, Slot>,
    edits: Vec<EditRecord>,
}

/// Storage for one array, allocated at first use. If the batch has one text, its values arrive as one array, which is
/// stored without a copy.
#[derive(Clone, Debug)]
struct Slot {
    shape: Vec<usize>,
    values: OnceLock<ArrayD<f32>>,
    /// The pool that receives the memory when the array is dropped.
    memory: Weak<HostPool>,
}

impl PartialEq for Capture {
    fn eq(&self, other: &Capture) -> bool {
        self.slots == other.slots
    }
}

impl Slot {
    /// The array. It is all zeros if nothing was recorded.
    fn array(&self) -> &ArrayD<f32> {
        self.values.get_or_init(|| {
            let n = self.shape.iter().product();
            let zeros = self.memory.upgrade().map_or_else(|| vec![0.0; n], |memory| memory.zeros(n));
            ArrayD::from_shape_vec(IxDyn(&self.shape), zeros).expect("as many as the shape has")
        })
    }

    fn array_mut(&mut self) -> &mut ArrayD<f32> {
        self.array();
        self.values.get_mut().expect("made in the line before")
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Slot) -> bool {
        self.array() == other.array()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(array), Some(memory)) = (self.values.take(), self.memory.upgrade()) {
            memory.give_back(array.into_raw_vec_and_offset().0);
        }
    }
}

impl Capture {
    /// Checks the request against the batch and makes arrays of zeros for the results.
    ///
    /// # Errors
    /// [`HookError`] for positions or edit values that do not fit this batch, or arrays too large for this machine.
    pub fn empty(hooks: &Hooks, batch: &Batch) -> Result<Capture, HookError> {
        hooks.check_batch(batch)?;
        Capture::unchecked(hooks, batch, Weak::new())
    }

    /// [`Capture::empty`] for a request that was checked already, with memory from a pool.
    pub(crate) fn unchecked(hooks: &Hooks, batch: &Batch, memory: Weak<HostPool>) -> Result<Capture, HookError> {
        let shapes = hooks.shapes(batch);
        let elements = |shape: &[usize]| shape.iter().map(|&n| n as u128).product::<u128>();
        let bytes = shapes.iter().map(|(_, shape)| size_of::<f32>() as u128 * elements(shape)).sum();
        // Try to reserve all of it at once: the system refuses one request that is too large, but accepts many small
        // ones and fails only when they are used. Later allocations of single arrays would abort instead of returning
        // an error.
        let room = usize::try_from(bytes).is_ok_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok());
        if !room {
            return Err(HookError::Memory { bytes });
        }
        let slot = |shape| Slot { shape, values: OnceLock::new(), memory: memory.clone() };
        let slots = shapes.into_iter().map(|(site, shape)| (site, slot(shape))).collect();
        Ok(Capture { slots, edits: hooks.edit_records() })
    }

    /// A capture that records the edits of a request and no values.
    pub(crate) fn of_edits(hooks: &Hooks) -> Capture {
        Capture { slots: BTreeMap::new(), edits: hooks.edit_records() }
    }

    /// The values of one site; `None` if it was not tapped.
    pub fn get(&self, site: Site) -> Option<ArrayViewD<'_, f32>> {
        self.slots.get(&site).map(|slot| slot.array().view())
    }

    /// Removes and returns the values of one site.
    pub fn take(&mut self, site: Site) -> Option<ArrayD<f32>> {
        self.slots.remove(&site).map(|mut slot| std::mem::take(slot.array_mut()))
    }

    /// The edits of the run, with the hashes of their values; empty for an unedited run.
    pub fn edits(&self) -> &[EditRecord] {
        &self.edits
    }

    /// All sites in run order.
    pub fn iter(&self) -> impl Iterator<Item = (Site, &ArrayD<f32>)> {
        self.slots.iter().map(|(site, slot)| (*site, slot.array()))
    }
}

impl std::ops::Index<&str> for Capture {
    type Output = ArrayD<f32>;

    /// The values of the site with this name, in any dialect that [`Site`]'s `FromStr` reads.
    ///
    /// # Panics
    /// When no site has this name, or it was not tapped.
    fn index(&self, name: &str) -> &ArrayD<f32> {
        let site: Site = name.parse().unwrap_or_else(|e| panic!("{e}"));
        self.slots.get(&site).unwrap_or_else(|| panic!("{name} was not tapped")).array()
    }
}

impl Sink for Capture {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let Some(slot) = self.slots.get_mut(&site) else { return Ok(()) };
        let mut of_text = slot.array_mut().index_axis_mut(Axis(0), text);
        for (axis, n) in values.shape().iter().enumerate() {
            of_text.slice_axis_inplace(Axis(axis), Slice::from(..*n));
        }
        of_text.assign(&values);
        Ok(())
    }

    fn wants(&self, site: Site) -> bool {
        self.slots.contains_key(&site)
    }

    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<Option<ArrayD<f32>>> {
        match self.slots.get_mut(&site) {
            // This piece is the whole array.
            Some(slot) if slot.shape[0] == 1 && slot.shape[1..] == *values.shape() => {
                slot.values = OnceLock::from(values.insert_axis(Axis(0)));
                Ok(None)
            }
            _ => {
                self.put(site, text, values.view())?;
                Ok(Some(values))
            }
        }
    }

    fn edited(&mut self, n: usize, _text: usize, sha256: &str) {
        let Some(record) = self.edits.get_mut(n) else { return };
        match &mut record.sha256 {
            // One hash per text, in order.
            Some(hashes) => {
                hashes.push(' ');
                hashes.push_str(sha256);
            }
            none => *none = Some(sha256.into()),
        }
    }
}

impl RowSink for Capture {
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let Some(slot) = self.slots.get_mut(&site) else { return Ok(()) };
        let mut of_text = slot.array_mut().index_axis_mut(Axis(0), text);
        for (axis, n) in values.shape().iter().enumerate() {
            let from = if axis == site.pos_axis() { first } else { 0 };
            of_text.slice_axis_inplace(Axis(axis), Slice::from(from..from + n));
        }
        of_text.assign(&values);
        Ok(())
    }
}

impl StepSink for Capture {
    fn fill_keys(
        &mut self,
        site: Site,
        text: usize,
        row: usize,
        keys: Range<usize>,
        value: f32,
    ) -> std::io::Result<()> {
        let Some(slot) = self.slots.get_mut(&site) else { return Ok(()) };
        let mut of_text = slot.array_mut().index_axis_mut(Axis(0), text);
        of_text.index_axis_mut(Axis(1), row).slice_axis_mut(Axis(1), Slice::from(keys)).fill(value);
        Ok(())
    }
}

impl Arrays for Capture {
    fn shapes(&self) -> Vec<(ArrayKey, Vec<usize>)> {
        self.slots.iter().map(|(site, slot)| ((*site).into(), slot.shape.clone())).collect()
    }

    fn of_text(&self, array: ArrayKey, text: usize) -> std::io::Result<CowArray<'_, f32, IxDyn>> {
        Ok(self.slots[&array.site].array().index_axis(Axis(0), text).into())
    }
}
