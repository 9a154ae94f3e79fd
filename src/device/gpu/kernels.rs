//! The table of kernels: the file of each, its library files and its constants. A faster variant of a kernel is one
//! more entry. `build.rs` generates the bindings of a kernel and the Rust struct for its `Params` from its file, or from the
//! file of `shaders/interfaces` that its file names. Owns no GPU object; `encoder.rs` makes those.
//! Read next: a file of `shaders/`, such as `add.wgsl`, or `tests/shaders.rs`, which checks every entry.

use crate::device::{self, Dtype, Epilogue};

/// A field of a kernel's `Params`: its name, and true if it is an f32 (false for u32).
pub type Field = (&'static str, bool);

/// A struct with the same fields as a struct of a WGSL file.
pub trait Params: bytemuck::Pod {
    /// All fields in order. Each has four bytes.
    const FIELDS: &'static [Field];
}

/// What the build script reads from a kernel's file.
struct File {
    stem: &'static str,
    text: &'static str,
    /// The text of the interface that it names, or nothing.
    interface: &'static str,
    bindings: &'static [Access],
    params: &'static [Field],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What a kernel does with a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    Write,
}

/// A set of kernels that suits one kind of adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Invocations share loaded values through workgroup memory. Runs on every adapter.
    Tiles,
    /// A workgroup is one subgroup of 8 invocations, which share loaded values by broadcast. For software adapters.
    Broadcast,
}

/// A kernel. Binding 0 is its `Params`, and the storage bindings follow.
#[derive(Debug)]
pub struct Kernel {
    /// The name in messages and the label of its pipelines: the stem of its file, with a suffix if two kernels share
    /// the file.
    pub name: &'static str,
    /// The stem of the file, which is also the name of the entry point.
    pub file: &'static str,
    /// The family it belongs to; `None` where one kernel serves all.
    pub family: Option<Family>,
    /// True if it needs cooperative matrices of 8 x 8 in f32, which few adapters have. DirectX 12 has none.
    pub matrices: bool,
    /// The file's text.
    pub source: &'static str,
    /// The texts of its interface and its library files.
    pub libs: &'static [&'static str],
    /// Access of bindings 1, 2, ...
    pub bindings: &'static [Access],
    /// Fields of its `Params`.
    pub params: &'static [Field],
    /// Pipeline-overridable constants, each with its largest value.
    pub overrides: &'static [(&'static str, u32)],
    /// Constants that are generated, each with a large value.
    pub consts: &'static [(&'static str, u32)],
}

const WEIGHT: &str = include_str!("../../../shaders/lib/weight.wgsl");
const REDUCE: &str = include_str!("../../../shaders/lib/reduce.wgsl");
const ROW: &str = include_str!("../../../shaders/lib/row.wgsl");
const MOMENTS: &str = include_str!("../../../shaders/lib/moments.wgsl");
const TEXT_ROWS: &str = include_str!("../../../shaders/lib/text_rows.wgsl");
const UNALIGNED_VEC4: &str = include_str!("../../../shaders/lib/unaligned_vec4.wgsl");
const ATTENTION_TILE: &str = include_str!("../../../shaders/lib/attention_tile.wgsl");
const KV_VEC4: &str = include_str!("../../../shaders/lib/kv_vec4.wgsl");
const Q_VEC4: &str = include_str!("../../../shaders/lib/q_vec4.wgsl");
const SCORES: &str = include_str!("../../../shaders/lib/scores.wgsl");
const EXP: &str = include_str!("../../../shaders/lib/exp.wgsl");
const GELU: &str = include_str!("../../../shaders/lib/gelu.wgsl");
const ACTIVATION_LIB: &str = include_str!("../../../shaders/lib/activation.wgsl");
const ACTIVATION_DERIVATIVE: &str = include_str!("../../../shaders/lib/activation_derivative.wgsl");
const EPILOGUE: &str = include_str!("../../../shaders/lib/epilogue.wgsl");
const X_VEC4: &str = include_str!("../../../shaders/lib/x_vec4.wgsl");
const TILE_LIB: &str = include_str!("../../../shaders/lib/tile.wgsl");
const COOP_MATRICES: &str = include_str!("../../../shaders/lib/coop_matrices.wgsl");
const LINEAR_FEW_LIB: &str = include_str!("../../../shaders/lib/linear_few.wgsl");
const BROADCAST_STEP: &str = include_str!("../../../shaders/lib/broadcast_step.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("../../../shaders/lib/reduce_subgroup.wgsl");

/// The override of `lib/weight.wgsl`.
const WEIGHT_OVERRIDE: (&str, u32) = ("WEIGHT", 2);

/// The sizes of a tile, from `autotune.rs`.
const TILE: &[(&str, u32)] = &[("SIDE_X", 16), ("SIDE_Y", 16), ("ROWS", 8), ("FOURS", 2)];

/// The number of rows of a kernel for few rows, and the fours of elements that it loads at once.
const FEW: &[(&str, u32)] = &[("ROWS", 8), ("FOURS", 2)];

/// The subgroup size of a matrix kernel.
const SUBGROUP_SIZE: &[(&str, u32)] = &[("SUBGROUP_SIZE", 64)];

macro_rules! kernels {
    ($(#[$doc:meta])* $list:ident; $($konst:ident $file:ident $name:literal $family:ident $(matrices $matrices:ident)? [$($lib:ident),*] $(overrides $overrides:expr)? $(, consts $consts:expr)?;)*) => {
        $(
            #[doc = concat!("The kernel `", $name, "`.")]
            pub static $konst: Kernel = Kernel {
                name: $name,
                file: $file.stem,
                family: $family,
                matrices: false $(|| $matrices)?,
                source: $file.text,
                libs: &[$file.interface, $($lib),*],
                bindings: $file.bindings,
                params: $file.params,
                overrides: kernels!(@or_none $($overrides)?),
                consts: kernels!(@or_none $($consts)?),
            };
        )*

        $(#[$doc])*
        pub static $list: &[&Kernel] = &[$(&$konst),*];
    };
    (@or_none) => { &[] };
    (@or_none $list:expr) => { $list };
}

const ANY: Option<Family> = None;
const TILES: Option<Family> = Some(Family::Tiles);
const BROADCAST: Option<Family> = Some(Family::Broadcast);
const YES: bool = true;

/// The override of `lib/epilogue.wgsl`.
const EPILOGUE_OVERRIDE: (&str, u32) = ("EPILOGUE", 6);

/// Dimensions of a head.
const HEAD_DIM: &[(&str, u32)] = &[("HEAD_DIM", 257)];

/// The override of `lib/unaligned_vec4.wgsl`.
const ALIGNED_OVERRIDE: (&str, u32) = ("ALIGNED", 1);

/// The overrides of a product: the type of its weight, its epilogue, and whether its shape is aligned.
const PRODUCT: &[(&str, u32)] = &[WEIGHT_OVERRIDE, EPILOGUE_OVERRIDE, ALIGNED_OVERRIDE];

// The columns: name in Rust, file, name in messages, family, library files, then overrides and generated constants.
#[rustfmt::skip]
kernels! {
    /// All kernels of operations.
    ALL;
    EMBED FILE_EMBED "embed" ANY [WEIGHT] overrides &[WEIGHT_OVERRIDE];
    LAYER_NORM FILE_LAYER_NORM "layer_norm" TILES [ROW, REDUCE, MOMENTS];
    LAYER_NORM_BROADCAST FILE_LAYER_NORM "layer_norm_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP, MOMENTS];
    LAYER_NORM_SCALE FILE_LAYER_NORM_SCALE "layer_norm_scale" TILES [ROW, REDUCE, MOMENTS];
    LAYER_NORM_SCALE_BROADCAST FILE_LAYER_NORM_SCALE "layer_norm_scale_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP, MOMENTS];
    LAYER_NORM_NORMALIZE FILE_LAYER_NORM_NORMALIZE "layer_norm_normalize" TILES [ROW, REDUCE, MOMENTS];
    LAYER_NORM_NORMALIZE_BROADCAST FILE_LAYER_NORM_NORMALIZE "layer_norm_normalize_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP, MOMENTS];
    GAIN_BIAS FILE_GAIN_BIAS "gain_bias" ANY [];
    LINEAR FILE_LINEAR "linear" TILES [TILE_LIB, X_VEC4, UNALIGNED_VEC4, WEIGHT, EPILOGUE, ACTIVATION_LIB, EXP, GELU] overrides PRODUCT, consts TILE;
    LINEAR_MATRICES FILE_LINEAR_MATRICES "linear_matrices" TILES matrices YES [COOP_MATRICES, X_VEC4, UNALIGNED_VEC4, WEIGHT, EPILOGUE, ACTIVATION_LIB, EXP, GELU] overrides PRODUCT, consts SUBGROUP_SIZE;
    LINEAR_FEW FILE_LINEAR_FEW "linear_few" TILES [LINEAR_FEW_LIB, X_VEC4, UNALIGNED_VEC4, WEIGHT, EPILOGUE, ACTIVATION_LIB, EXP, GELU] overrides PRODUCT, consts FEW;
    LINEAR_FEW_NORM FILE_LINEAR_FEW_NORM "linear_few_norm" TILES [LINEAR_FEW_LIB, X_VEC4, UNALIGNED_VEC4, WEIGHT, EPILOGUE, ACTIVATION_LIB, EXP, GELU] overrides PRODUCT, consts FEW;
    LINEAR_JOIN FILE_LINEAR_JOIN "linear_join" TILES [EPILOGUE, ACTIVATION_LIB, EXP, GELU] overrides &[EPILOGUE_OVERRIDE];
    LINEAR_BROADCAST FILE_LINEAR_BROADCAST "linear_broadcast" BROADCAST [WEIGHT, EPILOGUE, ACTIVATION_LIB, EXP, GELU, BROADCAST_STEP] overrides &[WEIGHT_OVERRIDE, EPILOGUE_OVERRIDE];
    SUM_HEADS FILE_SUM_HEADS "sum_heads" ANY [];
    ATTENTION FILE_ATTENTION "attention" TILES [TEXT_ROWS, ATTENTION_TILE, SCORES, Q_VEC4, KV_VEC4, UNALIGNED_VEC4, EXP] overrides &[ALIGNED_OVERRIDE], consts HEAD_DIM;
    ATTENTION_JOIN FILE_ATTENTION_JOIN "attention_join" TILES [EXP];
    ATTENTION_FEW FILE_ATTENTION_FEW "attention_few" TILES [TEXT_ROWS, Q_VEC4, KV_VEC4, UNALIGNED_VEC4, EXP] overrides &[ALIGNED_OVERRIDE], consts HEAD_DIM;
    ATTENTION_BROADCAST FILE_ATTENTION_BROADCAST "attention_broadcast" BROADCAST [TEXT_ROWS, BROADCAST_STEP, EXP];
    ATTENTION_SCORES FILE_ATTENTION_SCORES "attention_scores" ANY [TEXT_ROWS, ATTENTION_TILE, SCORES, Q_VEC4, KV_VEC4, UNALIGNED_VEC4] overrides &[ALIGNED_OVERRIDE], consts HEAD_DIM;
    ATTENTION_PATTERN FILE_ATTENTION_PATTERN "attention_pattern" TILES [ROW, REDUCE, EXP];
    ATTENTION_PATTERN_BROADCAST FILE_ATTENTION_PATTERN "attention_pattern_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP, EXP];
    ATTENTION_MIX FILE_ATTENTION_MIX "attention_mix" ANY [TEXT_ROWS, ATTENTION_TILE, KV_VEC4, UNALIGNED_VEC4] overrides &[ALIGNED_OVERRIDE], consts HEAD_DIM;
    ACTIVATION FILE_ACTIVATION "activation" ANY [ACTIVATION_LIB, EXP, GELU] overrides &[("FUNCTION", 4)];
    ADD FILE_ADD "add" ANY [];
    UNEMBED FILE_UNEMBED "unembed" TILES [TILE_LIB, X_VEC4, UNALIGNED_VEC4, WEIGHT] overrides &[WEIGHT_OVERRIDE, ALIGNED_OVERRIDE], consts TILE;
    UNEMBED_MATRICES FILE_UNEMBED_MATRICES "unembed_matrices" TILES matrices YES [COOP_MATRICES, X_VEC4, UNALIGNED_VEC4, WEIGHT] overrides &[WEIGHT_OVERRIDE, ALIGNED_OVERRIDE], consts SUBGROUP_SIZE;
    UNEMBED_FEW FILE_UNEMBED_FEW "unembed_few" TILES [X_VEC4, UNALIGNED_VEC4, WEIGHT] overrides &[WEIGHT_OVERRIDE, ALIGNED_OVERRIDE], consts FEW;
    UNEMBED_BROADCAST FILE_UNEMBED_BROADCAST "unembed_broadcast" BROADCAST [WEIGHT, BROADCAST_STEP] overrides &[WEIGHT_OVERRIDE];
    ARGMAX FILE_ARGMAX "argmax" TILES [REDUCE, EXP];
    ARGMAX_BROADCAST FILE_ARGMAX "argmax_broadcast" BROADCAST [REDUCE_SUBGROUP, EXP];
    LAYER_NORM_GRADIENT FILE_LAYER_NORM_GRADIENT "layer_norm_gradient" TILES [ROW, REDUCE, MOMENTS];
    LAYER_NORM_GRADIENT_BROADCAST FILE_LAYER_NORM_GRADIENT "layer_norm_gradient_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP, MOMENTS];
    LAYER_NORM_SCALE_GRADIENT FILE_LAYER_NORM_SCALE_GRADIENT "layer_norm_scale_gradient" TILES [ROW, REDUCE, MOMENTS];
    LAYER_NORM_SCALE_GRADIENT_BROADCAST FILE_LAYER_NORM_SCALE_GRADIENT "layer_norm_scale_gradient_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP, MOMENTS];
    LAYER_NORM_NORMALIZE_SCALE_GRADIENT FILE_LAYER_NORM_NORMALIZE_SCALE_GRADIENT "layer_norm_normalize_scale_gradient" TILES [ROW, REDUCE];
    LAYER_NORM_NORMALIZE_SCALE_GRADIENT_BROADCAST FILE_LAYER_NORM_NORMALIZE_SCALE_GRADIENT "layer_norm_normalize_scale_gradient_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP];
    GAIN_BIAS_GRADIENT FILE_GAIN_BIAS_GRADIENT "gain_bias_gradient" ANY [];
    LINEAR_BY_HEAD_GRADIENT FILE_LINEAR_BY_HEAD_GRADIENT "linear_by_head_gradient" ANY [WEIGHT] overrides &[WEIGHT_OVERRIDE];
    SUM_HEADS_GRADIENT FILE_SUM_HEADS_GRADIENT "sum_heads_gradient" ANY [];
    ACTIVATION_GRADIENT FILE_ACTIVATION_GRADIENT "activation_gradient" ANY [ACTIVATION_DERIVATIVE, EXP, GELU] overrides &[("FUNCTION", 4)];
    ATTENTION_PATTERN_GRADIENT FILE_ATTENTION_PATTERN_GRADIENT "attention_pattern_gradient" TILES [ROW, REDUCE];
    ATTENTION_PATTERN_GRADIENT_BROADCAST FILE_ATTENTION_PATTERN_GRADIENT "attention_pattern_gradient_broadcast" BROADCAST [ROW, REDUCE_SUBGROUP];
    EDIT FILE_EDIT "edit" ANY [];
    COPY_WINDOW FILE_COPY_WINDOW "copy_window" ANY [];
    CACHE_APPEND FILE_CACHE_APPEND "cache_append" ANY [TEXT_ROWS];
}

#[rustfmt::skip]
kernels! {
    /// The kernels that measure the adapter. They belong to no operation.
    PROBES;
    PROBE_ARITHMETIC FILE_PROBE_ARITHMETIC "probe_arithmetic" ANY [];
    PROBE_READING FILE_PROBE_READING "probe_reading" ANY [];
}

impl Family {
    /// True if this family uses `kernel`.
    pub fn has(self, kernel: &Kernel) -> bool {
        kernel.family.is_none_or(|family| family == self)
    }
}

impl Kernel {
    /// The text of the module: the file, its interface, its library files, and the generated constants. The file comes
    /// first, so that the line numbers in messages are those of the file. WGSL lets a module use what is declared later.
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

/// The value of `EPILOGUE` in `lib/epilogue.wgsl`.
pub(crate) fn epilogue_override<T>(epilogue: &Epilogue<'_, T>) -> u32 {
    match epilogue {
        Epilogue::None => 0,
        Epilogue::Add(_) => 1,
        Epilogue::Activation(f) => 2 + function_override(*f),
    }
}

/// The value of `FUNCTION` in `activation.wgsl`, which is the number of the function in `lib/activation.wgsl`.
pub fn function_override(f: device::Activation) -> u32 {
    match f {
        device::Activation::GeluTanh => 0,
        device::Activation::GeluErf => 1,
        device::Activation::Relu => 2,
        device::Activation::Silu => 3,
        device::Activation::QuickGelu => 4,
    }
}
