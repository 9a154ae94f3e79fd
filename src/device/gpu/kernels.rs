//! The table of kernels: which file, which library files go with it, what it binds, what its parameters are. A faster
//! variant of a kernel is one more entry here; the static shader tests walk this table.
//! Owns no GPU object; `record.rs` makes those.

use crate::device::{Activation, Dtype, Epilogue};

/// A field of a kernel's `Params`: name, and whether it is a float.
pub type Field = (&'static str, bool);

/// Parameters of a kernel: a Pod twin of the `Params` struct in its WGSL file, field for field. `FIELDS` lets a test hold
/// the two against each other.
pub trait Params: bytemuck::Pod {
    /// Every field in order; each is four bytes.
    const FIELDS: &'static [Field];
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ident),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        #[allow(missing_docs)] // the WGSL file says what each field is
        pub struct $name { $(pub $field: $type),* }

        impl Params for $name {
            const FIELDS: &'static [Field] = &[$((stringify!($field), params!(@float $type))),*];
        }
    )*};
    (@float f32) => { true };
    (@float u32) => { false };
}

params! {
    /// Of `embed.wgsl`.
    Embed { n_ids: u32, cols: u32, w_stride: u32, first: u32, n_rows: u32 }
    /// Of `layer_norm.wgsl` and `layer_norm_scale.wgsl`.
    LayerNorm { rows: u32, cols: u32, eps: f32 }
    /// Of `layer_norm_normalize.wgsl` and `attention_pattern.wgsl`.
    Shape { rows: u32, cols: u32 }
    /// Of `gain_bias.wgsl`.
    GainBias { n: u32, cols: u32 }
    /// Of `add.wgsl` and `activation.wgsl`.
    Elements { n: u32 }
    /// Of `sum_heads.wgsl`.
    SumHeads { n: u32, cols: u32, n_head: u32 }
    /// Of `edit.wgsl`.
    Edit { n: u32, first_col: u32, cols: u32, x_stride: u32, kind: u32, factor: f32, n_values: u32, first_value: u32, values_stride: u32 }
    /// Of `copy_out.wgsl`.
    CopyOut { n: u32, first_col: u32, cols: u32, x_stride: u32, y_first: u32, y_stride: u32 }
    /// Of `linear.wgsl`, `linear_matrices.wgsl`, `linear_few.wgsl` and `linear_broadcast.wgsl`.
    Linear {
        rows: u32, k: u32, cols: u32, x_stride: u32, x_first: u32, w_stride: u32, w_first_row: u32, y_stride: u32,
        y_first: u32, has_bias: u32,
    }
    /// Of `unembed.wgsl`, `unembed_matrices.wgsl`, `unembed_few.wgsl` and `unembed_broadcast.wgsl`.
    Unembed { rows: u32, k: u32, cols: u32, x_first: u32, w_stride: u32, y_stride: u32, y_first: u32 }
    /// Of `attention.wgsl`, `attention_broadcast.wgsl` and `attention_scores.wgsl`.
    Attention { first: u32, n_pos: u32, n_embd: u32, head_dim: u32, scale: f32 }
    /// Of `attention_mix.wgsl`.
    AttentionMix { first: u32, n_pos: u32, n_embd: u32, head_dim: u32 }
    /// Of `probe_arithmetic.wgsl`.
    ProbeArithmetic { rounds: u32, factor: f32, addend: f32 }
    /// Of `probe_reading.wgsl`.
    ProbeReading { n: u32, lanes: u32 }
}

/// What a kernel does with a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    Write,
}

/// Kernels that do the same for adapters of different kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Many lanes share what they load through workgroup memory: every GPU.
    Tiles,
    /// The 8 lanes of a subgroup, which is the whole workgroup, hand it to each other: adapters that are programs.
    Broadcast,
}

/// A kernel. Binding 0 is its `Params`, the storage bindings follow.
#[derive(Debug)]
pub struct Kernel {
    /// What messages call it, and its pipelines' label: the file's stem, and where two kernels share a file, a suffix.
    pub name: &'static str,
    /// Stem of the file, which is its entry point too.
    pub file: &'static str,
    /// The family it belongs to; `None` where one kernel serves all.
    pub family: Option<Family>,
    /// Whether it multiplies cooperative matrices of 8 x 8, which few adapters have in f32 and DirectX does not know.
    pub matrices: bool,
    /// The file's text.
    pub source: &'static str,
    /// Library files that it names.
    pub libs: &'static [&'static str],
    /// Access of bindings 1, 2, ...
    pub bindings: &'static [Access],
    /// Fields of its `Params`.
    pub params: &'static [Field],
    /// Pipeline-overridable constants, each with its largest value.
    pub overrides: &'static [(&'static str, u32)],
    /// `const`s that are generated, each with a large value.
    pub consts: &'static [(&'static str, u32)],
}

const WEIGHT: &str = include_str!("../../../shaders/lib/weight.wgsl");
const REDUCE: &str = include_str!("../../../shaders/lib/reduce.wgsl");
const MOMENTS: &str = include_str!("../../../shaders/lib/moments.wgsl");
const SCORE: &str = include_str!("../../../shaders/lib/score.wgsl");
const EXP: &str = include_str!("../../../shaders/lib/exp.wgsl");
const GELU: &str = include_str!("../../../shaders/lib/gelu.wgsl");
const ACTIVATION_LIB: &str = include_str!("../../../shaders/lib/activation.wgsl");
const FINISH: &str = include_str!("../../../shaders/lib/epilogue.wgsl");
const STEP: &str = include_str!("../../../shaders/lib/step.wgsl");
const REDUCE_BROADCAST: &str = include_str!("../../../shaders/lib/reduce_broadcast.wgsl");

/// The override of `lib/weight.wgsl`.
const WEIGHT_OVERRIDE: (&str, u32) = ("WEIGHT", 2);

/// That of `lib/epilogue.wgsl`.
const THEN_OVERRIDE: (&str, u32) = ("THEN", 6);

/// How a product's tile is cut, as `tile.rs` has it.
const TILE: &[(&str, u32)] = &[("LANES", 16), ("ROWS", 8), ("FOURS", 2)];

/// How many lanes a subgroup has that multiplies matrices.
const LANES: &[(&str, u32)] = &[("LANES", 64)];

use Access::{Read, Write};

macro_rules! kernels {
    ($(#[$doc:meta])* $list:ident; $($konst:ident $file:literal $(+ $suffix:literal)? $family:expr, $params:ident [$($access:ident),*] libs $libs:expr, overrides $overrides:expr, consts $consts:expr $(, $matrices:ident)?;)*) => {
        $(
            #[doc = concat!("`shaders/", $file, ".wgsl`")]
            pub static $konst: Kernel = Kernel {
                name: concat!($file $(, $suffix)?),
                file: $file,
                family: $family,
                matrices: false $(|| kernels!(@$matrices))?,
                source: include_str!(concat!("../../../shaders/", $file, ".wgsl")),
                libs: $libs,
                bindings: &[$($access),*],
                params: $params::FIELDS,
                overrides: $overrides,
                consts: $consts,
            };
        )*

        $(#[$doc])*
        pub static $list: &[&Kernel] = &[$(&$konst),*];
    };
    (@matrices) => { true };
}

const ANY: Option<Family> = None;
const TILES: Option<Family> = Some(Family::Tiles);
const BROADCAST: Option<Family> = Some(Family::Broadcast);
const PRODUCT: &[&str] = &[WEIGHT, FINISH, ACTIVATION_LIB, EXP, GELU];

kernels! {
    /// Every kernel of an operation.
    ALL;
    EMBED "embed" ANY, Embed [Read, Read, Write] libs &[WEIGHT], overrides &[WEIGHT_OVERRIDE], consts &[];
    LAYER_NORM "layer_norm" TILES, LayerNorm [Read, Read, Read, Write] libs &[REDUCE, MOMENTS], overrides &[], consts &[];
    LAYER_NORM_BROADCAST "layer_norm" + "_broadcast" BROADCAST, LayerNorm [Read, Read, Read, Write] libs &[REDUCE_BROADCAST, MOMENTS], overrides &[], consts &[];
    LAYER_NORM_SCALE "layer_norm_scale" TILES, LayerNorm [Read, Write] libs &[REDUCE, MOMENTS], overrides &[], consts &[];
    LAYER_NORM_SCALE_BROADCAST "layer_norm_scale" + "_broadcast" BROADCAST, LayerNorm [Read, Write] libs &[REDUCE_BROADCAST, MOMENTS], overrides &[], consts &[];
    LAYER_NORM_NORMALIZE "layer_norm_normalize" TILES, Shape [Read, Read, Write] libs &[REDUCE, MOMENTS], overrides &[], consts &[];
    LAYER_NORM_NORMALIZE_BROADCAST "layer_norm_normalize" + "_broadcast" BROADCAST, Shape [Read, Read, Write] libs &[REDUCE_BROADCAST, MOMENTS], overrides &[], consts &[];
    GAIN_BIAS "gain_bias" ANY, GainBias [Read, Read, Read, Write] libs &[], overrides &[], consts &[];
    LINEAR "linear" TILES, Linear [Read, Read, Read, Read, Write] libs PRODUCT, overrides &[WEIGHT_OVERRIDE, THEN_OVERRIDE], consts TILE;
    LINEAR_MATRICES "linear_matrices" TILES, Linear [Read, Read, Read, Read, Write] libs PRODUCT, overrides &[WEIGHT_OVERRIDE, THEN_OVERRIDE], consts LANES, matrices;
    LINEAR_FEW "linear_few" TILES, Linear [Read, Read, Read, Read, Write] libs PRODUCT, overrides &[WEIGHT_OVERRIDE, THEN_OVERRIDE], consts &[];
    LINEAR_BROADCAST "linear_broadcast" BROADCAST, Linear [Read, Read, Read, Read, Write] libs &[WEIGHT, FINISH, ACTIVATION_LIB, EXP, GELU, STEP], overrides &[WEIGHT_OVERRIDE, THEN_OVERRIDE], consts &[];
    SUM_HEADS "sum_heads" ANY, SumHeads [Read, Read, Write] libs &[], overrides &[], consts &[];
    ATTENTION "attention" TILES, Attention [Read, Write] libs &[SCORE, EXP], overrides &[], consts &[("PARTS", 17)];
    ATTENTION_BROADCAST "attention_broadcast" BROADCAST, Attention [Read, Write] libs &[STEP, EXP], overrides &[], consts &[];
    ATTENTION_SCORES "attention_scores" ANY, Attention [Read, Write] libs &[SCORE], overrides &[], consts &[];
    ATTENTION_PATTERN "attention_pattern" TILES, Shape [Read, Write] libs &[REDUCE, EXP], overrides &[], consts &[];
    ATTENTION_PATTERN_BROADCAST "attention_pattern" + "_broadcast" BROADCAST, Shape [Read, Write] libs &[REDUCE_BROADCAST, EXP], overrides &[], consts &[];
    ATTENTION_MIX "attention_mix" ANY, AttentionMix [Read, Read, Write] libs &[], overrides &[], consts &[];
    ACTIVATION "activation" ANY, Elements [Read, Write] libs &[ACTIVATION_LIB, EXP, GELU], overrides &[("FUNCTION", 4)], consts &[];
    ADD "add" ANY, Elements [Read, Read, Write] libs &[], overrides &[], consts &[];
    UNEMBED "unembed" TILES, Unembed [Read, Read, Write] libs &[WEIGHT], overrides &[WEIGHT_OVERRIDE], consts TILE;
    UNEMBED_MATRICES "unembed_matrices" TILES, Unembed [Read, Read, Write] libs &[WEIGHT], overrides &[WEIGHT_OVERRIDE], consts LANES, matrices;
    UNEMBED_FEW "unembed_few" TILES, Unembed [Read, Read, Write] libs &[WEIGHT], overrides &[WEIGHT_OVERRIDE], consts &[];
    UNEMBED_BROADCAST "unembed_broadcast" BROADCAST, Unembed [Read, Read, Write] libs &[WEIGHT, STEP], overrides &[WEIGHT_OVERRIDE], consts &[];
    EDIT "edit" ANY, Edit [Read, Write] libs &[], overrides &[], consts &[];
    COPY_OUT "copy_out" ANY, CopyOut [Read, Write] libs &[], overrides &[], consts &[];
}

impl Family {
    /// Whether a kernel is among this family's.
    pub fn has(self, kernel: &Kernel) -> bool {
        kernel.family.is_none_or(|family| family == self)
    }
}

kernels! {
    /// Kernels that measure the adapter and belong to no operation.
    PROBES;
    PROBE_ARITHMETIC "probe_arithmetic" ANY, ProbeArithmetic [Write] libs &[], overrides &[], consts &[];
    PROBE_READING "probe_reading" ANY, ProbeReading [Read, Write] libs &[], overrides &[], consts &[];
}

impl Kernel {
    /// The module's text: the file first, so that line numbers stay true, then what it names, then generated constants.
    pub fn module(&self, consts: &[(&'static str, u32)]) -> String {
        let mut text = self.source.to_string();
        self.libs.iter().for_each(|lib| text.push_str(lib));
        consts.iter().for_each(|(name, value)| text.push_str(&format!("const {name}: u32 = {value}u;\n")));
        text
    }
}

/// The value of `WEIGHT` in `lib/weight.wgsl`.
pub fn weight_override(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

/// The value of `THEN` in `lib/epilogue.wgsl`.
pub(crate) fn epilogue_override<T>(epilogue: &Epilogue<'_, T>) -> u32 {
    match epilogue {
        Epilogue::None => 0,
        Epilogue::Add(_) => 1,
        Epilogue::Activation(f) => 2 + function_override(*f),
    }
}

/// The number of a function in `lib/activation.wgsl`.
pub fn function_override(f: Activation) -> u32 {
    match f {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
        Activation::QuickGelu => 4,
    }
}
