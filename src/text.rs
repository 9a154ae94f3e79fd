//! What several modules need of text: bytes in hexadecimal, the names of the values of an enum, and which names look most like
//! a given one, for messages about unknown names. Owns the measure of likeness.

/// Bytes in hexadecimal, two lower-case digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Implements the names of an enum's values: the list `ALL`, the method `name`, and [`std::str::FromStr`], whose error lists all
/// names.
macro_rules! named {
    ($type:ident: $($name:literal $value:ident),*) => {
        impl $type {
            /// Every value, by name.
            pub const ALL: [(&'static str, $type); [$($name),*].len()] = [$(($name, $type::$value)),*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $($type::$value => $name),* }
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(written: &str) -> Result<$type, String> {
                let found = $type::ALL.iter().find(|(name, _)| *name == written).map(|(_, value)| *value);
                found.ok_or_else(|| format!("{written:?} is none of {}", [$($name),*].join(", ")))
            }
        }
    };
}
pub(crate) use named;

/// How much two names look alike, from 0 (not at all) to 1 (equal), whatever their case.
pub(crate) fn likeness(wanted: &str, name: &str) -> f64 {
    // The cost grows with the length of both texts, and no name is half as long as this limit.
    const ENOUGH: usize = 128;
    let wanted: String = wanted.chars().take(ENOUGH).collect();
    strsim::normalized_damerau_levenshtein(&wanted.to_lowercase(), &name.to_lowercase())
}

/// Names with their scores, the highest score first. Among equals the first one given stays first.
pub(crate) fn ranked<N>(scored: impl IntoIterator<Item = (f64, N)>) -> Vec<(f64, N)> {
    let mut ranked: Vec<(f64, N)> = scored.into_iter().collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked
}

/// Names with their likeness to `wanted`, the most alike first.
#[cfg(feature = "cli")]
pub(crate) fn nearest<N: AsRef<str>>(wanted: &str, names: impl IntoIterator<Item = N>) -> Vec<(f64, N)> {
    ranked(names.into_iter().map(|name| (likeness(wanted, name.as_ref()), name)))
}
