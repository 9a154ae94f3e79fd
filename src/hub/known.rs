//! A list of well-known GPT-2 checkpoints: names on the hub, shapes, and download sizes. Owns the short names and the
//! suggestions for a misspelt name. It is not a limit: any GPT-2 on the hub can be opened. Read next: `mod.rs`.

use crate::text::{likeness, ranked};

/// A checkpoint on the hub.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The name to open it with: `owner/name`, with `@revision` if the main branch has no safetensors.
    pub id: &'static str,
    /// Its short name, if it has one.
    pub short: Option<&'static str>,
    /// Blocks, width and heads. All have 1,024 positions and GPT-2's 50,257 tokens.
    pub shape: [u64; 3],
    /// Bytes of its safetensors from the hub's file list (to three digits); `None` if the repository has only a pickle
    /// or the size is unknown.
    pub download: Option<u64>,
    /// What is particular about it.
    pub note: &'static str,
}

impl Known {
    /// Parameters of a GPT-2 of this shape: embeddings, twelve `n_embd`² per block, biases and LayerNorms.
    pub fn parameters(&self) -> u64 {
        let [n_layer, d, _] = self.shape;
        (50_257 + 1_024) * d + n_layer * (12 * d * d + 13 * d) + 2 * d
    }
}

const SMALL: [u64; 3] = [12, 768, 12];
const MEDIUM: [u64; 3] = [24, 1024, 16];
const LARGE: [u64; 3] = [36, 1280, 20];
const XL: [u64; 3] = [48, 1600, 25];

const PICKLE: &str = "only a pickle, which must be converted first";

const fn known(
    id: &'static str,
    short: Option<&'static str>,
    shape: [u64; 3],
    download: Option<u64>,
    note: &'static str,
) -> Known {
    Known { id, short, shape, download, note }
}

/// The list. Files and sizes are from each repository's file list on the hub. For OpenAI's models and DistilGPT-2 they
/// are exact: 4 bytes per parameter, 4 MiB of causal mask per block, and a header.
pub const KNOWN: &[Known] = &[
    known("openai-community/gpt2", Some("gpt2"), SMALL, Some(548_105_171), "OpenAI, 2019"),
    known("openai-community/gpt2-medium", Some("gpt2-medium"), MEDIUM, Some(1_519_984_962), "OpenAI, 2019"),
    known("openai-community/gpt2-large", Some("gpt2-large"), LARGE, Some(3_247_159_078), "OpenAI, 2019"),
    known("openai-community/gpt2-xl", Some("gpt2-xl"), XL, Some(6_431_829_964), "OpenAI, 2019"),
    known("distilbert/distilgpt2", Some("distilgpt2"), [6, 768, 12], Some(352_824_413), "distilled from gpt2"),
    known("microsoft/DialoGPT-small", None, SMALL, Some(351_000_000), "dialogue; stored as f16"),
    known("microsoft/DialoGPT-medium@refs/pr/22", None, MEDIUM, Some(863_000_000), "dialogue; stored as f16"),
    known("microsoft/DialoGPT-large", None, LARGE, None, "dialogue; stored as f16"),
    known(
        "apollo-research/gpt2_noLN",
        None,
        SMALL,
        Some(498_000_000),
        "LayerNorm trained away; no tokenizer: token ids only",
    ),
    known("schaeff/gpt2-small_LNFree300", None, SMALL, None, "LayerNorm trained away"),
    known("schaeff/gpt2-xl_LNFree800", None, XL, None, "LayerNorm trained away"),
    known("stanford-crfm/alias-gpt2-small-x21", None, SMALL, None, PICKLE),
    known("stanford-crfm/battlestar-gpt2-small-x49", None, SMALL, None, PICKLE),
    known("stanford-crfm/caprica-gpt2-small-x81", None, SMALL, None, PICKLE),
    known("stanford-crfm/darkmatter-gpt2-small-x343", None, SMALL, None, PICKLE),
    known("stanford-crfm/expanse-gpt2-small-x777", None, SMALL, None, PICKLE),
    known("stanford-crfm/arwen-gpt2-medium-x21", None, MEDIUM, None, PICKLE),
    known("stanford-crfm/beren-gpt2-medium-x49@refs/pr/1", None, MEDIUM, Some(735_000_000), "seed 49; stored as f16"),
    known(
        "stanford-crfm/celebrimbor-gpt2-medium-x81@refs/pr/1",
        None,
        MEDIUM,
        Some(735_000_000),
        "seed 81; stored as f16",
    ),
    known("stanford-crfm/durin-gpt2-medium-x343", None, MEDIUM, None, PICKLE),
    known("stanford-crfm/eowyn-gpt2-medium-x777", None, MEDIUM, None, PICKLE),
];

/// The repository of a short name; any other name is returned unchanged.
pub(crate) fn full_name(name: &str) -> &str {
    KNOWN.iter().find(|k| k.short == Some(name)).map_or(name, |k| k.id)
}

/// Known names similar to `wanted`, best first: at most three, and none if no name is similar.
pub(crate) fn nearest(wanted: &str) -> Vec<&'static str> {
    let scored = KNOWN.iter().map(|k| {
        let name = k.id.split(['/', '@']).nth(1).unwrap_or(k.id);
        (likeness(wanted, k.id).max(likeness(wanted, name)), k.short.unwrap_or(k.id))
    });
    // Do not suggest the name that the hub has just refused.
    let suggested = scored.filter(|(score, name)| *score >= 0.6 && full_name(name) != full_name(wanted));
    ranked(suggested).into_iter().take(3).map(|(_, name)| name).collect()
}

/// "; did you mean …?" with names similar to `wanted`, or nothing.
pub(super) fn did_you_mean(wanted: &str) -> String {
    match nearest(wanted).as_slice() {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let of = |short| KNOWN.iter().find(|k| k.short == Some(short)).unwrap().parameters();
        assert_eq!(of("gpt2"), 124_439_808);
        assert_eq!(of("gpt2-medium"), 354_823_168);
        assert_eq!(of("gpt2-large"), 774_030_080);
        assert_eq!(of("gpt2-xl"), 1_557_611_200);
        assert_eq!(of("distilgpt2"), 81_912_576);
    }

    /// 4 bytes per parameter, a 1024 x 1024 mask in f32 per block, and a header of 0.5 to 2 kB per block.
    #[test]
    fn download_sizes_follow_from_the_shapes() {
        for k in KNOWN.iter().filter(|k| k.short.is_some()) {
            let tensors = 4 * k.parameters() + k.shape[0] * 4 * 1024 * 1024;
            let header = k.download.unwrap() - tensors;
            assert!((500..2_000).contains(&(header / k.shape[0])), "{}: a header of {header} bytes", k.id);
        }
    }

    #[test]
    fn misspelt_names_have_near_ones() {
        assert_eq!(nearest("gtp2")[0], "gpt2");
        assert_eq!(nearest("openai-comunity/gpt2-xl")[0], "gpt2-xl");
        assert_eq!(nearest("dialogpt-small")[0], "microsoft/DialoGPT-small");
        assert!(!nearest("gpt2").contains(&"gpt2"));
        assert!(nearest("meta-llama/Llama-3.1-8B").is_empty());
    }
}
