//! Generation: the model continues texts token by token. Every activation can be recorded and edited; recorded values are those of
//! the run that chose the tokens. Keys and values of earlier positions come from a cache, so a token costs one pass over the
//! weights. Owns `Session::generate` and the rules by which a text ends. `sampling.rs` chooses tokens, `../hooks/step.rs` restricts
//! requests to the positions of one step.

use crate::analysis::lens::{self, Prediction};
use crate::analysis::sampling::{Sampling, log_sum_exp, token_of_argmax};
use crate::analysis::top::largest;
use crate::batch::Batch;
use crate::config::{self, Config};
use crate::device::Device;
use crate::hooks::capture::StepSink;
use crate::hooks::layout::Layout;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::hooks::step::{Piece, Pieces, mask_later_keys};
use crate::model::forward::{self, KvCache, Run, RunError};
use crate::model::model_dir::file;
use crate::model::params::Params;
use crate::model::tokenizer::TokenizerError;
use crate::session::{AnalysisError, Error, Model, Progress, Session, groups};
use ndarray::ArrayView2;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use thiserror::Error;

/// The settings of generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The most new tokens of each text.
    pub new_tokens: usize,
    /// How many texts continue each prompt.
    pub samples: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Ids after which a text ends: see [`Model::end_of_text`].
    pub end_of_text: Vec<u32>,
    /// Stop texts: a text ends once its new tokens contain one of them.
    pub stop_texts: Vec<String>,
    /// How many of the likeliest tokens are reported at each step.
    pub alternatives: usize,
    /// The logit lens at each step: how many of each layer's likeliest tokens are reported. 0 means no lens.
    pub lens: usize,
}

impl Default for Generation {
    /// 40 tokens, each the likeliest, without tokens or texts that end a text.
    fn default() -> Generation {
        Generation {
            new_tokens: 40,
            samples: 1,
            sampling: Sampling::default(),
            end_of_text: Vec::new(),
            stop_texts: Vec::new(),
            alternatives: 0,
            lens: 0,
        }
    }
}

impl Generation {
    /// The texts at their greatest possible length: every prompt, `samples` times in a row, with room for the new tokens, but not
    /// longer than the model's number of positions. Positions in requests are positions of these texts. New tokens have the id 0.
    ///
    /// # Errors
    /// [`Error::Batch`] for a prompt that the model cannot run.
    pub fn texts(&self, prompts: &Batch, model: &Model) -> Result<Batch, Error> {
        let most = model.config().n_positions;
        let of_prompt = |prompt: usize| {
            let mut ids = prompts.ids_of(prompt).to_vec();
            ids.resize(most.min(ids.len() + self.new_tokens).max(ids.len()), 0);
            std::iter::repeat_n(ids, self.samples)
        };
        model.batch(&(0..prompts.texts().len()).flat_map(of_prompt).collect::<Vec<_>>())
    }

    /// Bytes of the keys and values of all texts of [`Generation::texts`].
    pub fn cache_bytes(&self, texts: &Batch, config: &Config) -> u64 {
        (texts.ids().len() * bytes_of_position(config)) as u64
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// It has the requested number of new tokens.
    Length,
    /// The last token ends a text.
    EndOfText,
    /// The new tokens contain a stop text.
    StopText,
    /// The model has no more positions.
    Context,
    /// The caller ended the run.
    Interrupted,
}

/// One new token.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its id.
    pub id: u32,
    /// Its log-probability in nats under the model's own distribution: after edits, before penalty, temperature and filters.
    pub logprob: f64,
    /// The likeliest tokens with their probabilities under the same distribution, likeliest first.
    pub alternatives: Vec<(u32, f64)>,
    /// Each layer's prediction, in the order of [`lens::sites`]; empty without the lens. `next` is this token.
    pub lens: Vec<Prediction>,
}

/// One text.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The index of its prompt.
    pub prompt: usize,
    /// Which of the prompt's samples it is.
    pub sample: usize,
    /// Prompt and new tokens, including the one that ends the text.
    pub ids: Vec<u32>,
    /// The number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// The new tokens.
    pub new: Vec<NewToken>,
    /// Why it ended.
    pub stop: StopReason,
    /// The number of positions that were run and so have activations. The last token is run only if values of it are recorded.
    pub run: usize,
}

impl Generated {
    /// The new tokens' ids without the one that ends the text.
    pub fn new_ids(&self) -> &[u32] {
        let end = self.ids.len() - usize::from(self.stop == StopReason::EndOfText);
        &self.ids[self.prompt_tokens..end]
    }
}

/// The text of the new tokens so far, without an incomplete character at its end: a token may end within a character.
#[derive(Clone, Debug, Default)]
pub struct TextSoFar {
    ids: Vec<u32>,
    /// How many bytes of the text were returned.
    taken: usize,
}

impl TextSoFar {
    /// Adds a token.
    pub fn push(&mut self, id: u32) {
        self.ids.push(id);
    }

    /// The tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns the text that is new since the last call. With `is_last` no token follows, so an incomplete character is returned
    /// too. `decode` turns all tokens into text.
    pub fn take(&mut self, is_last: bool, decode: impl FnOnce(&[u32]) -> String) -> String {
        let text = decode(&self.ids);
        let ready = if is_last { text.as_str() } else { text.trim_end_matches('\u{fffd}') };
        let Some(new) = ready.get(self.taken..).filter(|new| !new.is_empty()) else { return String::new() };
        self.taken = ready.len();
        new.into()
    }
}

/// The report to the caller after every token.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Which text: prompt by prompt, and sample by sample within a prompt.
    pub text: usize,
    /// The token.
    pub token: &'a NewToken,
    /// Why the text ends here, if it does.
    pub stop: Option<StopReason>,
}

/// A callback that receives every new token and may end the run. Then the texts so far are returned.
pub type Tell<'a> = &'a mut dyn FnMut(Told<'_>) -> ControlFlow<()>;

/// Why generation cannot start or continue.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum GenerateError {
    /// A setting has an invalid value.
    #[error("{what} is {given}; it must be {expected}")]
    Value {
        /// The setting.
        what: &'static str,
        /// Its value.
        given: String,
        /// Which values are valid.
        expected: &'static str,
    },
    /// No token can be chosen from the logits.
    #[error("the logits at position {position} of text {text} hold {value}, so no token can be chosen")]
    NotANumber {
        /// Which text.
        text: usize,
        /// Where.
        position: usize,
        /// NaN or an infinity.
        value: f32,
    },
}

impl AnalysisError for GenerateError {
    fn is_request(&self) -> bool {
        matches!(self, GenerateError::Value { .. })
    }
}

impl Generation {
    /// Checks every setting. Generation calls this first.
    ///
    /// # Errors
    /// [`GenerateError::Value`].
    pub fn check(&self) -> Result<(), GenerateError> {
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self.sampling;
        let part = |p: f64| (0.0..=1.0).contains(&p);
        let fail = |what, given: String, expected| Err(GenerateError::Value { what, given, expected });
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return fail("temperature", temperature.to_string(), "a number from 0 on");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
            return fail("repetition penalty", repetition_penalty.to_string(), "a number above 0");
        }
        if top_k == Some(0) {
            return fail("top-k", "0".into(), "1 or more");
        }
        for (what, p) in [("top-p", top_p), ("min-p", min_p)] {
            if let Some(p) = p.filter(|p| !part(*p)) {
                return fail(what, p.to_string(), "a number from 0 to 1");
            }
        }
        if self.samples == 0 {
            return fail("number of samples", "0".into(), "1 or more");
        }
        if self.stop_texts.iter().any(String::is_empty) {
            return fail("a stop text", "empty".into(), "one character long or longer");
        }
        Ok(())
    }

    /// The record of generation as JSON for files: the settings, and for each text the number of tokens of its prompt and why it
    /// ended.
    pub fn settings(&self, texts: &[(usize, StopReason)]) -> String {
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed } = self.sampling;
        let of_text =
            |(prompt_tokens, stop): &(usize, StopReason)| json!({"prompt_tokens": prompt_tokens, "stop": stop});
        json!({
            "new_tokens": self.new_tokens, "samples": self.samples, "temperature": temperature,
            "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed,
            "texts": texts.iter().map(of_text).collect::<Vec<_>>(),
        })
        .to_string()
    }
}

impl Model {
    /// The ids after which a text ends: the `eos_token_id` of generation_config.json, else of config.json, else the
    /// tokenizer's `<|endoftext|>`. Ids outside the vocabulary end nothing and are left out.
    pub fn end_of_text(&self) -> Vec<u32> {
        let of_folder = || {
            let text = self.dir()?.read_text(file::GENERATION_CONFIG).ok()?;
            let fields: serde_json::Value = serde_json::from_str(&text).ok()?;
            config::ids(fields.get("eos_token_id"))
        };
        let of_tokenizer = || self.tokenizer().ok().and_then(|tokenizer| tokenizer.end_of_text());
        let ids = of_folder()
            .or_else(|| self.config().eos_token_id.clone())
            .unwrap_or_else(|| of_tokenizer().into_iter().collect());
        ids.into_iter().filter(|id| (*id as usize) < self.config().vocab_size).collect()
    }
}

/// A text that is being generated.
struct Text {
    written: Generated,
    /// The most tokens that it may have.
    most: usize,
    /// Why it ends there.
    limit: StopReason,
    ended: bool,
}

/// Bytes of one position's keys and values in all layers.
fn bytes_of_position(config: &Config) -> usize {
    2 * size_of::<f32>() * config.n_layer * config.n_embd
}

/// Bytes that the caches of texts that are run together may take; a text that takes more is run alone.
const CACHE_BYTES: usize = 2 << 30;

impl Session {
    /// Continues every prompt. `hooks` is a request for [`Generation::texts`]: its positions are those of prompt and new tokens.
    /// Recorded values go to `sink` as they are computed (`&mut ()` if nothing is recorded), those of the last token included.
    /// Positions that are never reached get no values. `tell` receives every token; if it returns `Break`, the texts so far are
    /// returned. `progress` receives the blocks of every step; if it returns `Break`, the call fails.
    ///
    /// # Errors
    /// [`enum@Error`]: a request that does not fit, a device or a sink that failed, logits that are NaN or infinite,
    /// and [`Error::Cancelled`].
    pub async fn generate_async(
        &self,
        prompts: &Batch,
        generation: &Generation,
        hooks: &Hooks,
        sink: &mut dyn StepSink,
        tell: Tell<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<Generated>, Error> {
        generation.check()?;
        let model = self.model();
        let whole = generation.texts(prompts, model)?;
        let layout = self.layout(&whole, hooks)?;
        if !generation.stop_texts.is_empty() {
            model.tokenizer()?;
        }
        let mut texts: Vec<Text> =
            (0..whole.texts().len()).map(|i| Text::new(prompts, &whole, generation, i)).collect();
        let config = model.config();
        let cache_groups = whole.groups(CACHE_BYTES, |text| texts[text].most * bytes_of_position(config));
        let (dev, params, _turn) = self.engine().await;
        let mut going = ControlFlow::Continue(());
        for group in cache_groups {
            let job = Job { model, generation, layout: &layout, group: group.clone(), progress };
            going = job.run(dev, params, &mut texts, sink, tell, going).await?;
        }
        model.checkpoint().check_unchanged()?;
        Ok(texts.into_iter().map(|text| text.written).collect())
    }

    /// Blocking form of [`Session::generate_async`], without a request.
    ///
    /// ```
    /// use actscope::Session;
    /// use actscope::analysis::generate::Generation;
    ///
    /// let session = Session::open("demo")?;
    /// let prompts = session.model().encode(&["The cat sat"])?;
    /// let generation = Generation { new_tokens: 5, end_of_text: session.model().end_of_text(), ..Generation::default() };
    /// let written = session.generate(&prompts, &generation)?;
    /// println!("{}", session.model().tokenizer()?.decode(written[0].new_ids())?);
    /// # Ok::<(), actscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::generate_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn generate(&self, prompts: &Batch, generation: &Generation) -> Result<Vec<Generated>, Error> {
        let (hooks, tell) = (self.model().hooks(), &mut |_: Told<'_>| ControlFlow::Continue(()));
        pollster::block_on(self.generate_async(prompts, generation, &hooks, &mut (), tell, None))
    }
}

impl Text {
    fn new(prompts: &Batch, whole: &Batch, generation: &Generation, i: usize) -> Text {
        let (prompt, sample) = (i / generation.samples, i % generation.samples);
        let ids = prompts.ids_of(prompt).to_vec();
        let most = whole.texts()[i].len();
        let limit = if most < ids.len() + generation.new_tokens { StopReason::Context } else { StopReason::Length };
        let ended = ids.len() == most;
        let written = Generated { prompt, sample, prompt_tokens: ids.len(), ids, new: Vec::new(), stop: limit, run: 0 };
        Text { written, most, limit, ended }
    }

    /// Adds a token. Returns why the text ends with it, if it does.
    fn add(
        &mut self,
        token: NewToken,
        generation: &Generation,
        model: &Model,
    ) -> Result<Option<StopReason>, TokenizerError> {
        let Generated { ids, new, prompt_tokens, .. } = &mut self.written;
        ids.push(token.id);
        let is_end = generation.end_of_text.contains(&token.id);
        new.push(token);
        let has_stop_text = || -> Result<bool, TokenizerError> {
            if generation.stop_texts.is_empty() {
                return Ok(false);
            }
            let text = model.tokenizer()?.decode(&ids[*prompt_tokens..])?;
            Ok(generation.stop_texts.iter().any(|stop| text.contains(stop)))
        };
        let stop = if is_end {
            Some(StopReason::EndOfText)
        } else if has_stop_text()? {
            Some(StopReason::StopText)
        } else {
            (ids.len() == self.most).then_some(self.limit)
        };
        if let Some(stop) = stop {
            (self.written.stop, self.ended) = (stop, true);
        }
        Ok(stop)
    }
}

/// The values of a step that choose the next tokens.
struct Found {
    /// The values at the sites that are read, by site and by piece.
    last: BTreeMap<(Site, usize), Vec<f32>>,
    /// What a choice of the likeliest token needs, by piece.
    argmax: BTreeMap<usize, Vec<f32>>,
}

/// Runs the texts of one group together.
struct Job<'a> {
    model: &'a Model,
    generation: &'a Generation,
    layout: &'a Layout<'a>,
    group: Range<usize>,
    progress: Option<Progress<'a>>,
}

impl Job<'_> {
    async fn run<D: Device>(
        &self,
        dev: &D,
        params: &Params<D>,
        texts: &mut [Text],
        sink: &mut dyn StepSink,
        tell: Tell<'_>,
        mut going: ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let (config, hooks) = (params.config(), self.layout.hooks());
        let read: Vec<Site> = match self.generation.lens {
            _ if self.needs_only_argmax() => Vec::new(),
            0 => vec![Site::Unembed],
            _ => lens::sites(config.n_layer).take(config.n_layer).chain([Site::Unembed]).collect(),
        };
        let capacities: Vec<usize> = texts[self.group.clone()].iter().map(|text| text.most).collect();
        let mut cache = KvCache::new(dev, config, &capacities);
        loop {
            if going.is_break() {
                for text in texts[self.group.clone()].iter_mut().filter(|text| !text.ended) {
                    (text.written.stop, text.ended) = (StopReason::Interrupted, true);
                }
            }
            // The last token of an ended text is run if its values are recorded, unless the text was never run.
            let piece = |i: usize| {
                let text = &texts[i];
                let positions = text.written.run..text.written.ids.len();
                let is_needed = || hooks.records(i, positions.clone()) && (text.written.run > 0 || going.is_continue());
                let goes_on = !positions.is_empty() && (!text.ended || is_needed());
                goes_on.then(|| Piece { text: i, positions: positions.clone(), is_read: !text.ended })
            };
            let pieces: Vec<Piece> = self.group.clone().filter_map(piece).collect();
            if pieces.is_empty() {
                break;
            }
            let found = self.step(dev, params, texts, &pieces, (&read, &mut cache), sink).await?;
            for (n, piece) in pieces.iter().enumerate() {
                texts[piece.text].written.run = piece.positions.end;
                if !piece.is_read {
                    continue;
                }
                let token = self.next(dev, params, &texts[piece.text], piece.text, n, &found).await?;
                let stop = texts[piece.text].add(token, self.generation, self.model)?;
                if let Some(token) = texts[piece.text].written.new.last()
                    && going.is_continue()
                {
                    going = tell(Told { text: piece.text, token, stop });
                }
            }
        }
        for i in self.group.clone() {
            mask_later_keys(hooks, i, texts[i].written.run, sink).map_err(RunError::Sink)?;
        }
        Ok(going)
    }

    /// True if only the likeliest token is needed of the logits. Then the device finds it, and no logits are read back. It returns the id
    /// as f32, which is exact up to 2^24.
    fn needs_only_argmax(&self) -> bool {
        let Generation { sampling, alternatives, lens, .. } = self.generation;
        let is_greedy = sampling.temperature == 0.0 && sampling.repetition_penalty == 1.0;
        let is_exact = self.model.config().vocab_size <= 1 << f32::MANTISSA_DIGITS;
        is_greedy
            && is_exact
            && *alternatives == 0
            && *lens == 0
            && !self.layout.hooks().touched().contains(&Site::Unembed)
    }

    /// Runs some positions of some texts.
    async fn step<D: Device>(
        &self,
        dev: &D,
        params: &Params<D>,
        texts: &[Text],
        pieces: &[Piece],
        (read, cache): (&[Site], &mut KvCache<D>),
        sink: &mut dyn StepSink,
    ) -> Result<Found, Error> {
        let config = params.config();
        let ids: Vec<&[u32]> =
            pieces.iter().map(|piece| &texts[piece.text].written.ids[piece.positions.clone()]).collect();
        let first: Vec<usize> = pieces.iter().map(|piece| piece.positions.start).collect();
        let batch = Batch::continued(&ids, &first, config)?;
        let mut hooks = self.layout.of_pieces(pieces, read);
        hooks.argmax = self.needs_only_argmax();
        let layout = Layout::new(&hooks, &batch)?;
        let in_cache: Vec<usize> = pieces.iter().map(|piece| piece.text - self.group.start).collect();
        let (last, argmax) = Default::default();
        let mut to = Pieces { hooks: self.layout.hooks(), pieces, read, last, argmax, to: sink };
        let hear = |block: usize| match self.progress {
            Some(progress) => progress(block, config.n_layer),
            None => ControlFlow::Continue(()),
        };
        for texts in groups(dev, config, &layout) {
            let run = Run { cache: Some(cache), texts_in_cache: Some(&in_cache), ..Run::new(&layout, texts) };
            forward::forward(dev, params, run, &mut to, Some(&hear)).await?;
        }
        Ok(Found { last: to.last, argmax: to.argmax })
    }

    /// Chooses the next token of a text from the values at its last position.
    async fn next<D: Device>(
        &self,
        dev: &D,
        params: &Params<D>,
        text: &Text,
        i: usize,
        piece: usize,
        Found { last, argmax }: &Found,
    ) -> Result<NewToken, Error> {
        let (generation, ids) = (self.generation, &text.written.ids);
        let not_a_number =
            |value: f32| Error::from(GenerateError::NotANumber { text: i, position: ids.len() - 1, value });
        if let Some(of_chunks) = argmax.get(&piece) {
            let (id, logprob) = token_of_argmax(of_chunks).map_err(not_a_number)?;
            return Ok(NewToken { id, logprob, alternatives: Vec::new(), lens: Vec::new() });
        }
        let logits = &last[&(Site::Unembed, piece)];
        if let Some(value) = logits.iter().find(|x| x.is_nan() || **x == f32::INFINITY) {
            return Err(not_a_number(*value));
        }
        let id = generation.sampling.choose(logits, ids, i);
        let total = log_sum_exp(logits);
        let logprob = |id: u32| f64::from(logits[id as usize]) - total;
        let likeliest = largest(logits.len(), generation.alternatives, |id| logits[id]);
        let alternatives = likeliest.into_iter().map(|id| (id, logprob(id).exp())).collect();
        let mut predictions = Vec::new();
        if generation.lens > 0 {
            let config = params.config();
            let streams: Vec<f32> = lens::sites(config.n_layer)
                .take(config.n_layer)
                .flat_map(|site| last[&(site, piece)].iter().copied())
                .collect();
            let streams = ArrayView2::from_shape((config.n_layer, config.n_embd), &streams).expect("a row a layer");
            // Every row is followed by the token that was chosen.
            let next = vec![id; config.n_layer + 1];
            predictions = lens::decode(dev, params, streams, &next, generation.lens, lens::PART).await?;
            predictions.extend(lens::predictions(logits, 0, &[0, id], logits.len(), generation.lens));
        }
        Ok(NewToken { id, logprob: logprob(id), alternatives, lens: predictions })
    }
}
