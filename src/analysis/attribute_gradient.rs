//! Where a logit comes from, by gradients: each value times the gradient of the logit, or of the difference of two, at the run
//! itself or along a line from another text. Owns where the gradient is taken ([`Along`]) and
//! `Session::attribute_gradient_async`. The parts and their labels are those of `attribute.rs`; the gradients those of
//! `gradients.rs`. Products and sums are f64.

use crate::analysis::attribute::{
    Attribution, AttributionError, By, FINAL_BIAS, OTHER, UNEMBED_BIAS, components, metric,
};
use crate::analysis::edits::Kept;
use crate::analysis::gradients::{Target, between};
use crate::analysis::metric::Question;
use crate::batch::Batch;
use crate::hooks::capture::Sink;
use crate::hooks::layout::edits_of_text;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::{Axis as SiteAxis, Site};
use crate::model::forward::{RunError, Start};
use crate::session::{Error, Progress, Session};
use ndarray::{ArrayViewD, Axis};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Where gradients are taken, and what they are multiplied with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Along {
    /// At the run itself: gradient times value.
    Here,
    /// At `steps` points of the line from other token embeddings to the text's own, with the position embeddings as they are:
    /// integrated gradients. The points are the midpoints of equal parts, (k + 0.5) / steps. The mean gradient is multiplied
    /// with the difference of the values at both ends.
    Line {
        /// Points.
        steps: usize,
        /// The ids that the line starts from, as many as the text has; without them it starts from zero.
        from: Option<Vec<u32>>,
    },
}

impl Along {
    /// Checks that a line can be drawn to the embeddings of a text.
    ///
    /// # Errors
    /// [`AttributionError::Line`].
    pub fn check(&self, batch: &Batch) -> Result<(), Error> {
        let Along::Line { steps, from } = self else { return Ok(()) };
        let fail = |what: String| Err(AttributionError::Line { what }.into());
        match from.as_ref().map(Vec::len).filter(|n| *n != batch.n_pos()) {
            _ if *steps == 0 => fail("a line needs at least one step".into()),
            Some(n) => fail(format!(
                "the baseline has {n} tokens and the text {}; positions are kept, so it needs as many",
                batch.n_pos()
            )),
            None => Ok(()),
        }
    }
}

impl Session {
    /// Attributes the logit of `question.answer` at `question.position`, or its difference to that of `question.wrong`, to parts by their
    /// gradients. A part's value is summed over all positions, since all of them reach the logit. `batch` is one text, and
    /// `edits` a request for it, whose edits are differentiated through.
    ///
    /// With [`Along::Here`] the total is the logit, and the parts do not add up to it: a block's output is counted at the block and
    /// again at the parts that it was computed from. [`By::Position`] is then what all heads move from each position, with their
    /// patterns held fixed.
    ///
    /// With [`Along::Line`] the total is the logit less that at the line's start. [`By::Position`] is what each token's embedding
    /// adds, and these parts add up to the total but for the error of finitely many points. Biases, which are the same at both
    /// ends, add nothing.
    ///
    /// # Errors
    /// As [`Session::gradients_async`]; [`AttributionError`] for a question or a line that does not fit the text.
    #[allow(clippy::too_many_arguments, reason = "a run, and what is asked of it")]
    pub async fn attribute_gradient_async(
        &self,
        batch: &Batch,
        question: &Question,
        difference: bool,
        by: By,
        along: &Along,
        edits: &Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<Attribution, Error> {
        let config = self.model().config();
        let metric = metric(difference);
        question.check(metric, batch.n_pos(), config).map_err(|what| AttributionError::Question { what })?;
        along.check(batch)?;
        let edited: BTreeSet<Site> = edits.edits().map(|(site, ..)| *site).collect();
        let asked = Asked { session: self, by, along, edited: &edited };

        // On a line the texts of the batch are its end, its start, and the points between.
        let (copies, embeddings) = match along {
            Along::Here => (1, None),
            Along::Line { steps, from } => (steps + 2, Some(asked.line(batch, *steps, from.as_deref()).await?)),
        };
        let copied = self.model().batch(&vec![batch.ids_of(0); copies])?;
        let mut hooks = Hooks::whole(config, &asked.sites().into_iter().collect::<Vec<_>>());
        for (site, select, edit) in edits_of_text(edits, batch, 0, copies) {
            hooks.edit_at(site, select, edit)?;
        }
        let target = Target::Metric(metric, vec![question.clone(); copies]);
        let start = embeddings.as_deref().map_or(Start::Tokens, Start::Embeddings);
        let ends = RefCell::new(Kept::new(asked.sites(), BTreeSet::new()));
        let (mut values, mut sums) = (Ends(&ends), asked.sums(&ends).await?);
        let target =
            self.gradients_into_async(&copied, &hooks, &target, start.into(), &mut values, &mut sums, progress).await?;
        let total = match along {
            Along::Here => target[0],
            Along::Line { .. } => target[0] - target[1],
        };
        let parts = sums.parts(&asked, question, difference).await?;
        Ok(Attribution::new(total, parts))
    }
}

/// What is asked for.
struct Asked<'a> {
    session: &'a Session,
    by: By,
    along: &'a Along,
    edited: &'a BTreeSet<Site>,
}

impl Asked<'_> {
    fn is_line(&self) -> bool {
        matches!(self.along, Along::Line { .. })
    }

    /// Where each head's share is found. What a head writes times the gradient there is z times the gradient with respect to z,
    /// unless an edit stands between the two.
    fn head(&self, layer: usize) -> Site {
        if self.edited.contains(&Site::Result(layer)) { Site::Result(layer) } else { Site::Z(layer) }
    }

    /// Where the output bias of attention, and that of the final LayerNorm, are added; they have no share along a line.
    fn biased(&self) -> Vec<Site> {
        let layers = 0..self.session.model().config().n_layer;
        match self.by {
            _ if self.is_line() => Vec::new(),
            By::Head | By::Position => layers.map(Site::AttnOut).chain([Site::LnFinalOut]).collect(),
            By::Component | By::Layer => vec![Site::LnFinalOut],
            By::Neuron => Vec::new(),
        }
    }

    /// All sites whose gradients are needed.
    fn sites(&self) -> BTreeSet<Site> {
        let n_layer = self.session.model().config().n_layer;
        let embeddings = [Site::Embed, Site::PosEmbed].into_iter();
        let of_blocks = |site: &dyn Fn(usize) -> Site| (0..n_layer).flat_map(|l| [site(l), Site::MlpOut(l)]).collect();
        let own: Vec<Site> = match self.by {
            By::Position if self.is_line() => vec![Site::Embed],
            By::Component | By::Layer => components(n_layer).collect(),
            By::Head => embeddings.chain::<Vec<Site>>(of_blocks(&|l| self.head(l))).collect(),
            By::Position => embeddings.chain::<Vec<Site>>(of_blocks(&Site::V)).collect(),
            By::Neuron => (0..n_layer).map(Site::MlpPost).collect(),
        };
        own.into_iter().chain(self.biased()).collect()
    }

    /// The axis whose entries are parts of their own.
    fn axis(&self, site: Site) -> Option<usize> {
        let wanted = match (self.by, site) {
            (By::Head, Site::Z(_) | Site::Result(_)) => SiteAxis::Head,
            (By::Neuron, Site::MlpPost(_)) => SiteAxis::Inner,
            (By::Position, Site::V(_)) => SiteAxis::Pos,
            (By::Position, Site::Embed) if self.is_line() => SiteAxis::Pos,
            _ => return None,
        };
        site.axes().iter().position(|axis| *axis == wanted)
    }

    /// Nothing added up yet.
    async fn sums<'a>(&self, ends: &'a RefCell<Kept>) -> Result<Sums<'a>, Error> {
        let mut biases = BTreeMap::new();
        for site in self.biased() {
            let name = site.layer().map_or("ln_f.bias".into(), |layer| format!("h.{layer}.attn.c_proj.bias"));
            biases.insert(site, self.session.params().host(&name).await.map_err(RunError::from)?);
        }
        let (first, weight) = match self.along {
            Along::Here => (0, 1.0),
            Along::Line { steps, .. } => (2, 1.0 / *steps as f64),
        };
        Ok(Sums {
            ends,
            first,
            weight,
            axes: self.sites().into_iter().map(|site| (site, self.axis(site))).collect(),
            biases,
            of_sites: BTreeMap::new(),
            of_biases: BTreeMap::new(),
        })
    }

    /// The token embeddings [steps + 2, pos, n_embd] of the line's end, its start, and the points between.
    async fn line(&self, batch: &Batch, steps: usize, from: Option<&[u32]>) -> Result<Vec<f32>, Error> {
        if self.edited.contains(&Site::Embed) {
            let what = "it is a line of token embeddings, and an edit changes hook_embed; edit another hook";
            return Err(AttributionError::Line { what: what.into() }.into());
        }
        let embeddings = async |ids: &[u32]| -> Result<Vec<f32>, Error> {
            let batch = self.session.model().batch(&[ids])?;
            let mut hooks = self.session.model().hooks();
            hooks.tap_at(Site::Embed, Select::all())?;
            let capture = self.session.run_async(&batch, &hooks, None).await?;
            Ok(capture.get(Site::Embed).expect("tapped above").iter().copied().collect())
        };
        let end = embeddings(batch.ids_of(0)).await?;
        let start = match from {
            Some(ids) => embeddings(ids).await?,
            None => vec![0.0; end.len()],
        };
        let mut all = [end.clone(), start.clone()].concat();
        for k in 0..steps {
            all.extend(between(start.iter().zip(&end), (k as f64 + 0.5) / steps as f64));
        }
        Ok(all)
    }
}

/// Keeps the values of the first text, and of the second: on a line its end and its start.
struct Ends<'a>(&'a RefCell<Kept>);

impl Sink for Ends<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if text < 2 { self.0.borrow_mut().put(site, text, values) } else { Ok(()) }
    }
}

/// Adds up gradients times values, or times the differences of values.
struct Sums<'a> {
    ends: &'a RefCell<Kept>,
    /// The first text whose gradients count, and how much each does.
    first: usize,
    weight: f64,
    axes: BTreeMap<Site, Option<usize>>,
    biases: BTreeMap<Site, Vec<f32>>,
    /// One sum, or one for every entry of the site's axis.
    of_sites: BTreeMap<Site, Vec<f64>>,
    of_biases: BTreeMap<Site, f64>,
}

impl Sink for Sums<'_> {
    fn put(&mut self, site: Site, text: usize, gradient: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if text < self.first {
            return Ok(());
        }
        let ends = self.ends.borrow();
        let end = ends.of_text(site, 0);
        let start = (self.first > 0).then(|| ends.of_text(site, 1));
        let axis = self.axes[&site];
        let n_sums = axis.map_or(1, |axis| gradient.len_of(Axis(axis)));
        let sums = self.of_sites.entry(site).or_insert_with(|| vec![0.0; n_sums]);
        let start = start.iter().flatten().map(|v| f64::from(*v)).chain(std::iter::repeat(0.0));
        for (((index, by), end), start) in gradient.indexed_iter().zip(&end).zip(start) {
            sums[axis.map_or(0, |axis| index[axis])] += self.weight * f64::from(*by) * (f64::from(*end) - start);
        }
        if let Some(bias) = self.biases.get(&site) {
            let dot = gradient.iter().zip(bias.iter().cycle()).map(|(by, bias)| f64::from(*by) * f64::from(*bias));
            *self.of_biases.entry(site).or_default() += self.weight * dot.sum::<f64>();
        }
        Ok(())
    }
}

impl Sums<'_> {
    /// The sum of a site; 0 where the logit does not depend on it.
    fn of(&self, site: Site) -> f64 {
        self.of_sites.get(&site).map_or(0.0, |sums| sums.iter().sum())
    }

    fn named(&self, site: Site) -> (String, f64) {
        (site.name(), self.of(site))
    }

    fn of_bias(&self, site: Site) -> f64 {
        self.of_biases.get(&site).copied().unwrap_or(0.0)
    }

    async fn parts(
        &self,
        asked: &Asked<'_>,
        question: &Question,
        difference: bool,
    ) -> Result<Vec<(String, f64)>, Error> {
        let n_layer = asked.session.model().config().n_layer;
        let mut biases = vec![(FINAL_BIAS.to_string(), self.of_bias(Site::LnFinalOut))];
        if !asked.is_line() && !asked.edited.contains(&Site::Unembed) {
            let direction = async |id| asked.session.params().direction(id).await.map_err(RunError::from);
            let wrong = if difference { Some(direction(question.wrong).await?) } else { None };
            let (_, bias) = direction(question.answer).await?.less(wrong.as_ref());
            biases.extend((bias != 0.0).then(|| (UNEMBED_BIAS.to_string(), bias)));
        }
        let embeddings = || [Site::Embed, Site::PosEmbed].map(|site| self.named(site)).into_iter();
        let each = |site: Site, name: String| {
            let of_site = self.of_sites.get(&site).into_iter().flatten().enumerate();
            of_site.map(move |(i, value)| (format!("{name}[{i}]"), *value))
        };
        Ok(match asked.by {
            By::Component => components(n_layer).map(|site| self.named(site)).chain(biases).collect(),
            By::Layer => {
                let block = |l| (format!("blocks.{l}"), self.of(Site::AttnOut(l)) + self.of(Site::MlpOut(l)));
                embeddings().chain((0..n_layer).map(block)).chain(biases).collect()
            }
            By::Head => {
                let mut parts: Vec<(String, f64)> = embeddings().collect();
                for layer in 0..n_layer {
                    parts.extend(each(asked.head(layer), Site::Result(layer).name()));
                    parts.push((format!("blocks.{layer}.attn.b_O"), self.of_bias(Site::AttnOut(layer))));
                    parts.push(self.named(Site::MlpOut(layer)));
                }
                parts.into_iter().chain(biases).collect()
            }
            By::Neuron => (0..n_layer).map(Site::MlpPost).flat_map(|site| each(site, site.name())).collect(),
            By::Position => {
                let from = |layer| if asked.is_line() { Site::Embed } else { Site::V(layer) };
                let layers = if asked.is_line() { 0..1 } else { 0..n_layer };
                let lists = layers.filter_map(|layer| self.of_sites.get(&from(layer)));
                let mut keys: Vec<f64> = Vec::new();
                for list in lists {
                    keys.resize(list.len(), 0.0);
                    keys.iter_mut().zip(list).for_each(|(sum, value)| *sum += value);
                }
                let mut other = 0.0;
                if !asked.is_line() {
                    let of_block = |l| self.of_bias(Site::AttnOut(l)) + self.of(Site::MlpOut(l));
                    other = embeddings().chain(biases).map(|(_, value)| value).sum::<f64>();
                    other += (0..n_layer).map(of_block).sum::<f64>();
                }
                let named = keys.into_iter().enumerate().map(|(key, value)| (format!("pos.{key}"), value));
                named.chain([(OTHER.to_string(), other)]).collect()
            }
        })
    }
}
