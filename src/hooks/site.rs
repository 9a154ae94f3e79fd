//! The hook dictionary: every site in the forward pass where an activation can be recorded or edited, under
//! TransformerLens's names. Owns names, order, shapes and formulas, and resolves what a user types (names, globs, names
//! from other tools) to sites. A new hook needs one row here and one `hooks.at(...)` in `model/forward.rs`.
//! Read next: `request.rs`, which asks for values at these sites.

use crate::config::Config;
use crate::text::{likeness, ranked};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use wildmatch::WildMatch;

/// One axis of an activation. Every activation has the batch as its first axis, which is not listed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Token positions (P). On attention patterns: the query.
    Pos,
    /// Key positions (P), the last axis of attention patterns.
    Key,
    /// Attention heads (H).
    Head,
    /// Dimensions of one head (d = D / H).
    HeadDim,
    /// The residual stream (D).
    Embd,
    /// Neurons of the MLP (M).
    Inner,
    /// Vocabulary (V).
    Vocab,
    /// A single number per position.
    One,
}

impl Axis {
    /// Length of this axis for a text of `n_pos` tokens.
    pub fn len(self, config: &Config, n_pos: usize) -> usize {
        match self {
            Axis::Pos | Axis::Key => n_pos,
            Axis::Head => config.n_head,
            Axis::HeadDim => config.head_dim(),
            Axis::Embd => config.n_embd,
            Axis::Inner => config.n_inner,
            Axis::Vocab => config.vocab_size,
            Axis::One => 1,
        }
    }

    /// The letter that HOOKS tables use.
    pub fn letter(self) -> &'static str {
        match self {
            Axis::Pos | Axis::Key => "P",
            Axis::Head => "H",
            Axis::HeadDim => "d",
            Axis::Embd => "D",
            Axis::Inner => "M",
            Axis::Vocab => "V",
            Axis::One => "1",
        }
    }
}

/// One row of the dictionary. In names, `{i}` is the block's index.
#[derive(Debug)]
pub struct Row {
    /// TransformerLens's name.
    pub name: &'static str,
    /// Axes after the batch axis.
    pub axes: &'static [Axis],
    /// What the values are.
    pub formula: &'static str,
    /// Names in other tools, and short names: see [`Dialect`]. A module's name means its output; with `.input`, its
    /// input.
    pub aliases: &'static [&'static str],
}

/// The tool that an alias comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// TransformerLens 4: its canonical names and its older aliases.
    TransformerLens,
    /// PyTorch modules of Hugging Face's GPT-2, and the fields of its outputs.
    HuggingFace,
    /// The same modules as nnsight writes them: `transformer.h[3].mlp.output`.
    Nnsight,
    /// nnterp's accessors: `layers_output[3]`.
    Nnterp,
    /// Short names of actscope, and the points of interp-engine.
    Short,
}

impl Dialect {
    /// The tool's name.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::TransformerLens => "TransformerLens",
            Dialect::HuggingFace => "Hugging Face",
            Dialect::Nnsight => "nnsight",
            Dialect::Nnterp => "nnterp",
            Dialect::Short => "short",
        }
    }

    /// The tool that an alias comes from, recognised by the alias's form.
    fn of(alias: &str) -> Dialect {
        const NNTERP: [&str; 8] = [
            "layers_input",
            "layers_output",
            "attentions_input",
            "attentions_output",
            "mlps_input",
            "mlps_output",
            "attention_probabilities",
            "token_embeddings",
        ];
        let first = alias.split('.').next().unwrap_or(alias);
        match first {
            _ if alias.contains("hook_") => Dialect::TransformerLens,
            "h" | "wte" | "wpe" | "ln_f" | "lm_head" | "attentions" | "last_hidden_state" => Dialect::HuggingFace,
            _ if NNTERP.contains(&first) => Dialect::Nnterp,
            _ => Dialect::Short,
        }
    }
}

/// Defines the enum and the table from the same rows, so that the two always agree.
macro_rules! sites {
    (before { $($b:ident $brow:expr;)* } block { $($l:ident $lrow:expr;)* } after { $($a:ident $arow:expr;)* }) => {
        /// A hook point in the forward pass. Block sites carry their block's index. `Ord` is the order in which the
        /// values appear in a run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each variant's meaning is its row's formula")]
        pub enum Site { $($b,)* $($l(usize),)* $($a,)* }

        const BEFORE: &[(Site, Row)] = &[$((Site::$b, $brow)),*];
        const BLOCK: &[(fn(usize) -> Site, Row)] = &[$((Site::$l, $lrow)),*];
        const AFTER: &[(Site, Row)] = &[$((Site::$a, $arow)),*];

        impl Site {
            /// The block this site is in, if any.
            pub fn layer(self) -> Option<usize> {
                match self { $(Site::$l(layer) => Some(layer),)* _ => None }
            }

            /// Where in the run this site stands: stage, then row within the stage.
            fn order(self) -> (usize, usize) {
                enum Before { $($b),* }
                enum Block { $($l),* }
                enum After { $($a),* }
                match self {
                    $(Site::$b => (0, Before::$b as usize),)*
                    $(Site::$l(layer) => (layer + 1, Block::$l as usize),)*
                    $(Site::$a => (usize::MAX, After::$a as usize),)*
                }
            }
        }
    };
}

const fn row(
    name: &'static str,
    axes: &'static [Axis],
    formula: &'static str,
    aliases: &'static [&'static str],
) -> Row {
    Row { name, axes, formula, aliases }
}

use Axis::{Embd, Head, HeadDim, Inner, Key, One, Pos, Vocab};

sites! {
    before {
        Embed row("hook_embed", &[Pos, Embd], "wte[token]", &["embed", "embed.hook_out", "wte", "token_embeddings"]);
        PosEmbed row("hook_pos_embed", &[Pos, Embd], "wpe[position]", &["pos_embed", "pos_embed.hook_out", "wpe"]);
    }
    block {
        ResidPre row("blocks.{i}.hook_resid_pre", &[Pos, Embd], "block input; for i = 0 embed + pos_embed",
            &["resid_pre.{i}", "blocks.{i}.hook_in", "blocks.{i}.ln1.hook_in", "blocks.{i}.hook_attn_in", "blocks.{i}.hook_q_input", "blocks.{i}.hook_k_input", "blocks.{i}.hook_v_input", "blocks.{i}.attn.hook_attn_in", "blocks.{i}.attn.hook_q_input", "blocks.{i}.attn.hook_k_input", "blocks.{i}.attn.hook_v_input", "h.{i}.input", "h.{i}.ln_1.input", "layers_input.{i}"]);
        Ln1Scale row("blocks.{i}.ln1.hook_scale", &[Pos, One], "sqrt(mean((x-mean)^2) + eps), the divisor", &["ln1.scale.{i}"]);
        Ln1Normalized row("blocks.{i}.ln1.hook_normalized", &[Pos, Embd], "(x-mean)/scale, before gain and bias", &["ln1.normalized.{i}"]);
        Ln1Out row("blocks.{i}.ln1.hook_out", &[Pos, Embd], "normalized * weight + bias: what attention reads",
            &["ln1.{i}", "h.{i}.ln_1", "blocks.{i}.attn.hook_in", "blocks.{i}.attn.q.hook_in", "blocks.{i}.attn.k.hook_in", "blocks.{i}.attn.v.hook_in", "blocks.{i}.attn.qkv.hook_in", "h.{i}.attn.input", "h.{i}.attn.c_attn.input", "attn_in.{i}", "attentions_input.{i}"]);
        Q row("blocks.{i}.attn.hook_q", &[Pos, Head, HeadDim], "query projection with bias, unscaled", &["q.{i}", "blocks.{i}.attn.q.hook_out", "blocks.{i}.attn.qkv.hook_out", "h.{i}.attn.c_attn"]);
        K row("blocks.{i}.attn.hook_k", &[Pos, Head, HeadDim], "key projection with bias", &["k.{i}", "blocks.{i}.attn.k.hook_out", "blocks.{i}.attn.qkv.hook_out", "h.{i}.attn.c_attn"]);
        V row("blocks.{i}.attn.hook_v", &[Pos, Head, HeadDim], "value projection with bias", &["v.{i}", "blocks.{i}.attn.v.hook_out", "blocks.{i}.attn.qkv.hook_out", "h.{i}.attn.c_attn", "value.{i}"]);
        AttnScores row("blocks.{i}.attn.hook_attn_scores", &[Head, Pos, Key], "q.k after scaling and the causal mask; masked entries -inf",
            &["attn_scores.{i}", "scores.{i}"]);
        Pattern row("blocks.{i}.attn.hook_pattern", &[Head, Pos, Key], "softmax of the scores over keys", &["pattern.{i}", "attn.{i}", "attentions.{i}", "h.{i}.attn.attn_dropout", "attn_probs.{i}", "attention_probabilities.{i}"]);
        Z row("blocks.{i}.attn.hook_z", &[Pos, Head, HeadDim], "pattern . v, before the output projection", &["z.{i}", "blocks.{i}.attn.o.hook_in", "h.{i}.attn.c_proj.input"]);
        Result row("blocks.{i}.attn.hook_result", &[Pos, Head, Embd], "z of one head through its rows of c_proj, no bias", &["result.{i}"]);
        AttnOut row("blocks.{i}.hook_attn_out", &[Pos, Embd], "what attention adds to the stream",
            &["attn_out.{i}", "blocks.{i}.attn.hook_out", "blocks.{i}.attn.o.hook_out", "h.{i}.attn", "h.{i}.attn.c_proj", "blocks.{i}.attn.hook_hidden_states", "h.{i}.attn.resid_dropout", "attentions_output.{i}"]);
        ResidMid row("blocks.{i}.hook_resid_mid", &[Pos, Embd], "resid_pre + attn_out", &["resid_mid.{i}", "blocks.{i}.ln2.hook_in", "blocks.{i}.hook_mlp_in", "h.{i}.ln_2.input"]);
        Ln2Scale row("blocks.{i}.ln2.hook_scale", &[Pos, One], "as ln1, of resid_mid", &["ln2.scale.{i}"]);
        Ln2Normalized row("blocks.{i}.ln2.hook_normalized", &[Pos, Embd], "as ln1, of resid_mid", &["ln2.normalized.{i}"]);
        Ln2Out row("blocks.{i}.ln2.hook_out", &[Pos, Embd], "normalized * weight + bias: what the MLP reads",
            &["ln2.{i}", "h.{i}.ln_2", "blocks.{i}.mlp.hook_in", "blocks.{i}.mlp.in.hook_in", "h.{i}.mlp.input", "h.{i}.mlp.c_fc.input", "mlp_in.{i}", "mlps_input.{i}"]);
        MlpPre row("blocks.{i}.mlp.hook_pre", &[Pos, Inner], "before the activation function", &["mlp_pre.{i}", "pre.{i}", "blocks.{i}.mlp.in.hook_out", "h.{i}.mlp.c_fc", "h.{i}.mlp.act.input"]);
        MlpPost row("blocks.{i}.mlp.hook_post", &[Pos, Inner], "after it: the neurons", &["mlp_post.{i}", "post.{i}", "blocks.{i}.mlp.out.hook_in", "h.{i}.mlp.act", "h.{i}.mlp.c_proj.input", "mlp_act.{i}"]);
        MlpOut row("blocks.{i}.hook_mlp_out", &[Pos, Embd], "what the MLP adds to the stream",
            &["mlp_out.{i}", "blocks.{i}.mlp.hook_out", "blocks.{i}.mlp.out.hook_out", "h.{i}.mlp", "h.{i}.mlp.c_proj", "h.{i}.mlp.dropout", "mlps_output.{i}"]);
        ResidPost row("blocks.{i}.hook_resid_post", &[Pos, Embd], "resid_mid + mlp_out: block i's output", &["resid_post.{i}", "blocks.{i}.hook_out", "h.{i}", "layers_output.{i}"]);
    }
    after {
        LnFinalScale row("ln_final.hook_scale", &[Pos, One], "as ln1, of the last resid_post", &["ln_final.scale"]);
        LnFinalNormalized row("ln_final.hook_normalized", &[Pos, Embd], "as ln1, of the last resid_post", &["ln_final.normalized"]);
        LnFinalOut row("ln_final.hook_out", &[Pos, Embd], "after ln_f's gain and bias: what the unembedding reads", &["ln_f", "ln_final", "unembed.hook_in", "lm_head.input", "last_hidden_state", "final_norm"]);
        Unembed row("unembed.hook_out", &[Pos, Vocab], "logits", &["logits", "lm_head", "unembed", "hook_unembed"]);
    }
}

impl Site {
    /// Every site of a model with `n_layer` blocks, in the order in which values appear.
    pub fn all(n_layer: usize) -> impl Iterator<Item = Site> {
        let blocks = (0..n_layer).flat_map(|layer| BLOCK.iter().map(move |(make, _)| make(layer)));
        BEFORE.iter().map(|(site, _)| *site).chain(blocks).chain(AFTER.iter().map(|(site, _)| *site))
    }

    /// The rows of the dictionary, one per kind of site, in order.
    pub fn rows() -> impl Iterator<Item = &'static Row> {
        BEFORE
            .iter()
            .map(|(_, row)| row)
            .chain(BLOCK.iter().map(|(_, row)| row))
            .chain(AFTER.iter().map(|(_, row)| row))
    }

    /// This site's row of the dictionary.
    pub fn row(self) -> &'static Row {
        match self.order() {
            (0, n) => &BEFORE[n].1,
            (usize::MAX, n) => &AFTER[n].1,
            (_, n) => &BLOCK[n].1,
        }
    }

    /// TransformerLens's name, such as `blocks.3.attn.hook_pattern`.
    pub fn name(self) -> String {
        self.fill(self.row().name)
    }

    /// The other names that resolve to this site.
    pub fn aliases(self) -> impl Iterator<Item = String> {
        self.row().aliases.iter().map(move |alias| self.fill(alias))
    }

    /// Every name of this site in a model of `n_layer` blocks, by dialect. Names of Hugging Face's modules begin with
    /// the trunk's name, `transformer.`, which [`resolve`] does not require.
    pub fn dialects(self, n_layer: usize) -> BTreeMap<Dialect, Vec<String>> {
        let mut names: BTreeMap<Dialect, Vec<String>> = BTreeMap::new();
        let mut add = |dialect, name: String| names.entry(dialect).or_default().push(name);
        for alias in self.aliases() {
            match Dialect::of(&alias) {
                Dialect::HuggingFace => {
                    let is_field = alias.starts_with("attentions") || alias == "last_hidden_state";
                    let module = alias.strip_suffix(".input");
                    let trunk = if is_field || alias.starts_with("lm_head") { "" } else { "transformer." };
                    if module.is_none() {
                        add(Dialect::HuggingFace, format!("{trunk}{alias}"));
                    }
                    if !is_field {
                        let path = trunk.to_string() + module.unwrap_or(&alias);
                        let path =
                            self.layer().map_or(path.clone(), |l| path.replace(&format!("h.{l}"), &format!("h[{l}]")));
                        add(Dialect::Nnsight, format!("{path}.{}", if module.is_some() { "input" } else { "output" }));
                    }
                }
                Dialect::Nnterp => {
                    let (name, layer) = alias.split_once('.').unwrap_or((&alias, ""));
                    add(Dialect::Nnterp, if layer.is_empty() { name.into() } else { format!("{name}[{layer}]") });
                }
                dialect => add(dialect, alias),
            }
        }
        for (special, name) in specials(n_layer) {
            if special == self {
                let is_lens = name.contains("hook_");
                add(if is_lens { Dialect::TransformerLens } else { Dialect::HuggingFace }, name);
            }
        }
        names
    }

    fn fill(self, pattern: &str) -> String {
        match self.layer() {
            Some(layer) => pattern.replace("{i}", &layer.to_string()),
            None => pattern.to_string(),
        }
    }

    /// Axes after the batch axis.
    pub fn axes(self) -> &'static [Axis] {
        self.row().axes
    }

    /// Shape without the batch axis for a text of `n_pos` tokens.
    pub fn shape(self, config: &Config, n_pos: usize) -> Vec<usize> {
        self.axes().iter().map(|axis| axis.len(config, n_pos)).collect()
    }

    /// Which of the axes is the position: 1 for scores and pattern, whose first axis is the head, 0 for all others.
    pub fn pos_axis(self) -> usize {
        self.axes().iter().position(|axis| *axis == Axis::Pos).expect("every hook has positions")
    }

    /// True for the scores and the pattern: [H, P, P], computed text by text.
    pub fn is_square(self) -> bool {
        self.axes().last() == Some(&Key)
    }

    /// The site of a layer number: N >= 0 is block N's output, -1 the output of the final LayerNorm, -2 the output of
    /// the last block but one, like Python's `h[-2]`.
    ///
    /// # Errors
    /// [`SiteError::Layer`] outside `-n_layer ..= n_layer - 1`.
    pub fn from_layer(layer: i64, n_layer: usize) -> Result<Site, SiteError> {
        let n = n_layer as i64;
        match layer {
            -1 => Ok(Site::LnFinalOut),
            _ if (0..n).contains(&layer) => Ok(Site::ResidPost(layer as usize)),
            _ if (-n..0).contains(&layer) => Ok(Site::ResidPost((n + layer) as usize)),
            _ => Err(SiteError::Layer { layer, n_layer }),
        }
    }
}

impl Ord for Site {
    fn cmp(&self, other: &Site) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Site {
    fn partial_cmp(&self, other: &Site) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// A request that names no site of this model.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SiteError {
    /// The pattern is no name and no alias, and matches nothing as a glob.
    #[error("no hook matches {pattern:?}; nearest: {}", near.join(", "))]
    Unknown {
        /// The pattern as given.
        pattern: String,
        /// The names nearest to it.
        near: Vec<String>,
    },
    /// The name is a hook's but for the number of its block.
    #[error("no hook matches {pattern:?}: this model has {n_layer} blocks, the last of which is {}", n_layer - 1)]
    Block {
        /// The pattern as given.
        pattern: String,
        /// Blocks of the model, at least one.
        n_layer: usize,
    },
    /// The name means something that is not an activation.
    #[error("{pattern} is not an activation: it holds {what}")]
    NoActivation {
        /// The pattern as given.
        pattern: String,
        /// What the name means.
        what: &'static str,
    },
    /// The block does not exist.
    #[error("layer {layer} does not exist: this model has {n_layer} blocks, so layers run from -{n_layer} to {} (-1 is after the final LayerNorm)", n_layer - 1)]
    Layer {
        /// The layer as given.
        layer: i64,
        /// Blocks of the model.
        n_layer: usize,
    },
}

/// Names whose site depends on the number of blocks, and names of one block's site alone.
fn specials(n_layer: usize) -> Vec<(Site, String)> {
    let last = n_layer.saturating_sub(1);
    let fixed = [
        (Site::ResidPre(0), "drop"),
        (Site::ResidPre(0), "embeddings"),
        (Site::ResidPost(last), "ln_f.input"),
        (Site::ResidPost(last), "ln_final.hook_in"),
    ];
    let hidden = (0..=n_layer).map(|n| (hidden_state(n, n_layer), format!("hidden_states.{n}")));
    fixed.into_iter().map(|(site, name)| (site, name.to_string())).chain(hidden).collect()
}

/// The site of Hugging Face's `hidden_states[n]`: the first is what enters the first block, the last is after ln_f.
fn hidden_state(n: usize, n_layer: usize) -> Site {
    match n {
        0 => Site::ResidPre(0),
        _ if n == n_layer => Site::LnFinalOut,
        _ => Site::ResidPost(n - 1),
    }
}

/// A name in the form of the tables: without the prefixes `model.` and `transformer.`, with `h[3]` as `h.3` (negative
/// numbers count from the end), without the suffix `.output`, and with `.inputs[0][0]` as `.input`.
fn normalized(pattern: &str, n_layer: usize) -> String {
    let mut name = String::with_capacity(pattern.len());
    let mut rest =
        ["model.", "transformer."].iter().fold(pattern, |rest, prefix| rest.strip_prefix(prefix).unwrap_or(rest));
    while let Some((before, after)) = rest.split_once('[') {
        name.push_str(before);
        let Some((index, behind)) = after.split_once(']') else {
            name.push('[');
            rest = after;
            continue;
        };
        let of = if name.ends_with("hidden_states") { n_layer as i64 + 1 } else { n_layer as i64 };
        match index.trim().parse::<i64>() {
            Ok(n) if n < 0 => name.push_str(&format!(".{}", n.saturating_add(of))),
            Ok(n) => name.push_str(&format!(".{n}")),
            Err(_) => name.push_str(&format!(".{index}")),
        }
        rest = behind;
    }
    name.push_str(rest);
    let from_end = pattern.rsplit_once("hidden_states.-").and_then(|(_, n)| n.parse::<i64>().ok());
    if let Some(index) = from_end {
        name = format!("hidden_states.{}", (n_layer as i64 + 1).saturating_sub(index));
    }
    for suffix in [".output.0", ".output"] {
        name.truncate(name.strip_suffix(suffix).map_or(name.len(), str::len));
    }
    for suffix in [".inputs.0.0", ".input.0", ".inputs"] {
        if let Some(module) = name.strip_suffix(suffix) {
            name = format!("{module}.input");
        }
    }
    name
}

/// The sites that `pattern` names in a model of `n_layer` blocks, in run order, at least one.
///
/// A pattern is a hook's name, one of its aliases, another tool's way to write one (see [`Dialect`]), or a glob over
/// names in which `*` stands for any run of characters, dots too, and `?` for one; `[*]` stands for every block. Names
/// win over aliases.
///
/// # Errors
/// [`SiteError::Block`] when only the block does not exist, [`SiteError::NoActivation`] for a name of something else, and
/// [`SiteError::Unknown`] with the nearest names otherwise.
pub fn resolve(pattern: &str, n_layer: usize) -> Result<Vec<Site>, SiteError> {
    for every in ["[*]", "[:]"] {
        if pattern.contains(every) {
            let of_block = |layer: usize| resolve(&pattern.replacen(every, &format!("[{layer}]"), 1), n_layer);
            let mut sites = (0..n_layer).map(of_block).collect::<Result<Vec<_>, _>>()?.concat();
            sites.sort();
            sites.dedup();
            return Ok(sites);
        }
    }
    if let Some(site) = of_exact_name(pattern, n_layer) {
        return Ok(vec![site]);
    }
    let glob = WildMatch::new(pattern);
    let by_name: Vec<Site> = Site::all(n_layer).filter(|site| glob.matches(&site.name())).collect();
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    let written = normalized(pattern, n_layer);
    let ids = "token ids, which every output has as input_ids";
    let places = "positions, which count from 0";
    for (name, what) in [
        ("embed.hook_in", ids),
        ("wte.input", ids),
        ("input_ids", ids),
        ("pos_embed.hook_in", places),
        ("wpe.input", places),
    ] {
        if written == name {
            return Err(SiteError::NoActivation { pattern: pattern.into(), what });
        }
    }
    let glob = WildMatch::new(&written);
    let is_it = |name: &str| glob.matches(name);
    let special: BTreeSet<Site> =
        specials(n_layer).into_iter().filter(|(_, name)| is_it(name)).map(|(site, _)| site).collect();
    let found: Vec<Site> = Site::all(n_layer)
        .filter(|site| is_it(&site.name()) || special.contains(site) || site.aliases().any(|alias| is_it(&alias)))
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    if of_first_block(&written, n_layer).is_some_and(|of_first| resolve(&of_first, n_layer).is_ok()) {
        return Err(SiteError::Block { pattern: pattern.into(), n_layer });
    }
    Err(SiteError::Unknown { pattern: pattern.to_string(), near: nearest(pattern, n_layer) })
}

/// The site whose TransformerLens name this is. It compares names of one block only: a request may list every hook of a model by its
/// name, and each of them is looked for.
fn of_exact_name(name: &str, n_layer: usize) -> Option<Site> {
    let is_it = |site: &Site| site.name() == name;
    match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((layer, _)) => {
            let layer = layer.parse().ok().filter(|layer| *layer < n_layer)?;
            BLOCK.iter().map(|(make, _)| make(layer)).find(is_it)
        }
        None => BEFORE.iter().chain(AFTER).map(|(site, _)| *site).find(is_it),
    }
}

/// `name` with block 0 in place of the first block that a model of `n_layer` blocks lacks. `None` where it names no such block;
/// the numbers of `hidden_states` are no blocks.
fn of_first_block(name: &str, n_layer: usize) -> Option<String> {
    if n_layer == 0 || name.starts_with("hidden_states.") {
        return None;
    }
    let mut parts: Vec<&str> = name.split('.').collect();
    let missing = parts.iter_mut().find(|part| part.parse().is_ok_and(|block: usize| block >= n_layer))?;
    *missing = "0";
    Some(parts.join("."))
}

/// A remark for users of another tool's name, when that tool's value differs from the hook's in a surprising way.
pub fn trap(pattern: &str, n_layer: usize) -> Option<String> {
    let name = normalized(pattern, n_layer);
    let last = n_layer.saturating_sub(1);
    if let Some(n) = name.strip_prefix("hidden_states.").and_then(|n| n.parse::<usize>().ok()) {
        return match n {
            0 => None,
            _ if n == n_layer => Some(format!(
                "{pattern} is after the final LayerNorm; what leaves the last block is blocks.{last}.hook_resid_post"
            )),
            _ => Some(format!("{pattern} is what leaves block {}: hidden_states[0] is what enters the first", n - 1)),
        };
    }
    let of_block =
        name.strip_prefix("blocks.").or_else(|| name.strip_prefix("h.")).and_then(|rest| rest.split_once('.'));
    let known = match (name.as_str(), of_block.map(|(_, rest)| rest)) {
        ("last_hidden_state", _) => "is after the final LayerNorm",
        (_, Some("attn.c_attn" | "attn.qkv.hook_out")) => {
            "is one tensor there, [P, 3 D]; here it is the three hooks q, k and v"
        }
        (_, Some("attn.c_proj.input")) => "is [P, D] there, one head beside the other; here it is [P, H, d]",
        (_, Some("hook_attn_in" | "hook_q_input" | "hook_k_input" | "hook_v_input"))
        | (_, Some("attn.hook_attn_in" | "attn.hook_q_input" | "attn.hook_k_input" | "attn.hook_v_input")) => {
            "is the stream before ln1, of which there is a copy for every head there"
        }
        (_, Some("hook_mlp_in")) => "is the stream before ln2; what the MLP reads is its mlp.hook_in",
        _ => return None,
    };
    Some(format!("{pattern} {known}"))
}

/// The three names that look most like `wanted`, best first.
fn nearest(wanted: &str, n_layer: usize) -> Vec<String> {
    let scored = Site::all(n_layer).map(|site| {
        let names = std::iter::once(site.name()).chain(site.aliases());
        (names.map(|name| likeness(wanted, &name)).fold(0.0, f64::max), site)
    });
    ranked(scored).into_iter().take(3).map(|(_, site)| site.name()).collect()
}

impl std::str::FromStr for Site {
    type Err = SiteError;

    /// Parses a name in any dialect that [`resolve`] reads. The name must mean exactly one site. The block's index is
    /// not checked against a model.
    fn from_str(name: &str) -> Result<Site, SiteError> {
        let numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<usize>().ok());
        // The model's size is unknown, so assume as many blocks as the largest number in the name needs. Digits in
        // words (`ln_1`) are among these numbers, which is harmless.
        let n_layer = numbers.max().map_or(1, |n| n.saturating_add(1)).min(MOST_LAYERS);
        match resolve(name, n_layer)?.as_slice() {
            [one] => Ok(*one),
            _ => Err(SiteError::Unknown { pattern: name.into(), near: nearest(name, n_layer) }),
        }
    }
}

/// The largest number of blocks that a parsed name may imply.
const MOST_LAYERS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back_to_their_site() {
        let sites: Vec<Site> = Site::all(2).collect();
        assert_eq!(sites.len(), 2 + 2 * 20 + 4);
        assert!(sites.is_sorted(), "run order is the order of the table");
        for site in sites {
            assert_eq!(resolve(&site.name(), 2), Ok(vec![site]));
            for name in site.dialects(2).into_values().flatten() {
                assert!(resolve(&name, 2).unwrap().contains(&site), "{name}");
            }
            for alias in site.aliases() {
                // c_attn is three hooks.
                assert!(resolve(&alias, 2).unwrap().contains(&site), "{alias}");
                assert!(
                    resolve(&alias, 2).unwrap().len() == 1 || alias.contains("attn.c_attn") || alias.contains("qkv")
                );
            }
        }
    }

    #[test]
    fn dialects_globs_and_layers() {
        assert_eq!(resolve("transformer.h.1.mlp.act", 2), Ok(vec![Site::MlpPost(1)]));
        assert_eq!(resolve("blocks.1.hook_in", 2), Ok(vec![Site::ResidPre(1)]));
        assert_eq!(resolve("resid_post.*", 2), Ok(vec![Site::ResidPost(0), Site::ResidPost(1)]));
        assert_eq!(resolve("*", 2).unwrap().len(), Site::all(2).count());
        assert_eq!(Site::from_layer(-1, 12), Ok(Site::LnFinalOut));
        assert_eq!(Site::from_layer(-2, 12), Ok(Site::ResidPost(10)));
        assert_eq!(Site::from_layer(11, 12), Ok(Site::ResidPost(11)));
        assert!(Site::from_layer(12, 12).is_err() && Site::from_layer(-13, 12).is_err());
    }

    #[test]
    fn names_from_everywhere() {
        use Site::*;
        for (name, sites) in [
            ("hidden_states.0", &[ResidPre(0)][..]),
            ("hidden_states[1]", &[ResidPost(0)]),
            ("hidden_states.3", &[LnFinalOut]),
            ("hidden_states[-1]", &[LnFinalOut]),
            ("hidden_states.-2", &[ResidPost(1)]),
            ("attentions.2", &[Pattern(2)]),
            ("attentions[-1]", &[Pattern(2)]),
            ("transformer.h[2].output", &[ResidPost(2)]),
            ("transformer.h[-1].output[0]", &[ResidPost(2)]),
            ("model.transformer.h.1.attn.c_attn", &[Q(1), K(1), V(1)]),
            ("model.transformer.h[1].attn.c_attn.output", &[Q(1), K(1), V(1)]),
            ("transformer.h[1].input", &[ResidPre(1)]),
            ("transformer.h[1].inputs[0][0]", &[ResidPre(1)]),
            ("transformer.h[1].attn.output[0]", &[AttnOut(1)]),
            ("transformer.h[1].attn.c_proj.input", &[Z(1)]),
            ("transformer.h[1].mlp.c_proj.input", &[MlpPost(1)]),
            ("transformer.h[*].mlp.output", &[MlpOut(0), MlpOut(1), MlpOut(2)]),
            ("transformer.ln_f.input", &[ResidPost(2)]),
            ("lm_head.input", &[LnFinalOut]),
            ("model.lm_head.output", &[Unembed]),
            ("transformer.drop", &[ResidPre(0)]),
            ("layers_output[1]", &[ResidPost(1)]),
            ("mlps_input[1]", &[Ln2Out(1)]),
            ("attn_probs.1", &[Pattern(1)]),
            ("mlp_act.1", &[MlpPost(1)]),
            ("final_norm", &[LnFinalOut]),
            ("blocks[1].hook_out", &[ResidPost(1)]),
            ("blocks.1.ln1.hook_in", &[ResidPre(1)]),
            ("blocks.1.ln2.hook_in", &[ResidMid(1)]),
            ("blocks.1.attn.qkv.hook_in", &[Ln1Out(1)]),
            ("blocks.1.attn.qkv.hook_out", &[Q(1), K(1), V(1)]),
            ("blocks.1.attn.q.hook_in", &[Ln1Out(1)]),
            ("blocks.1.attn.o.hook_out", &[AttnOut(1)]),
            ("blocks.1.attn.hook_hidden_states", &[AttnOut(1)]),
            ("blocks.1.hook_mlp_in", &[ResidMid(1)]),
            ("blocks.1.hook_attn_in", &[ResidPre(1)]),
            ("ln_final.hook_in", &[ResidPost(2)]),
            ("hook_unembed", &[Unembed]),
        ] {
            assert_eq!(resolve(name, 3).as_deref(), Ok(sites), "{name}");
        }
        for unknown in
            ["hidden_states.4", "hidden_states[-5]", "transformer.h[3].output", "attentions[", "h[x].output", "[*]"]
        {
            assert!(resolve(unknown, 3).is_err(), "{unknown}");
        }
        assert!(matches!(resolve("embed.hook_in", 3), Err(SiteError::NoActivation { .. })));
        let says = |name: &str| trap(name, 3).unwrap_or_default();
        assert!(says("hidden_states[-1]").contains("blocks.2.hook_resid_post"));
        assert!(says("hidden_states.1").contains("block 0"));
        assert!(says("transformer.h[1].attn.c_attn").contains("[P, 3 D]"));
        assert!(says("blocks.1.hook_q_input").contains("before ln1"));
        assert_eq!(says("hidden_states.0") + &says("h.1") + &says("blocks.1.hook_in"), "");
        let all = ResidPost(1).dialects(3);
        assert_eq!(all[&Dialect::Nnsight], ["transformer.h[1].output"]);
        assert_eq!(all[&Dialect::HuggingFace], ["transformer.h.1", "hidden_states.2"]);
        assert_eq!(all[&Dialect::Nnterp], ["layers_output[1]"]);
        assert!(LnFinalOut.dialects(3)[&Dialect::HuggingFace].contains(&"hidden_states.3".to_string()));
    }

    #[test]
    fn a_typo_is_offered_the_name_that_was_meant() {
        let Err(SiteError::Unknown { near, .. }) = resolve("blocks.1.hook_resid_pots", 2) else { panic!() };
        assert_eq!(near[0], "blocks.1.hook_resid_post");
        let Err(SiteError::Unknown { near, .. }) = resolve("blocks.7.attn.hook_patern", 2) else { panic!() };
        assert!(near[0].ends_with("attn.hook_pattern"), "{near:?}");
        assert!(resolve("", 2).is_err());
    }

    #[test]
    fn a_block_that_is_missing_is_what_is_wrong() {
        let message = "no hook matches \"blocks.99.hook_resid_post\": this model has 2 blocks, the last of which is 1";
        assert_eq!(resolve("blocks.99.hook_resid_post", 2).unwrap_err().to_string(), message);
        for pattern in ["blocks.2.attn.*", "transformer.h[2].output", "resid_post.7"] {
            assert_eq!(resolve(pattern, 2), Err(SiteError::Block { pattern: pattern.into(), n_layer: 2 }));
        }
        for pattern in ["hidden_states.3", "blocks.7.nothing"] {
            assert!(matches!(resolve(pattern, 2), Err(SiteError::Unknown { .. })), "{pattern}");
        }
    }
}
