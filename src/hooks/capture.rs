//! What comes back from a run. Owns [`Sink`], where recorded values go as they leave the device, and [`Capture`], the sink
//! that keeps them in memory. `output/` has the sinks that write files. Knows sites, batches and requests, and of devices
//! only where the memory of values comes from.
//! Read next: `recorder.rs`, which fills a sink.

use crate::device::buffer_pool;
use crate::hooks::request::{HookError, Hooks};
use crate::hooks::site::Site;
use crate::model::batch::Batch;
use ndarray::{ArrayD, ArrayViewD, Axis, CowArray, IxDyn, Slice};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Takes what a run records, piece by piece, so that nobody has to hold all of it.
pub trait Sink {
    /// One text's values at one site: the site's axes without the batch axis, in standard order, as long as this text is
    /// ([`Hooks::shape_of_text`]). Pieces of one site come in the order of the texts; a text of which nothing was asked
    /// is left out.
    ///
    /// # Errors
    /// Ends the run: a full disk, say.
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()>;

    /// [`Sink::put`] of values that the sink may keep instead of copying them.
    ///
    /// # Errors
    /// As [`Sink::put`].
    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<()> {
        put_owned(self, site, text, values)
    }
}

/// Has a sink copy values that nobody needs any more.
fn put_owned<S: Sink + ?Sized>(sink: &mut S, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<()> {
    let put = sink.put(site, text, values.view());
    buffer_pool::give_back(values.into_raw_vec_and_offset().0);
    put
}

/// Where values can be had again, text by text: what formats that are written from front to back read.
pub trait Arrays {
    /// Every site with its shape, [batch, ...], in run order.
    fn shapes(&self) -> Vec<(Site, Vec<usize>)>;

    /// One text's values at one site, padded with zeros to the length of the longest.
    ///
    /// # Errors
    /// Those of the file that holds them.
    fn of_text(&self, site: Site, text: usize) -> std::io::Result<CowArray<'_, f32, IxDyn>>;
}

/// True where a site holds a NaN, or an infinity that is not a masked score's.
pub fn has_non_number(site: Site, values: &ArrayViewD<'_, f32>) -> bool {
    let masked = |v: f32| v == f32::NEG_INFINITY && matches!(site, Site::AttnScores(_));
    values.iter().any(|v| !v.is_finite() && !masked(*v))
}

/// What one run recorded: one array per tapped site, [batch, ...] as the dictionary has it, in run order. Texts shorter
/// than the longest are padded on the right with zeros.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Capture {
    slots: BTreeMap<Site, Slot>,
}

/// Room for one array. Its memory is taken when it is first used: one text's values come in one piece, which becomes the array.
#[derive(Clone, Debug)]
struct Slot {
    shape: Vec<usize>,
    values: OnceLock<ArrayD<f32>>,
}

impl Slot {
    /// The array; all zero where nothing was recorded.
    fn array(&self) -> &ArrayD<f32> {
        self.values.get_or_init(|| {
            let zeros = buffer_pool::zeros(self.shape.iter().product());
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
        if let Some(array) = self.values.take() {
            buffer_pool::give_back(array.into_raw_vec_and_offset().0);
        }
    }
}

impl Capture {
    /// Checks the request against the batch and makes room for what will come back, all zero.
    ///
    /// # Errors
    /// [`HookError`] for positions or edit values that do not fit this batch, or arrays too large for this machine.
    pub fn empty(hooks: &Hooks, batch: &Batch) -> Result<Capture, HookError> {
        hooks.check_batch(batch)?;
        let shapes = hooks.shapes(batch);
        let numbers = |shape: &[usize]| shape.iter().map(|&n| n as u128).product::<u128>();
        let bytes = shapes.iter().map(|(_, shape)| size_of::<f32>() as u128 * numbers(shape)).sum();
        // All of it in one go: the system says no to a single request beyond what it has, and to many small ones too late.
        // Arrays are made as they are used, of memory that the system has zeroed, but that aborts where there is none.
        let room = usize::try_from(bytes).is_ok_and(|n| Vec::<u8>::new().try_reserve_exact(n).is_ok());
        if !room {
            return Err(HookError::Memory { bytes });
        }
        let slot = |shape| Slot { shape, values: OnceLock::new() };
        Ok(Capture { slots: shapes.into_iter().map(|(site, shape)| (site, slot(shape))).collect() })
    }

    /// The values of one site; `None` if it was not tapped.
    pub fn get(&self, site: Site) -> Option<ArrayViewD<'_, f32>> {
        self.slots.get(&site).map(|slot| slot.array().view())
    }

    /// Takes the values of one site out.
    pub fn take(&mut self, site: Site) -> Option<ArrayD<f32>> {
        self.slots.remove(&site).map(|mut slot| std::mem::take(slot.array_mut()))
    }

    /// The first site that holds a NaN or an infinity which is not a masked score's.
    pub fn first_not_a_number(&self) -> Option<Site> {
        self.iter().find(|(site, array)| has_non_number(*site, &array.view())).map(|(site, _)| site)
    }

    /// All sites in run order.
    pub fn iter(&self) -> impl Iterator<Item = (Site, &ArrayD<f32>)> {
        self.slots.iter().map(|(site, slot)| (*site, slot.array()))
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

    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<()> {
        match self.slots.get_mut(&site) {
            // All that this array will ever hold.
            Some(slot) if slot.shape[0] == 1 && slot.shape[1..] == *values.shape() => {
                slot.values = OnceLock::from(values.insert_axis(Axis(0)));
                Ok(())
            }
            _ => put_owned(self, site, text, values),
        }
    }
}

impl Arrays for Capture {
    fn shapes(&self) -> Vec<(Site, Vec<usize>)> {
        self.slots.iter().map(|(site, slot)| (*site, slot.shape.clone())).collect()
    }

    fn of_text(&self, site: Site, text: usize) -> std::io::Result<CowArray<'_, f32, IxDyn>> {
        Ok(self.slots[&site].array().index_axis(Axis(0), text).into())
    }
}
