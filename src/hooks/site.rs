//! The hook dictionary: every place in the forward pass where an activation can be taken or changed, under
//! TransformerLens's names. Owns names, order, shapes and formulas, and turns what a person types (names, globs, other
//! tools' dialects) into sites. Adding a tap is one row here and one `hooks.at(...)` in `model.rs`.
//! Read next: `hooks.rs`, which records at these sites.

use crate::model::config::Config;
use std::cmp::Ordering;
use thiserror::Error;
use wildmatch::WildMatch;

/// One axis of an activation. Every activation has the batch as its first axis, which is not listed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Token positions (P). On attention patterns: the query, the token that looks.
    Pos,
    /// Token positions looked at (P), the last axis of attention patterns.
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

/// One row of the dictionary. In names, `{i}` stands for the block.
#[derive(Debug)]
pub struct Row {
    /// TransformerLens's name.
    pub name: &'static str,
    /// Axes after the batch axis.
    pub axes: &'static [Axis],
    /// What the values are.
    pub formula: &'static str,
    /// What other tools, and people in a hurry, call it: TransformerLens 4 canonical names, Hugging Face modules,
    /// shorthands.
    pub aliases: &'static [&'static str],
}

/// Writes the enum and the table from the same rows, so that neither can lack what the other has.
macro_rules! sites {
    (before { $($b:ident $brow:expr;)* } block { $($l:ident $lrow:expr;)* } after { $($a:ident $arow:expr;)* }) => {
        /// A place in the forward pass. Block sites carry their block's index. `Ord` is the order in which the values
        /// appear in a run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // each variant's meaning is its row's formula
        pub enum Site { $($b,)* $($l(usize),)* $($a,)* }

        const BEFORE: &[(Site, Row)] = &[$((Site::$b, $brow)),*];
        const BLOCK: &[(fn(usize) -> Site, Row)] = &[$((Site::$l, $lrow)),*];
        const AFTER: &[(Site, Row)] = &[$((Site::$a, $arow)),*];

        impl Site {
            /// The block this site is in, if any.
            pub fn layer(self) -> Option<usize> {
                match self { $(Site::$l(layer) => Some(layer),)* _ => None }
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
        Embed row("hook_embed", &[Pos, Embd], "wte[token]", &["embed", "embed.hook_out", "wte"]);
        PosEmbed row("hook_pos_embed", &[Pos, Embd], "wpe[position]", &["pos_embed", "pos_embed.hook_out", "wpe"]);
    }
    block {
        ResidPre row("blocks.{i}.hook_resid_pre", &[Pos, Embd], "block input; for i = 0 embed + pos_embed",
            &["resid_pre.{i}", "blocks.{i}.hook_in"]);
        Ln1Scale row("blocks.{i}.ln1.hook_scale", &[Pos, One], "sqrt(mean((x-mean)^2) + eps), the divisor", &["ln1.scale.{i}"]);
        Ln1Normalized row("blocks.{i}.ln1.hook_normalized", &[Pos, Embd], "(x-mean)/scale, before gain and bias", &["ln1.normalized.{i}"]);
        Ln1Out row("blocks.{i}.ln1.hook_out", &[Pos, Embd], "normalized * weight + bias: what attention reads",
            &["ln1.{i}", "h.{i}.ln_1", "blocks.{i}.attn.hook_in"]);
        Q row("blocks.{i}.attn.hook_q", &[Pos, Head, HeadDim], "query projection with bias, unscaled", &["q.{i}", "blocks.{i}.attn.q.hook_out"]);
        K row("blocks.{i}.attn.hook_k", &[Pos, Head, HeadDim], "key projection with bias", &["k.{i}", "blocks.{i}.attn.k.hook_out"]);
        V row("blocks.{i}.attn.hook_v", &[Pos, Head, HeadDim], "value projection with bias", &["v.{i}", "blocks.{i}.attn.v.hook_out"]);
        AttnScores row("blocks.{i}.attn.hook_attn_scores", &[Head, Pos, Key], "q.k after scaling and the causal mask; masked entries -inf",
            &["attn_scores.{i}", "scores.{i}"]);
        Pattern row("blocks.{i}.attn.hook_pattern", &[Head, Pos, Key], "softmax of the scores over keys", &["pattern.{i}", "attn.{i}"]);
        Z row("blocks.{i}.attn.hook_z", &[Pos, Head, HeadDim], "pattern . v, before the output projection", &["z.{i}", "blocks.{i}.attn.o.hook_in"]);
        Result row("blocks.{i}.attn.hook_result", &[Pos, Head, Embd], "z of one head through its rows of c_proj, no bias", &["result.{i}"]);
        AttnOut row("blocks.{i}.hook_attn_out", &[Pos, Embd], "what attention adds to the stream",
            &["attn_out.{i}", "blocks.{i}.attn.hook_out", "blocks.{i}.attn.o.hook_out", "h.{i}.attn", "h.{i}.attn.c_proj"]);
        ResidMid row("blocks.{i}.hook_resid_mid", &[Pos, Embd], "resid_pre + attn_out", &["resid_mid.{i}", "blocks.{i}.ln2.hook_in"]);
        Ln2Scale row("blocks.{i}.ln2.hook_scale", &[Pos, One], "as ln1, of resid_mid", &["ln2.scale.{i}"]);
        Ln2Normalized row("blocks.{i}.ln2.hook_normalized", &[Pos, Embd], "as ln1, of resid_mid", &["ln2.normalized.{i}"]);
        Ln2Out row("blocks.{i}.ln2.hook_out", &[Pos, Embd], "normalized * weight + bias: what the MLP reads",
            &["ln2.{i}", "h.{i}.ln_2", "blocks.{i}.mlp.hook_in", "blocks.{i}.mlp.in.hook_in"]);
        MlpPre row("blocks.{i}.mlp.hook_pre", &[Pos, Inner], "before the activation function", &["mlp_pre.{i}", "pre.{i}", "blocks.{i}.mlp.in.hook_out", "h.{i}.mlp.c_fc"]);
        MlpPost row("blocks.{i}.mlp.hook_post", &[Pos, Inner], "after it: the neurons", &["mlp_post.{i}", "post.{i}", "blocks.{i}.mlp.out.hook_in", "h.{i}.mlp.act"]);
        MlpOut row("blocks.{i}.hook_mlp_out", &[Pos, Embd], "what the MLP adds to the stream",
            &["mlp_out.{i}", "blocks.{i}.mlp.hook_out", "blocks.{i}.mlp.out.hook_out", "h.{i}.mlp", "h.{i}.mlp.c_proj"]);
        ResidPost row("blocks.{i}.hook_resid_post", &[Pos, Embd], "resid_mid + mlp_out: block i's output", &["resid_post.{i}", "blocks.{i}.hook_out", "h.{i}"]);
    }
    after {
        LnFinalScale row("ln_final.hook_scale", &[Pos, One], "as ln1, of the last resid_post", &["ln_final.scale"]);
        LnFinalNormalized row("ln_final.hook_normalized", &[Pos, Embd], "as ln1, of the last resid_post", &["ln_final.normalized"]);
        LnFinalOut row("ln_final.hook_out", &[Pos, Embd], "after ln_f's gain and bias: what the unembedding reads", &["ln_f", "ln_final", "unembed.hook_in"]);
        Unembed row("unembed.hook_out", &[Pos, Vocab], "logits", &["logits", "lm_head", "unembed"]);
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

    /// Where in the run this site stands: stage, then row within the stage.
    fn order(self) -> (usize, usize) {
        let place = |n: Option<usize>| n.expect("every variant has its row: the macro writes both");
        match self.layer() {
            Some(layer) => (layer + 1, place(BLOCK.iter().position(|(make, _)| make(layer) == self))),
            None => match BEFORE.iter().position(|(site, _)| *site == self) {
                Some(n) => (0, n),
                None => (usize::MAX, place(AFTER.iter().position(|(site, _)| *site == self))),
            },
        }
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

    /// The other names under which this site is found.
    pub fn aliases(self) -> impl Iterator<Item = String> {
        self.row().aliases.iter().map(move |alias| self.fill(alias))
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

    /// The notebook's meaning of a layer number: N >= 0 is block N's output, -1 is after the final LayerNorm, -2 the
    /// output of the last block but one, as Python's `h[-2]`.
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
    /// Neither a name, nor an alias, nor a glob that matches.
    #[error("no hook matches {pattern:?}; nearest: {}; `actscope hooks` lists all", near.join(", "))]
    Unknown {
        /// What was asked for.
        pattern: String,
        /// The names nearest to it.
        near: Vec<String>,
    },
    /// The block does not exist.
    #[error("layer {layer} does not exist: this model has {n_layer} blocks, so layers run from -{n_layer} to {} (-1 is after the final LayerNorm)", n_layer - 1)]
    Layer {
        /// What was asked for.
        layer: i64,
        /// Blocks of the model.
        n_layer: usize,
    },
}

/// The sites that `pattern` names in a model of `n_layer` blocks, in run order, at least one.
///
/// A pattern is a hook's name, one of its aliases (with or without Hugging Face's `transformer.` in front), or a glob
/// over names in which `*` stands for any run of characters, dots too, and `?` for one. Names win over aliases.
///
/// # Errors
/// [`SiteError::Unknown`] with the nearest names: nothing is ever silently matched to nothing.
pub fn resolve(pattern: &str, n_layer: usize) -> Result<Vec<Site>, SiteError> {
    let glob = WildMatch::new(pattern);
    let by_name: Vec<Site> = Site::all(n_layer).filter(|site| glob.matches(&site.name())).collect();
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    // Hugging Face's modules are found with and without the name of the trunk in front.
    let is_it = |alias: String| glob.matches(&alias) || glob.matches(&format!("transformer.{alias}"));
    let by_alias: Vec<Site> = Site::all(n_layer).filter(|site| site.aliases().any(is_it)).collect();
    if !by_alias.is_empty() {
        return Ok(by_alias);
    }
    Err(SiteError::Unknown { pattern: pattern.to_string(), near: nearest(pattern, n_layer) })
}

/// The three names that look most like `wanted`, best first.
fn nearest(wanted: &str, n_layer: usize) -> Vec<String> {
    // The distance takes time and memory by the length of both, and no name is half as long as this.
    const ENOUGH: usize = 128;
    let wanted = wanted.char_indices().nth(ENOUGH).map_or(wanted, |(end, _)| &wanted[..end]);
    let mut scored: Vec<(f64, Site)> = Site::all(n_layer)
        .map(|site| {
            let names = std::iter::once(site.name()).chain(site.aliases());
            (names.map(|name| strsim::normalized_damerau_levenshtein(wanted, &name)).fold(0.0, f64::max), site)
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, site)| site.name()).collect()
}

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
            for alias in site.aliases() {
                assert_eq!(resolve(&alias, 2), Ok(vec![site]), "{alias}");
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
    fn a_typo_is_offered_the_name_that_was_meant() {
        let Err(SiteError::Unknown { near, .. }) = resolve("blocks.1.hook_resid_pots", 2) else { panic!() };
        assert_eq!(near[0], "blocks.1.hook_resid_post");
        let Err(SiteError::Unknown { near, .. }) = resolve("blocks.7.attn.hook_patern", 2) else { panic!() };
        assert!(near[0].ends_with("attn.hook_pattern"), "{near:?}");
        assert!(resolve("", 2).is_err());
    }
}
