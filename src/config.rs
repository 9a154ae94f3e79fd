//! GPT-2's `config.json`: every field that changes the mathematics, with the defaults that transformers' `GPT2Config`
//! gives when a field is absent. Owns parsing and the checks that need no weights; uses no file and no device.
//! Read next: `model/checkpoint.rs`, which checks the tensors' shapes against these sizes.

use crate::file_kind::Kind;
use serde_json::{Map, Value};
use thiserror::Error;

/// The activation function of the MLP. Several names in `config.json` mean the same function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`: `gelu`. Up to 4.7e-4 away from the tanh form.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// `x sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    /// Every activation function.
    pub const ALL: [Activation; 5] =
        [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::Silu, Activation::QuickGelu];

    /// The function that transformers' `ACT2FN` calls `name`; `None` for functions without a kernel here.
    pub fn from_name(name: &str) -> Option<Activation> {
        Some(match name {
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "gelu" | "gelu_python" => Activation::GeluErf,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            "quick_gelu" => Activation::QuickGelu,
            _ => return None,
        })
    }
}

/// Why a `config.json` cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The text is not a JSON object.
    #[error("config.json is not a JSON object: {0}")]
    Json(String),
    /// The file has another format, such as a web page or a weights file.
    #[error("config.json is {0}")]
    Kind(String),
    /// The checkpoint is of another architecture.
    #[error("config.json describes the architecture {found:?}; actscope runs GPT-2 (model_type \"gpt2\") only")]
    Architecture {
        /// `model_type` as found.
        found: String,
    },
    /// A required field is absent.
    #[error(
        "config.json lacks {field:?}; a GPT-2 checkpoint needs n_embd, n_layer, n_head and vocab_size (n_positions defaults to 1024)"
    )]
    Missing {
        /// The field's name.
        field: &'static str,
    },
    /// A field has an invalid value.
    #[error("config.json: {field} is {value}; {expected}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// The value as written in the file.
        value: String,
        /// Which values are valid.
        expected: &'static str,
    },
}

/// The sizes and switches of one GPT-2. Field names are config.json's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream (D).
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Attention heads per block (H).
    pub n_head: usize,
    /// Longest sequence that has position embeddings, in tokens (`n_positions`, or `n_ctx` in old files).
    pub n_positions: usize,
    /// Rows of the token embedding (V).
    pub vocab_size: usize,
    /// Width of the MLP (M); `4 * n_embd` when the file gives null or nothing.
    pub n_inner: usize,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_epsilon: f64,
    /// The MLP's activation function (`activation_function`).
    pub activation: Activation,
    /// Divide attention scores by `sqrt(head_dim)`.
    pub scale_attn_weights: bool,
    /// Divide them by `layer + 1` as well.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// The unembedding is the token embedding. Only then may `lm_head.weight` be absent.
    pub tie_word_embeddings: bool,
    /// Id of the token that begins a text (`bos_token_id`), if the file has it.
    pub bos_token_id: Option<u32>,
    /// Ids of the tokens that end a text (`eos_token_id`, a number or a list), if the file has it.
    pub eos_token_id: Option<Vec<u32>>,
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] names the field and what would be right. Sizes are only checked for plausibility here
    /// (positive, a divisor where one is needed, below 2^31). `model/checkpoint.rs` compares them with the files.
    pub fn from_json(text: &str) -> Result<Config, ConfigError> {
        // Python's json.dumps writes Infinity and NaN, which are not JSON; serde_json names the line and column.
        let value: Value = serde_json::from_str(text).map_err(|e| match Kind::of(text.as_bytes()) {
            Some(kind) => ConfigError::Kind(kind.to_string()),
            None => ConfigError::Json(e.to_string()),
        })?;
        let fields = value.as_object().ok_or_else(|| ConfigError::Json("the outermost value is not { … }".into()))?;

        if let Some(found) = fields.get("model_type").and_then(Value::as_str)
            && found != "gpt2"
        {
            return Err(ConfigError::Architecture { found: found.into() });
        }
        if flag(fields, "add_cross_attention", false)? {
            return Err(ConfigError::Value {
                field: "add_cross_attention",
                value: "true".into(),
                expected: "actscope runs decoder-only GPT-2; a cross-attending decoder has inputs it does not know",
            });
        }

        let needed = |field| size(fields, field)?.ok_or(ConfigError::Missing { field });
        let n_embd = needed("n_embd")?;
        let n_head = needed("n_head")?;
        if n_embd % n_head != 0 {
            return Err(ConfigError::Value {
                field: "n_head",
                value: n_head.to_string(),
                expected: "it must divide n_embd without a remainder",
            });
        }
        let n_positions = match size(fields, "n_positions")? {
            Some(n) => n,
            None => size(fields, "n_ctx")?.unwrap_or(1024),
        };
        Ok(Config {
            n_embd,
            n_layer: needed("n_layer")?,
            n_head,
            n_positions,
            vocab_size: needed("vocab_size")?,
            n_inner: size(fields, "n_inner")?.unwrap_or(4 * n_embd),
            layer_norm_epsilon: epsilon(fields)?,
            activation: activation(fields)?,
            scale_attn_weights: flag(fields, "scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: flag(fields, "scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: flag(fields, "tie_word_embeddings", true)?,
            bos_token_id: fields.get("bos_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()),
            eos_token_id: ids(fields.get("eos_token_id")),
        })
    }

    /// Width of one head: `n_embd / n_head`.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// The factor of the attention scores of block `layer`.
    pub fn attn_scale(&self, layer: usize) -> f64 {
        let by_width = if self.scale_attn_weights { 1.0 / (self.head_dim() as f64).sqrt() } else { 1.0 };
        let by_layer = if self.scale_attn_by_inverse_layer_idx { 1.0 / (layer + 1) as f64 } else { 1.0 };
        by_width * by_layer
    }
}

/// The names that other models use for the same sizes. transformers' `GPT2Config` accepts them too (its
/// `attribute_map`), and they take precedence over GPT-2's own names. `intermediate_size` is not in that map: it is
/// used only when `n_inner` is absent.
const OTHER_NAMES: [(&str, &str); 4] = [
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_positions", "max_position_embeddings"),
];

/// A positive whole number below 2^31; `None` when absent or null.
fn size(fields: &Map<String, Value>, field: &'static str) -> Result<Option<usize>, ConfigError> {
    let there = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
    let other = OTHER_NAMES.iter().find(|(own, _)| *own == field).map(|(_, other)| *other).filter(there);
    let gap = Some("intermediate_size").filter(|_| field == "n_inner" && !there(&"n_inner"));
    let field = other.or(gap).unwrap_or(field);
    match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => match v.as_u64() {
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            _ => Err(ConfigError::Value {
                field,
                value: shown(v),
                expected: "it must be a whole number from 1 to 2147483647",
            }),
        },
    }
}

fn flag(fields: &Map<String, Value>, field: &'static str, default: bool) -> Result<bool, ConfigError> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(b)) => Ok(*b),
        Some(v) => Err(ConfigError::Value { field, value: shown(v), expected: "it must be true or false" }),
    }
}

/// Token ids given as one number or a list; `None` when absent or null. Values that are not token ids are skipped.
pub(crate) fn ids(value: Option<&Value>) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) => Some(list.iter().filter_map(id).collect()),
        Some(one) => Some(id(one).into_iter().collect()),
    }
}

fn epsilon(fields: &Map<String, Value>) -> Result<f64, ConfigError> {
    let field = "layer_norm_epsilon";
    match fields.get(field) {
        None | Some(Value::Null) => Ok(1e-5),
        Some(v) => match v.as_f64() {
            // The kernels compute in f32: a value that is infinite in f32 would make every activation NaN.
            Some(eps) if eps >= 0.0 && (eps as f32).is_finite() => Ok(eps),
            _ => Err(ConfigError::Value { field, value: shown(v), expected: "it must be a number from 0 to 3.4e38" }),
        },
    }
}

fn activation(fields: &Map<String, Value>) -> Result<Activation, ConfigError> {
    let field = "activation_function";
    let expected = "actscope knows gelu_new, gelu_pytorch_tanh, gelu_fast, gelu, relu, silu, swish and quick_gelu";
    match fields.get(field) {
        None | Some(Value::Null) => Ok(Activation::GeluTanh),
        Some(v) => v.as_str().and_then(Activation::from_name).ok_or_else(|| ConfigError::Value {
            field,
            value: shown(v),
            expected,
        }),
    }
}

/// A JSON value as text, truncated so that a hostile file cannot flood the terminal.
fn shown(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"n_embd": 12, "n_head": 3, "n_layer": 2, "vocab_size": 5"#;

    fn parse(rest: &str) -> Result<Config, ConfigError> {
        Config::from_json(&format!("{SMALL}{rest}}}"))
    }

    #[test]
    fn absent_fields_have_transformers_defaults() {
        let c = parse("").unwrap();
        assert_eq!((c.n_positions, c.n_inner, c.layer_norm_epsilon), (1024, 48, 1e-5));
        assert_eq!(c.activation, Activation::GeluTanh);
        assert!(c.scale_attn_weights && c.tie_word_embeddings && !c.scale_attn_by_inverse_layer_idx);
        assert_eq!(parse(r#", "n_inner": null, "n_ctx": 7"#).unwrap().n_positions, 7);
    }

    /// As transformers 5.24 reads them, except for intermediate_size, which it ignores.
    #[test]
    fn sizes_under_the_names_of_other_models() {
        let text = r#"{"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 5,
            "max_position_embeddings": 7, "intermediate_size": 9}"#;
        let c = Config::from_json(text).unwrap();
        assert_eq!((c.n_embd, c.n_head, c.n_layer, c.n_positions, c.n_inner), (12, 3, 2, 7, 9));
        assert_eq!(parse(r#", "hidden_size": 24"#).unwrap().n_embd, 24);
        assert_eq!(parse(r#", "n_inner": 8, "intermediate_size": 9"#).unwrap().n_inner, 8);
        assert_eq!(parse(r#", "num_attention_heads": null"#).unwrap().n_head, 3);
        assert!(parse(r#", "hidden_size": 0"#).unwrap_err().to_string().contains("hidden_size"));
    }

    #[test]
    fn attention_scale_follows_both_switches() {
        assert_eq!(parse("").unwrap().attn_scale(1), 0.5);
        assert_eq!(parse(r#", "scale_attn_by_inverse_layer_idx": true"#).unwrap().attn_scale(1), 0.25);
        assert_eq!(parse(r#", "scale_attn_weights": false"#).unwrap().attn_scale(1), 1.0);
    }

    #[test]
    fn a_bad_field_is_named() {
        for (rest, culprit) in [
            (r#", "n_inner": 0"#, "n_inner"),
            (r#", "n_inner": -4"#, "n_inner"),
            (r#", "n_positions": 1e99"#, "n_positions"),
            (r#", "layer_norm_epsilon": "tiny""#, "layer_norm_epsilon"),
            (r#", "layer_norm_epsilon": -1"#, "layer_norm_epsilon"),
            (r#", "activation_function": "mish""#, "mish"),
            (r#", "scale_attn_weights": 1"#, "scale_attn_weights"),
            (r#", "add_cross_attention": true"#, "add_cross_attention"),
            (r#", "model_type": "llama""#, "llama"),
        ] {
            let message = parse(rest).unwrap_err().to_string();
            assert!(message.contains(culprit), "{rest}: {message}");
        }
        assert!(Config::from_json("[1, 2]").is_err());
        assert!(Config::from_json(r#"{"n_embd": 12, "n_head": 5, "n_layer": 1, "vocab_size": 2}"#).is_err());
    }
}
