//! Named arrays of any shape: reads .npy, .npz and .safetensors files from any program, and writes arrays that are
//! complete in memory (sweeps, weights). Read next: `store.rs`, for files that a run fills.
//!
//! numpy's formats are parsed here by hand, because the crate for them depends on a zip library with four compressors
//! and a parser of Python. Sources: numpy/lib/format.py; PKWARE's APPNOTE.TXT 6.3.10, 4.3 and 4.5.3.

use super::npz::Npz;
use super::safetensors::Header;
use crate::hooks::site::Site;
use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};
use std::io::{Read, Write};
use std::path::Path;

/// Reads one array as f32. Without a name, it is the array with the site's name, or else the only floating-point array.
///
/// # Errors
/// A sentence that names the file, when it cannot be read or the array is ambiguous.
pub fn read(path: &Path, name: Option<&str>, site: Option<Site>) -> Result<ArrayD<f32>, String> {
    let fail = |e: String| format!("cannot read {}: {e}", path.display());
    let bytes = bytes_of(path)?;
    let Some(arrays) = Arrays::of(path, &bytes).map_err(fail)? else {
        if let Some(name) = name {
            return Err(format!("{} is one array without a name; leave #{name} out", path.display()));
        }
        return npy(&bytes).map_err(fail);
    };
    // With a name, unpack only that array; without one, read every header.
    let floats = if name.is_some() { Vec::new() } else { arrays.float_names() };
    let name = pick(path, name, site, &arrays.names(), &floats)?;
    arrays.decode(&name).map_err(fail)
}

/// Reads every floating-point array with its name, sorted by name. A .npy file has one array, whose name is empty.
///
/// # Errors
/// As [`read`].
pub fn read_all(path: &Path) -> Result<Vec<(String, ArrayD<f32>)>, String> {
    let fail = |e: String| format!("cannot read {}: {e}", path.display());
    let bytes = bytes_of(path)?;
    let Some(arrays) = Arrays::of(path, &bytes).map_err(fail)? else {
        return Ok(vec![(String::new(), npy(&bytes).map_err(fail)?)]);
    };
    let mut names = arrays.float_names();
    names.sort();
    let read = |name: String| Ok((name.clone(), arrays.decode(&name).map_err(fail)?));
    names.into_iter().map(read).collect()
}

/// The bytes of a file that may have arrays.
fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    if !matches!(super::extension(path).as_str(), "npy" | "npz" | "safetensors") {
        return Err(format!("{} cannot be read: its name must end in .npy, .npz or .safetensors", path.display()));
    }
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// The named arrays of a file whose bytes are in memory.
enum Arrays<'a> {
    Npz { bytes: &'a [u8], entries: Vec<Entry> },
    Safetensors(SafeTensors<'a>),
}

impl<'a> Arrays<'a> {
    /// The arrays of a .npz or .safetensors file; `None` for .npy, which is one array without a name.
    fn of(path: &Path, bytes: &'a [u8]) -> Result<Option<Arrays<'a>>, String> {
        match super::extension(path).as_str() {
            "npz" => {
                let entries = zip_entries(bytes).ok_or("it is not a zip archive as numpy writes it")?;
                Ok(Some(Arrays::Npz { bytes, entries }))
            }
            "safetensors" => {
                SafeTensors::deserialize(bytes).map(Arrays::Safetensors).map(Some).map_err(|e| e.to_string())
            }
            _ => Ok(None),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Arrays::Npz { entries, .. } => entries.iter().map(|entry| entry.name.clone()).collect(),
            Arrays::Safetensors(file) => {
                let mut names: Vec<String> = file.names().into_iter().map(String::from).collect();
                names.sort();
                names
            }
        }
    }

    /// The names of the arrays of floating-point numbers.
    fn float_names(&self) -> Vec<String> {
        let is_float = |name: &String| match self {
            Arrays::Npz { bytes, entries } => {
                let entry = entries.iter().find(|entry| entry.name == *name);
                let kind = entry.and_then(|entry| Some(header(&entry.unpack(bytes, HEADER).ok()?)?.0));
                kind.is_some_and(|kind| kind.contains('f'))
            }
            Arrays::Safetensors(file) => {
                file.tensor(name).is_ok_and(|t| matches!(t.dtype(), Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16))
            }
        };
        self.names().into_iter().filter(is_float).collect()
    }

    fn decode(&self, name: &str) -> Result<ArrayD<f32>, String> {
        match self {
            Arrays::Npz { bytes, entries } => {
                let entry = entries.iter().find(|entry| entry.name == name).ok_or("it lacks the array")?;
                npy(&entry.unpack(bytes, usize::MAX)?)
            }
            Arrays::Safetensors(file) => {
                let tensor = file.tensor(name).map_err(|e| e.to_string())?;
                let data = tensor.data();
                let (pairs, fours, eights) =
                    (data.as_chunks::<2>().0, data.as_chunks::<4>().0, data.as_chunks::<8>().0);
                let values: Vec<f32> = match tensor.dtype() {
                    Dtype::F64 => eights.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
                    Dtype::F32 => fours.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                    Dtype::F16 => pairs.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
                    Dtype::BF16 => pairs.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
                    other => return Err(format!("{name} holds {other:?}, no floating-point numbers")),
                };
                ArrayD::from_shape_vec(IxDyn(tensor.shape()), values).map_err(|e| e.to_string())
            }
        }
    }
}

/// Which array is meant.
fn pick(
    path: &Path,
    name: Option<&str>,
    site: Option<Site>,
    names: &[String],
    floats: &[String],
) -> Result<String, String> {
    let listed = |names: &[String]| match names.len() {
        0 => "none".to_string(),
        n if n > 8 => format!("{}, ... ({n})", names[..8].join(", ")),
        _ => names.join(", "),
    };
    if let Some(name) = name {
        return match names.iter().find(|known| *known == name) {
            Some(name) => Ok(name.clone()),
            None => Err(format!("{} has no array {name:?}; it has {}", path.display(), listed(names))),
        };
    }
    let of_site = site.map(Site::name).filter(|name| floats.contains(name));
    match (of_site, floats) {
        (Some(name), _) => Ok(name),
        (None, [one]) => Ok(one.clone()),
        (None, []) => {
            Err(format!("{} has no array of floating-point numbers; it has {}", path.display(), listed(names)))
        }
        (None, several) => {
            let of = site.map_or(String::new(), |site| format!(" for {site}"));
            let all = listed(several);
            Err(format!("{} has several arrays and none is chosen{of}; name one after #: {all}", path.display()))
        }
    }
}

/// Parses the header of a .npy file: the data type, whether the array is column-major, the shape, and the offset of the
/// values.
fn header(bytes: &[u8]) -> Option<(String, bool, Vec<usize>, usize)> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (length, start) = match rest.first()? {
        1 => (usize::from(u16::from_le_bytes(rest.get(2..4)?.try_into().ok()?)), 10),
        _ => (u32::from_le_bytes(rest.get(2..6)?.try_into().ok()?) as usize, 12),
    };
    let literal = std::str::from_utf8(bytes.get(start..start + length)?).ok()?;
    let field = |name: &str| Some(literal.split_once(&format!("'{name}':"))?.1.trim_start());
    let kind = field("descr")?.strip_prefix('\'')?.split_once('\'')?.0.to_string();
    let fortran = field("fortran_order")?.starts_with("True");
    let axes = field("shape")?.strip_prefix('(')?.split_once(')')?.0;
    let axes = axes.split(',').map(str::trim).filter(|n| !n.is_empty());
    let shape = axes.map(|n| n.parse().ok()).collect::<Option<Vec<usize>>>()?;
    Some((kind, fortran, shape, start + length))
}

fn npy(bytes: &[u8]) -> Result<ArrayD<f32>, String> {
    let (kind, fortran, shape, start) = header(bytes).ok_or("it is not a .npy file")?;
    let data = &bytes[start..];
    let n = shape.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
    let (pairs, fours, eights) = (data.as_chunks::<2>().0, data.as_chunks::<4>().0, data.as_chunks::<8>().0);
    let mut values: Vec<f32> = match kind.as_str() {
        "<f8" => eights.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        "<f4" => fours.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        "<f2" => pairs.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        _ => return Err(format!("the type of its numbers is {kind:?}; only \"<f8\", \"<f4\" and \"<f2\" can be read")),
    };
    match n {
        Some(n) if n <= values.len() => values.truncate(n),
        _ => return Err(format!("its shape is {shape:?}, and it holds {} numbers", values.len())),
    }
    ArrayD::from_shape_vec(IxDyn(&shape).set_f(fortran), values).map_err(|e| e.to_string())
}

/// One file of a zip archive.
struct Entry {
    /// Its name, without `.npy`.
    name: String,
    /// 0 stored, 8 deflated.
    method: u64,
    packed: usize,
    unpacked: usize,
    /// Offset of its local header.
    start: usize,
}

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

/// The directory of a zip archive, zip64 or not.
fn zip_entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    const LONG: u64 = u32::MAX as u64;
    let end =
        (0..=bytes.len().checked_sub(22)?).rev().take(1 << 16).find(|at| bytes[*at..].starts_with(b"PK\x05\x06"))?;
    let (mut n, mut at) = (number(bytes, end + 10, 2)?, number(bytes, end + 16, 4)?);
    if at == LONG || n == u64::from(u16::MAX) {
        let wide = number(bytes, end.checked_sub(12)?, 8)? as usize;
        (n, at) = (number(bytes, wide.checked_add(32)?, 8)?, number(bytes, wide.checked_add(48)?, 8)?);
    }
    let mut at = at as usize;
    let mut entries = Vec::new();
    for _ in 0..n {
        let field = |from: usize, size: usize| number(bytes, at.checked_add(from)?, size);
        (field(0, 4)? == 0x0201_4b50).then_some(())?;
        let (name, extra, comment) = (field(28, 2)? as usize, field(30, 2)? as usize, field(32, 2)? as usize);
        let (mut packed, mut unpacked, mut start) = (field(20, 4)?, field(24, 4)?, field(42, 4)?);
        // The zip64 field has the values that do not fit the old fields, in this order.
        let (mut in_extra, end_of_extra) = (at + 46 + name, at + 46 + name + extra);
        while in_extra + 4 <= end_of_extra {
            let (id, size) = (number(bytes, in_extra, 2)?, number(bytes, in_extra + 2, 2)? as usize);
            let mut next = in_extra + 4;
            if id == 1 {
                for value in [&mut unpacked, &mut packed, &mut start] {
                    if *value == LONG {
                        *value = number(bytes, next, 8)?;
                        next += 8;
                    }
                }
            }
            in_extra += 4 + size;
        }
        let written = String::from_utf8_lossy(bytes.get(at + 46..at + 46 + name)?).into_owned();
        let name_of = written.strip_suffix(".npy").unwrap_or(&written).to_string();
        let (packed, unpacked, start) = (packed as usize, unpacked as usize, start as usize);
        entries.push(Entry { name: name_of, method: field(10, 2)?, packed, unpacked, start });
        at = end_of_extra + comment;
    }
    Some(entries)
}

/// The most bytes that are unpacked for the header of an array, which is never longer in numpy's version 1.
const HEADER: usize = 10 + u16::MAX as usize;

impl Entry {
    /// The file's first bytes, `most` at most.
    fn unpack(&self, archive: &[u8], most: usize) -> Result<Vec<u8>, String> {
        let place = || {
            let after = self.start.checked_add(30)?;
            let (name, extra) = (number(archive, after - 4, 2)?, number(archive, after - 2, 2)?);
            let start = after + name as usize + extra as usize;
            archive.get(start..start.checked_add(self.packed)?)
        };
        let packed = place().ok_or_else(|| format!("{} lies beyond the end of the file", self.name))?;
        match self.method {
            0 => Ok(packed[..packed.len().min(most)].to_vec()),
            8 => {
                let mut bytes = Vec::new();
                let mut inflated = flate2::read::DeflateDecoder::new(packed).take(self.unpacked.min(most) as u64);
                inflated.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
                Ok(bytes)
            }
            other => Err(format!(
                "{} is compressed by zip's method {other}; only methods 0 and 8, which numpy writes, can be read",
                self.name
            )),
        }
    }
}

/// The values of an array to be written.
#[derive(Debug)]
pub enum Numbers {
    /// As f64.
    F64(Vec<f64>),
    /// As f32.
    F32(Vec<f32>),
}

impl Numbers {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Numbers::F64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Numbers::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// An array with its name and shape.
#[derive(Debug)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub numbers: Numbers,
}

impl Named {
    /// An array of f64.
    pub fn f64(name: &str, shape: &[usize], values: Vec<f64>) -> Named {
        Named { name: name.into(), shape: shape.to_vec(), numbers: Numbers::F64(values) }
    }
}

/// Writes arrays as .npz, with metadata in `metadata_json` as in `extract`'s files.
///
/// # Errors
/// Those of `out`.
pub fn write_npz(arrays: &[Named], metadata: &Map<String, Value>, out: &mut impl Write) -> std::io::Result<()> {
    let entries = arrays.iter().map(|array| {
        let dtype = if matches!(array.numbers, Numbers::F64(_)) { "<f8" } else { "<f4" };
        (array.name.clone(), dtype, array.shape.as_slice(), array.numbers.bytes())
    });
    Npz::known(entries, metadata).write_to(out)
}

/// Writes arrays as .safetensors, with metadata as strings.
///
/// # Errors
/// Those of `out`.
pub fn write_safetensors(arrays: &[Named], metadata: &Map<String, Value>, out: &mut impl Write) -> std::io::Result<()> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    let metadata: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), text(v).into())).collect();
    let mut header = Header::new(metadata);
    let is_wide = |array: &&Named| matches!(array.numbers, Numbers::F64(_));
    let ordered = || arrays.iter().filter(is_wide).chain(arrays.iter().filter(|array| !is_wide(array)));
    for array in ordered() {
        let (dtype, size) = if is_wide(&array) { (Dtype::F64, 8) } else { (Dtype::F32, 4) };
        header.add(array.name.clone(), dtype, &array.shape, size * array.shape.iter().product::<usize>());
    }
    out.write_all(&header.bytes(0).map_err(std::io::Error::other)?)?;
    ordered().try_for_each(|array| out.write_all(&array.numbers.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn arrays() -> Vec<Named> {
        let named = |name: &str, shape: &[usize], numbers| Named { name: name.into(), shape: shape.into(), numbers };
        vec![
            named("values", &[2, 3], Numbers::F64(vec![1.0, 2.0, 3.0, 4.0, 5.0, -6.5])),
            named("blocks.0.hook_resid_pre", &[1, 2], Numbers::F32(vec![0.25, f32::NAN])),
        ]
    }

    /// Written arrays are read back, with each way to name an array.
    #[test]
    fn round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Map::from_iter([("edits".to_string(), json!([1, 2]))]);
        for name in ["a.npz", "a.safetensors"] {
            let path = folder.path().join(name);
            let mut file = std::fs::File::create(&path).unwrap();
            match name {
                "a.npz" => write_npz(&arrays(), &metadata, &mut file).unwrap(),
                _ => write_safetensors(&arrays(), &metadata, &mut file).unwrap(),
            }
            let values = read(&path, Some("values"), None).unwrap();
            assert_eq!((values.shape(), values[[1, 2]]), (&[2, 3][..], -6.5), "{name}");
            let of_site = read(&path, None, Some(Site::ResidPre(0))).unwrap();
            assert!(of_site[[0, 0]] == 0.25 && of_site[[0, 1]].is_nan(), "{name}");
            let message = read(&path, None, Some(Site::ResidPre(1))).unwrap_err();
            assert!(message.contains("after #") && message.contains("values"), "{message}");
            let message = read(&path, Some("value"), None).unwrap_err();
            assert!(message.contains("no array \"value\""), "{message}");
        }
    }

    #[test]
    fn npy_files_of_every_width_and_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let wide: Vec<u8> = [1.0f64, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let half: Vec<u8> =
            [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        for (dtype, fortran, bytes, first_row) in [
            ("<f8", "False", &wide, [1.0, 2.0]),
            ("<f8", "True", &wide, [1.0, 3.0]),
            ("<f2", "False", &half, [1.0, 2.0]),
        ] {
            let head = super::super::npz::npy_header(dtype, &[2, 2]);
            let head = String::from_utf8_lossy(&head[10..])
                .replace("'fortran_order': False", &format!("'fortran_order': {fortran}"));
            let length = (head.len() as u16).to_le_bytes();
            std::fs::write(&path, [&b"\x93NUMPY\x01\x00"[..], &length, head.as_bytes(), bytes].concat()).unwrap();
            let array = read(&path, None, None).unwrap();
            assert_eq!([array[[0, 0]], array[[0, 1]]], first_row, "{dtype} {fortran}");
        }
        std::fs::write(&path, b"no array").unwrap();
        assert!(read(&path, None, None).unwrap_err().contains("cannot read"));
        assert!(read(Path::new("a.txt"), None, None).unwrap_err().contains(".npy, .npz or .safetensors"));
    }
}
