//! `.npz`: one float32 array per hook under its full name, `input_ids` and `attention_mask` (int64 [batch, pos]), with
//! chosen positions also `positions`, and `metadata_json`, the UTF-8 bytes of a JSON object:
//! `json.loads(bytes(f["metadata_json"]))`. Owns the layout. Read next: `store.rs`, which fills it.
//!
//! The format is a zip archive of uncompressed .npy files. Libraries write an archive from front to back. A run records
//! every layer of one text before the next text, so here the entries are filled in parallel, and their checksums are
//! written at the end. Sources: PKWARE's APPNOTE.TXT 6.3.10, 4.3 and 4.5.3; numpy/lib/format.py, version 1.0. As in
//! numpy's files, every entry has zip64 fields, because the layout is fixed before it is known whether an entry exceeds
//! 4 GiB.

use super::Record;
use super::store::{Layout, Place, Store, bytes_of};
use crate::hooks::capture::ArrayKey;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One file in the archive.
#[derive(Debug)]
struct Entry {
    name: String,
    /// Offset of its local header.
    start: u64,
    /// Bytes of the .npy file: its header and the values.
    size: u64,
    /// Its .npy header, and its values if they are already known.
    known: Vec<u8>,
    /// The array whose values follow, if they are not known yet.
    array: Option<ArrayKey>,
}

/// An archive that is being filled.
#[derive(Debug)]
pub(super) struct Npz {
    entries: Vec<Entry>,
    /// Offset of the end of the last entry, where the central directory begins.
    end: u64,
    metadata_bytes: usize,
}

impl Npz {
    /// Bytes of the metadata.
    pub(super) fn metadata_bytes(&self) -> usize {
        self.metadata_bytes
    }

    /// The layout for arrays of these shapes, with metadata of at least this many bytes.
    pub(super) fn new(record: &Record<'_>, shapes: Vec<(ArrayKey, Vec<usize>)>, metadata_bytes: usize) -> Npz {
        let mut npz = Npz { entries: Vec::new(), end: 0, metadata_bytes: 0 };
        for (name, table) in record.tables() {
            npz.add(name.into(), "<i8", table.shape(), table.iter().flat_map(|n| n.to_le_bytes()).collect(), None);
        }
        let metadata: Map<String, Value> = record.metadata().into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        let mut metadata = Value::from(metadata).to_string().into_bytes();
        metadata.resize(metadata.len().max(metadata_bytes), b' ');
        npz.metadata_bytes = metadata.len();
        npz.add("metadata_json".into(), "|u1", &[metadata.len()], metadata, None);
        for (array, shape) in shapes {
            npz.add(array.name(), "<f4", &shape, Vec::new(), Some(array));
        }
        npz
    }

    /// An archive of arrays that are all known: name, dtype, shape and bytes.
    pub(super) fn known<'a>(
        arrays: impl Iterator<Item = (String, &'static str, &'a [usize], Vec<u8>)>,
        metadata: &Map<String, Value>,
    ) -> Npz {
        let mut npz = Npz { entries: Vec::new(), end: 0, metadata_bytes: 0 };
        let metadata = Value::from(metadata.clone()).to_string().into_bytes();
        npz.add("metadata_json".into(), "|u1", &[metadata.len()], metadata, None);
        arrays.for_each(|(name, dtype, shape, bytes)| npz.add(name, dtype, shape, bytes, None));
        npz
    }

    /// Writes an archive of [`Npz::known`] arrays.
    pub(super) fn write_to(&self, out: &mut impl std::io::Write) -> std::io::Result<()> {
        let mut sums = Vec::new();
        for entry in &self.entries {
            let sum = crc32fast::hash(&entry.known);
            out.write_all(&entry.local_header(sum))?;
            out.write_all(&entry.known)?;
            sums.push(sum);
        }
        out.write_all(&self.directory(&sums))
    }

    fn add(&mut self, name: String, dtype: &str, shape: &[usize], values: Vec<u8>, array: Option<ArrayKey>) {
        let name = name + ".npy";
        let known = [npy_header(dtype, shape), values].concat();
        let to_come = array.map_or(0, |_| bytes_of(shape));
        let entry = Entry { name, start: self.end, size: to_come.saturating_add(known.len() as u64), known, array };
        self.end = self.end.saturating_add(entry.local_header(0).len() as u64).saturating_add(entry.size);
        self.entries.push(entry);
    }

    pub(super) fn layout(&self, shapes: Vec<(ArrayKey, Vec<usize>)>) -> Layout {
        let (mut between, mut starts) = (Vec::new(), BTreeMap::new());
        for entry in &self.entries {
            let header = entry.local_header(crc32fast::hash(&entry.known));
            let values = entry.start + (header.len() + entry.known.len()) as u64;
            between.push((entry.start, [&header[..], &entry.known].concat()));
            starts.extend(entry.array.map(|array| (array, values)));
        }
        let place = |(array, shape)| (array, Place { start: starts[&array], shape });
        let places = shapes.into_iter().map(place).collect();
        let size = self.end.saturating_add(self.directory(&vec![0; self.entries.len()]).len() as u64);
        Layout { between, places, size }
    }

    /// Writes the checksums, and the central directory after the last entry.
    pub(super) fn finish(&self, store: &mut Store) -> std::io::Result<()> {
        let mut sums = Vec::new();
        for entry in &self.entries {
            let mut sum = crc32fast::Hasher::new();
            sum.update(&entry.known);
            if let Some(array) = entry.array
                && let Some(values) = store.checksum(array)?
            {
                sum.combine(&values);
            }
            let sum = sum.finalize();
            store.write_at(entry.start, &entry.local_header(sum))?;
            sums.push(sum);
        }
        store.write_at(self.end, &self.directory(&sums))
    }

    /// The central directory and the records that end an archive.
    fn directory(&self, sums: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.entries.iter().zip(sums).flat_map(|(e, sum)| e.directory_header(*sum)).collect();
        let (size, n, end) = (bytes.len() as u64, self.entries.len() as u64, self.end);
        // The zip64 record and its locator, then the old record, whose fields refer to zip64.
        put(
            &mut bytes,
            &[(0x0606_4b50, 4), (44, 8), (45, 2), (45, 2), (0, 4), (0, 4), (n, 8), (n, 8), (size, 8), (end, 8)],
        );
        put(&mut bytes, &[(0x0706_4b50, 4), (0, 4), (end.saturating_add(size), 8), (1, 4)]);
        let (short, long) = (u64::from(u16::MAX), u64::from(u32::MAX));
        put(&mut bytes, &[(0x0605_4b50, 4), (0, 2), (0, 2), (short, 2), (short, 2), (long, 4), (long, 4), (0, 2)]);
        bytes
    }
}

/// The value of an old field that refers to the zip64 field.
const ELSEWHERE: (u64, usize) = (u32::MAX as u64, 4);

/// 1 January 1980, the format's first day, as numpy writes: the same run gives the same bytes.
const TIME_AND_DATE: [(u64, usize); 2] = [(0, 2), (0x21, 2)];

impl Entry {
    /// Version 4.5 (zip64), no flags, stored, time, checksum, sizes, length of the name.
    fn common(&self, sum: u32) -> [(u64, usize); 9] {
        let [time, date] = TIME_AND_DATE;
        let sum = (u64::from(sum), 4);
        [(45, 2), (0, 2), (0, 2), time, date, sum, ELSEWHERE, ELSEWHERE, (self.name.len() as u64, 2)]
    }

    fn local_header(&self, sum: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, &[(0x0403_4b50, 4)]);
        put(&mut bytes, &self.common(sum));
        put(&mut bytes, &[(20, 2)]);
        bytes.extend(self.name.as_bytes());
        put(&mut bytes, &[(1, 2), (16, 2), (self.size, 8), (self.size, 8)]);
        bytes
    }

    fn directory_header(&self, sum: u32) -> Vec<u8> {
        // Made on Unix; the owner may read and write the file.
        const MADE_BY: (u64, usize) = (3 << 8 | 45, 2);
        const PERMISSIONS: (u64, usize) = (0o100_600 << 16, 4);
        let mut bytes = Vec::new();
        put(&mut bytes, &[(0x0201_4b50, 4), MADE_BY]);
        put(&mut bytes, &self.common(sum));
        put(&mut bytes, &[(28, 2), (0, 2), (0, 2), (0, 2), PERMISSIONS, ELSEWHERE]);
        bytes.extend(self.name.as_bytes());
        put(&mut bytes, &[(1, 2), (24, 2), (self.size, 8), (self.size, 8), (self.start, 8)]);
        bytes
    }
}

/// Appends little-endian integers of the given sizes in bytes.
fn put(bytes: &mut Vec<u8>, numbers: &[(u64, usize)]) {
    numbers.iter().for_each(|(n, size)| bytes.extend(&n.to_le_bytes()[..*size]));
}

/// The head of a .npy file: magic, version 1.0, the length of what follows, a Python literal, padded so that values
/// begin at a multiple of 64.
pub(super) fn npy_header(dtype: &str, shape: &[usize]) -> Vec<u8> {
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if axes.len() == 1 { "," } else { "" };
    let literal = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({}{comma}), }}", axes.join(", "));
    let length = (10 + literal.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{literal:<width$}\n", width = length - 1).into_bytes());
    bytes
}
