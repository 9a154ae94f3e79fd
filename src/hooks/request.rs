//! What a run records and edits, in the API's terms: sites, selections, edits. Owns [`Hooks`] (the request), [`Select`], [`Edit`],
//! and the checks that need the model's shape. `layout.rs` maps a request to rows and columns of tensors.
//! Read next: `layout.rs`, then `recorder.rs`, which carries a request out while the forward pass runs.

use crate::config::Config;
use crate::device::Shareable;
use crate::hooks::site::{self, Axis, Site, SiteError};
use crate::text::hex;
use ndarray::{ArrayD, ArrayViewD};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// A part of a site's values: all of them, unless narrowed. Every list must be ascending, without duplicates.
///
/// ```
/// use actscope::{Select, Session, Site};
///
/// let session = Session::open("demo")?;
/// let batch = session.model().encode(&["The cat sat on the mat."])?;
/// let mut hooks = session.model().hooks();
/// hooks.tap_at(Site::Z(1), Select::all().positions(vec![vec![2, 6]]).heads([0, 3]))?;
/// let capture = session.run(&batch, &hooks)?;
/// let head_dim = session.model().config().head_dim();
/// assert_eq!(capture.get(Site::Z(1)).unwrap().shape(), [1, 2, 2, head_dim]);
/// # Ok::<(), actscope::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    pub(crate) positions: Option<Vec<Vec<usize>>>,
    pub(crate) heads: Option<Vec<usize>>,
    pub(crate) dims: Option<Vec<usize>>,
    pub(crate) keys: Option<Vec<Vec<usize>>>,
}

impl Select {
    /// Everything.
    pub fn all() -> Select {
        Select::default()
    }

    /// Only these token positions, one list per text. On scores and patterns: the query's position.
    pub fn positions(mut self, per_text: Vec<Vec<usize>>) -> Select {
        self.positions = Some(per_text);
        self
    }

    /// Only these heads.
    pub fn heads(mut self, heads: impl IntoIterator<Item = usize>) -> Select {
        self.heads = Some(heads.into_iter().collect());
        self
    }

    /// Only these entries of the last axis: dimensions, neurons, tokens of the vocabulary. Not the keys of scores and
    /// patterns.
    pub fn dims(mut self, dims: impl IntoIterator<Item = usize>) -> Select {
        self.dims = Some(dims.into_iter().collect());
        self
    }

    /// Only these keys of scores and patterns, one list per text.
    pub fn keys(mut self, per_text: Vec<Vec<usize>>) -> Select {
        self.keys = Some(per_text);
        self
    }
}

/// A change of activations, applied before they are recorded and before anything reads them. The values are one number
/// for the whole selection, one row for each of its rows, or the whole selection, text by text. Within a text, they are
/// in row-major order of the site's axes.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Set to zero.
    Zero,
    /// Multiply.
    Scale(f32),
    /// Add values.
    Add(Vec<f32>),
    /// Replace by values.
    Replace(Vec<f32>),
    /// Replace by a function's result.
    With(EditFunction),
}

impl Edit {
    /// An edit by a function, which is called once for each text with the selected values of that text (the site's axes
    /// without the batch axis) and returns as many values. `name` appears in the provenance of outputs.
    ///
    /// ```
    /// use actscope::{Edit, Select, Session, Site};
    ///
    /// let session = Session::open("demo")?;
    /// let batch = session.model().encode(&["The cat sat on the mat."])?;
    /// let mut hooks = session.model().hooks();
    /// hooks.edit_at(Site::ResidPre(1), Select::all(), Edit::with("halve", |x| x.mapv(|v| v / 2.0)))?;
    /// hooks.tap("resid_pre.1")?;
    /// session.run(&batch, &hooks)?;
    /// # Ok::<(), actscope::Error>(())
    /// ```
    pub fn with(name: &str, f: impl Fn(ArrayViewD<'_, f32>) -> ArrayD<f32> + Shareable + 'static) -> Edit {
        Edit::With(EditFunction { name: name.into(), f: Arc::new(f) })
    }

    /// The edit's values, if it has any.
    pub(crate) fn values(&self) -> Option<&[f32]> {
        match self {
            Edit::Add(values) | Edit::Replace(values) => Some(values),
            Edit::Zero | Edit::Scale(_) | Edit::With(_) => None,
        }
    }
}

/// The function of [`Edit::With`].
#[derive(Clone)]
pub struct EditFunction {
    name: String,
    f: Arc<dyn EditFn>,
}

/// Alias for the functions that [`Edit::with`] takes; every such function implements it.
trait EditFn: Fn(ArrayViewD<'_, f32>) -> ArrayD<f32> + Shareable {}
impl<F: Fn(ArrayViewD<'_, f32>) -> ArrayD<f32> + Shareable> EditFn for F {}

impl EditFunction {
    /// Calls the function with one text's values.
    pub(super) fn call(&self, values: ArrayViewD<'_, f32>) -> ArrayD<f32> {
        (self.f)(values)
    }

    /// Its name in provenance.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for EditFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EditFunction({:?})", self.name)
    }
}

impl PartialEq for EditFunction {
    /// Compares identity: two functions with the same effect are not equal.
    fn eq(&self, other: &EditFunction) -> bool {
        Arc::ptr_eq(&self.f, &other.f)
    }
}

/// An edit as recorded in provenance: what was changed where, and a hash of the values.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct EditRecord {
    /// Site, selection and operation, such as `blocks.0.attn.hook_z@head=4:zero`.
    pub edit: String,
    /// The sha256 of the edit's values, or of the values that its function returned, as little-endian f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl EditRecord {
    fn new(site: Site, select: &Select, edit: &Edit) -> EditRecord {
        let list = |list: &[usize]| list.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
        let lists = |per_text: &[Vec<usize>]| match per_text {
            [first, rest @ ..] if rest.iter().all(|other| other == first) => list(first),
            all => all.iter().map(|one| format!("[{}]", list(one))).collect(),
        };
        let parts = [
            select.positions.as_ref().map(|p| format!("pos={}", lists(p))),
            select.heads.as_ref().map(|h| format!("head={}", list(h))),
            select.dims.as_ref().map(|d| format!("dim={}", list(d))),
            select.keys.as_ref().map(|k| format!("key={}", lists(k))),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let at = if parts.is_empty() { String::new() } else { format!("@{}", parts.join(",")) };
        let what = match edit {
            Edit::Zero => "zero".to_string(),
            Edit::Scale(factor) => format!("scale={factor}"),
            Edit::Add(_) => "add".to_string(),
            Edit::Replace(_) => "set".to_string(),
            Edit::With(function) => format!("with={}", function.name),
        };
        EditRecord { edit: format!("{}{at}:{what}", site.name()), sha256: edit.values().map(hash) }
    }
}

/// The sha256 of values as little-endian f32, in hexadecimal.
pub(crate) fn hash(values: &[f32]) -> String {
    let mut sha = Sha256::new();
    values.iter().for_each(|v| sha.update(v.to_le_bytes()));
    hex(&sha.finalize())
}

/// A request that does not fit the model or the batch.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HookError {
    /// No such hook.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// Heads, columns or positions that the site does not have.
    #[error("{site}: {what} {asked:?} do not exist; it has {has}")]
    Window {
        /// The hook's name.
        site: String,
        /// `heads`, `dims`, `positions` or `keys`.
        what: &'static str,
        /// The requested indices.
        asked: Vec<usize>,
        /// What exists.
        has: String,
    },
    /// A tap or edit at a site before the block where the run starts.
    #[error("{site} comes before the place where this run starts, so it has no value")]
    BeforeStart {
        /// The hook's name.
        site: String,
    },
    /// The start values are not one row for each token.
    #[error("the run starts from {given} values, and its tokens need {expected}: n_embd for each")]
    Start {
        /// Values given.
        given: usize,
        /// Values needed.
        expected: usize,
    },
    /// An edit function returned the wrong number of values.
    #[error("{site}: the edit {name:?} returned {returned} values for text {text}, and was given {given}")]
    Returned {
        /// The hook's name.
        site: String,
        /// The function's name.
        name: String,
        /// Which text.
        text: usize,
        /// How many values it received.
        given: usize,
        /// How many values it returned.
        returned: usize,
    },
    /// The same hook is tapped twice with different selections.
    #[error("{site} is requested twice with different selections; request the larger one once, and cut it afterwards")]
    Twice {
        /// The hook's name.
        site: String,
    },
    /// The number of an edit's values does not fit its selection.
    #[error("{site}: the edit gives {given} values; its selection takes one number, {row} (one row for all) or {all}")]
    Values {
        /// The hook's name.
        site: String,
        /// Values given.
        given: usize,
        /// Values of one row.
        row: usize,
        /// Values of the whole window.
        all: usize,
    },
    /// The request was made for another model.
    #[error("these hooks were made for a model of another shape; make them with this model's `model().hooks()`")]
    OtherModel,
    /// The edit's selection is empty.
    #[error("{site}: the edit's selection is empty, so it would change nothing")]
    Nothing {
        /// The hook's name.
        site: String,
    },
    /// The number of position lists is not the number of texts.
    #[error("positions are given for {given} texts and the run has {texts}")]
    Texts {
        /// Lists given.
        given: usize,
        /// Texts in the batch.
        texts: usize,
    },
    /// The recorded values do not fit into this machine's memory.
    #[error("the activations asked for take {bytes} bytes, more than this machine can hold at once")]
    Memory {
        /// Bytes needed.
        bytes: u128,
    },
}

/// A request: what one run records and edits.
///
/// ```
/// use actscope::{Edit, Select, Session, Site};
///
/// let session = Session::open("demo")?;
/// let mut hooks = session.model().hooks();
/// hooks.tap("blocks.*.hook_resid_post")?; // a name, a glob, or another tool's name
/// hooks.tap_at(Site::Pattern(2), Select::all().heads([4]))?;
/// hooks.edit_at(Site::Z(2), Select::all().heads([4]), Edit::Zero)?;
/// # Ok::<(), actscope::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hooks {
    pub(super) config: Config,
    pub(super) taps: BTreeMap<Site, Select>,
    pub(super) edits: Vec<(Site, Select, Edit)>,
    /// When more bytes than this are staged, a block boundary reads them back: see
    /// [`crate::hooks::recorder::Recorder::boundary`].
    pub staging_budget: usize,
    /// True if the caller needs the likeliest token after each text, which [`crate::hooks::capture::Sink::argmax`]
    /// receives. Only for requests that neither record nor edit logits.
    pub(crate) argmax: bool,
}

impl Hooks {
    /// An empty request to a model of this shape.
    pub fn new(config: &Config) -> Hooks {
        let (config, staging_budget) = (config.clone(), 1 << 20);
        Hooks { config, taps: BTreeMap::new(), edits: Vec::new(), staging_budget, argmax: false }
    }

    /// Records every site that `pattern` names ([`site::resolve`]).
    ///
    /// # Errors
    /// [`SiteError::Unknown`] with near names.
    pub fn tap(&mut self, pattern: &str) -> Result<&mut Hooks, HookError> {
        for site in site::resolve(pattern, self.config.n_layer)? {
            self.tap_at(site, Select::all())?;
        }
        Ok(self)
    }

    /// Records a part of one site.
    ///
    /// # Errors
    /// [`HookError::Window`] for a part that the site does not have, [`HookError::Twice`] for a second, different part.
    pub fn tap_at(&mut self, site: Site, select: Select) -> Result<&mut Hooks, HookError> {
        self.check(site, &select)?;
        if self.taps.get(&site).is_some_and(|before| *before != select) {
            return Err(HookError::Twice { site: site.name() });
        }
        self.taps.insert(site, select);
        Ok(self)
    }

    /// Narrows every tap to these positions, one list per text.
    pub fn at_positions(&mut self, per_text: &[Vec<usize>]) -> &mut Hooks {
        for select in self.taps.values_mut() {
            select.positions = Some(per_text.to_vec());
        }
        self
    }

    /// Changes a part of one site, before it is recorded and before anything reads it. Edits of one site apply in the
    /// order in which they were given.
    ///
    /// # Errors
    /// [`HookError::Window`] for a part that the site does not have.
    pub fn edit_at(&mut self, site: Site, select: Select, edit: Edit) -> Result<&mut Hooks, HookError> {
        self.check(site, &select)?;
        self.edits.push((site, select, edit));
        Ok(self)
    }

    /// The taps and the edits of some sites only.
    pub(crate) fn part(&self, taps: impl Fn(Site) -> bool, edits: impl Fn(Site) -> bool) -> Hooks {
        let taps = self.taps.iter().filter(|(site, _)| taps(**site)).map(|(site, select)| (*site, select.clone()));
        let edits = self.edits.iter().filter(|(site, ..)| edits(*site)).cloned();
        Hooks { taps: taps.collect(), edits: edits.collect(), ..self.clone() }
    }

    /// These sites, whole.
    ///
    /// # Panics
    /// For sites that a model of this shape does not have.
    pub(crate) fn whole(config: &Config, sites: &[Site]) -> Hooks {
        let mut hooks = Hooks::new(config);
        for site in sites {
            hooks.tap_at(*site, Select::all()).expect("sites of this model, each once and whole");
        }
        hooks
    }

    /// What is recorded, restricted to some of the recorded sites and to the first `tokens` tokens of one text, for a run
    /// of that prefix alone. `None` when none of its positions is recorded. Edits are
    /// [`Layout::edits_of_prefix`](super::layout::Layout::edits_of_prefix).
    pub(crate) fn of_prefix(&self, sites: &[Site], text: usize, tokens: usize) -> Option<Hooks> {
        let within = |per_text: &Vec<Vec<usize>>| -> Vec<usize> {
            per_text[text].iter().copied().filter(|position| *position < tokens).collect()
        };
        let mut part = Hooks::new(&self.config);
        for site in sites {
            let mut select = self.taps.get(site).cloned().unwrap_or_default();
            for per_text in [&mut select.positions, &mut select.keys].into_iter().flatten() {
                let here = within(per_text);
                if here.is_empty() {
                    return None;
                }
                *per_text = vec![here];
            }
            part.taps.insert(*site, select);
        }
        Some(part)
    }

    /// The position at index `slot` of a text's recorded positions.
    pub(crate) fn position(&self, site: Site, text: usize, slot: usize) -> usize {
        let positions = self.taps.get(&site).and_then(|select| select.positions.as_ref());
        positions.map_or(slot, |per_text| per_text[text][slot])
    }

    /// The edits, in order.
    pub(crate) fn edits(&self) -> impl Iterator<Item = &(Site, Select, Edit)> {
        self.edits.iter()
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The recorded sites in run order.
    pub fn sites(&self) -> impl Iterator<Item = Site> {
        self.taps.keys().copied()
    }

    /// What is recorded of a site.
    pub(crate) fn tapped(&self, site: Site) -> Option<&Select> {
        self.taps.get(&site)
    }

    /// The edits as provenance records, in order. Edits by functions have no hash before a run; afterwards
    /// [`crate::Capture::edits`] returns it.
    pub fn edit_records(&self) -> Vec<EditRecord> {
        self.edits.iter().map(|(site, select, edit)| EditRecord::new(*site, select, edit)).collect()
    }

    /// Every site with a tap or an edit.
    pub fn touched(&self) -> BTreeSet<Site> {
        self.sites().chain(self.edits.iter().map(|(site, ..)| *site)).collect()
    }

    /// How many blocks a run must compute to reach the last tap or edit.
    pub fn blocks(&self) -> usize {
        match self.last() {
            Some(Site::Embed | Site::PosEmbed) | None => 0,
            Some(site) => site.layer().map_or(self.config.n_layer, |layer| layer + 1),
        }
    }

    /// The last site with a tap or an edit.
    pub(crate) fn last(&self) -> Option<Site> {
        let asked = self.taps.keys().next_back().copied().max(self.edits.iter().map(|(site, ..)| *site).max());
        asked.max(self.argmax.then_some(Site::Unembed))
    }

    /// The checks that need no batch.
    fn check(&self, site: Site, select: &Select) -> Result<(), HookError> {
        let fail = |what, asked: &[usize], has: String| {
            Err(HookError::Window { site: site.name(), what, asked: asked.into(), has })
        };
        if let Some(layer) = site.layer().filter(|layer| *layer >= self.config.n_layer) {
            return Err(SiteError::Layer { layer: layer as i64, n_layer: self.config.n_layer }.into());
        }
        if let Some(heads) = &select.heads {
            if !site.axes().contains(&Axis::Head) {
                return fail("heads", heads, "no head axis".into());
            }
            if !is_list(heads, self.config.n_head) {
                return fail("heads", heads, format!("heads 0..{}, each once, ascending", self.config.n_head));
            }
        }
        if let Some(dims) = &select.dims {
            if site.is_square() {
                return fail("dims", dims, "no dimensions: its last axis is the keys".into());
            }
            let n = site.axes()[site.axes().len() - 1].len(&self.config, 0);
            if !is_list(dims, n) {
                return fail("dims", dims, format!("dims 0..{n}, each once, ascending"));
            }
        }
        match &select.keys {
            Some(keys) if !site.is_square() => fail("keys", &keys.concat(), "no key axis".into()),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// [`HookError::OtherModel`] when this request was not made for a model of this shape.
    pub fn check_model(&self, config: &Config) -> Result<(), HookError> {
        if self.config == *config { Ok(()) } else { Err(HookError::OtherModel) }
    }
}

/// True for a list of indices below `n` that is not empty, ascends and names each index once.
pub(super) fn is_list(list: &[usize], n: usize) -> bool {
    !list.is_empty() && list.is_sorted_by(|a, b| a < b) && list.last().is_some_and(|last| *last < n)
}
