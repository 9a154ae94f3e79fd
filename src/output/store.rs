//! A file of arrays whose offsets are fixed before the first value is known. Values are written to their place as they
//! arrive, so they are never all in memory. Owns the file and the checksums; the formats own the layout and the bytes
//! between the arrays. Read next: `npz.rs`.

use crate::hooks::capture::{ArrayKey, ArraySink, Arrays, RowSink, Sink, StepSink};
use crate::hooks::site::Site;
use ndarray::{ArrayD, ArrayViewD, Axis, CowArray, IxDyn};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

/// The offset and shape of one array.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// Byte of the file at which it begins.
    pub(super) start: u64,
    /// [batch, ...].
    pub(super) shape: Vec<usize>,
}

impl Place {
    /// Bytes of the whole array.
    pub(super) fn bytes(&self) -> u64 {
        bytes_of(&self.shape)
    }

    /// Bytes of one text's part.
    fn slab(&self) -> u64 {
        bytes_of(&self.shape[1..])
    }
}

/// Bytes of an f32 array. An absurd shape gives a size larger than any file.
pub fn bytes_of(shape: &[usize]) -> u64 {
    shape.iter().fold(size_of::<f32>() as u64, |bytes, n| bytes.saturating_mul(*n as u64))
}

/// The exact layout of a file, known before anything is computed.
pub(super) struct Layout {
    /// The bytes between the arrays, with their offsets.
    pub(super) between: Vec<(u64, Vec<u8>)>,
    /// The arrays.
    pub(super) places: BTreeMap<ArrayKey, Place>,
    /// Size of the whole file.
    pub(super) size: u64,
}

impl Layout {
    /// A layout of arrays one after the other, with nothing between them.
    pub(super) fn bare(shapes: Vec<(ArrayKey, Vec<usize>)>) -> Layout {
        let mut size = 0u64;
        let place = |(site, shape): (ArrayKey, Vec<usize>)| {
            let place = Place { start: size, shape };
            size = size.saturating_add(place.bytes());
            (site, place)
        };
        let places = shapes.into_iter().map(place).collect();
        Layout { between: Vec::new(), places, size }
    }
}

/// A file that is being filled.
#[derive(Debug)]
pub(super) struct Store {
    file: File,
    places: BTreeMap<ArrayKey, Place>,
    sums: Option<BTreeMap<ArrayKey, Running>>,
}

/// CRC-32 of the first `done` bytes of an array. If pieces arrive in order, the gaps between them are padding zeros.
#[derive(Debug, Default)]
struct Running {
    hash: crc32fast::Hasher,
    done: u64,
    /// Pieces arrived out of order, so the checksum is computed from the file at the end.
    out_of_order: bool,
}

impl Running {
    fn add(&mut self, at: u64, bytes: &[u8]) {
        self.out_of_order |= at < self.done;
        if self.out_of_order {
            return;
        }
        self.pad(at);
        self.hash.update(bytes);
        self.done = at + bytes.len() as u64;
    }

    fn pad(&mut self, to: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.done < to {
            let n = (to - self.done).min(ZEROS.len() as u64);
            self.hash.update(&ZEROS[..n as usize]);
            self.done += n;
        }
    }
}

impl Store {
    /// Makes the file at `path` at its full size, so that a full disk is an error before anything is computed. With
    /// `sums`, checksums are computed for [`Store::checksum`].
    pub(super) fn create(path: &Path, layout: &Layout, sums: bool) -> Result<Store> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        reserve(&file, layout.size)?;
        let sums = sums.then(|| layout.places.keys().map(|site| (*site, Running::default())).collect());
        let mut store = Store { file, places: layout.places.clone(), sums };
        layout.between.iter().try_for_each(|(at, bytes)| store.write_at(*at, bytes))?;
        Ok(store)
    }

    /// Writes bytes outside the arrays.
    pub(super) fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(bytes)
    }

    /// The checksum of a whole array; call it when all of its values are written.
    ///
    /// # Errors
    /// Those of reading the file.
    pub(super) fn checksum(&mut self, array: ArrayKey) -> Result<Option<crc32fast::Hasher>> {
        let sums = self.sums.as_mut().and_then(|sums| sums.get_mut(&array));
        let (Some(running), Some(place)) = (sums, self.places.get(&array)) else { return Ok(None) };
        if !running.out_of_order {
            running.pad(place.bytes());
            return Ok(Some(running.hash.clone()));
        }
        let (mut hash, mut buffer) = (crc32fast::Hasher::new(), vec![0; 1 << 20]);
        self.file.seek(SeekFrom::Start(place.start))?;
        let mut left = place.bytes();
        while left > 0 {
            let part = left.min(buffer.len() as u64) as usize;
            self.file.read_exact(&mut buffer[..part])?;
            hash.update(&buffer[..part]);
            left -= part as u64;
        }
        Ok(Some(hash))
    }

    /// Reads rows of one text from an array whose first axis is the position.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn rows(&self, array: ArrayKey, text: usize, rows: Range<usize>) -> Result<ArrayD<f32>> {
        let place = &self.places[&array];
        let mut shape = place.shape[1..].to_vec();
        let start = place.start + text as u64 * place.slab() + rows.start as u64 * bytes_of(&shape[1..]);
        shape[0] = rows.len();
        self.read(start, &shape)
    }

    fn read(&self, start: u64, shape: &[usize]) -> Result<ArrayD<f32>> {
        let mut values = ArrayD::zeros(IxDyn(shape));
        let slots = values.as_slice_mut().expect("a new array is dense");
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(bytemuck::cast_slice_mut(slots))?;
        Ok(values)
    }

    /// Writes `values` into the upper left corner of a part of `array`. The part has the shape `room` and begins `at` bytes into it.
    fn place(&mut self, array: ArrayKey, at: u64, values: ArrayViewD<'_, f32>, room: &[usize]) -> Result<()> {
        match values.as_slice() {
            Some(dense) if values.shape()[1..] == room[1..] => self.write(array, at, dense),
            // One write for all rows, including padding, because rows of patterns are short and many.
            _ if room.len() == 2 => {
                let mut padded = vec![0.0; values.len_of(Axis(0)) * room[1]];
                for (row, slots) in values.outer_iter().zip(padded.chunks_exact_mut(room[1])) {
                    row.iter().zip(slots).for_each(|(v, slot)| *slot = *v);
                }
                self.write(array, at, &padded)
            }
            _ => {
                let step = bytes_of(&room[1..]);
                let mut parts = (0..).zip(values.outer_iter());
                parts.try_for_each(|(i, part)| self.place(array, at + i * step, part, &room[1..]))
            }
        }
    }

    fn write(&mut self, array: ArrayKey, at: u64, values: &[f32]) -> Result<()> {
        // The formats are little-endian, and so is every target of actscope.
        const { assert!(cfg!(target_endian = "little")) };
        let bytes = bytemuck::cast_slice(values);
        if let Some(running) = self.sums.as_mut().and_then(|sums| sums.get_mut(&array)) {
            running.add(at, bytes);
        }
        let start = self.places[&array].start;
        self.write_at(start + at, bytes)
    }
}

impl ArraySink for Store {
    fn put_array(&mut self, array: ArrayKey, text: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        let Some(place) = self.places.get(&array) else { return Ok(()) };
        let (at, room) = (text as u64 * place.slab(), place.shape[1..].to_vec());
        self.place(array, at, values, &room)
    }
}

impl Sink for Store {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        self.put_array(site.into(), text, values)
    }
}

impl RowSink for Store {
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        let array = ArrayKey::from(site);
        let Some(place) = self.places.get(&array) else { return Ok(()) };
        let (at, room) = (text as u64 * place.slab(), place.shape[1..].to_vec());
        if site.pos_axis() == 0 {
            return self.place(array, at + first as u64 * bytes_of(&room[1..]), values, &room);
        }
        let (head, row) = (bytes_of(&room[1..]), bytes_of(&room[2..]));
        let mut heads = (0..).zip(values.outer_iter());
        heads.try_for_each(|(n, of_head)| self.place(array, at + n * head + first as u64 * row, of_head, &room[1..]))
    }
}

impl StepSink for Store {
    fn fill_keys(&mut self, site: Site, text: usize, row: usize, keys: Range<usize>, value: f32) -> Result<()> {
        let array = ArrayKey::from(site);
        let Some(place) = self.places.get(&array) else { return Ok(()) };
        let (start, shape) = (text as u64 * place.slab(), place.shape.clone());
        let values = vec![value; keys.len()];
        for head in 0..shape[1] {
            let at = bytes_of(&[head, shape[2], shape[3]]) + bytes_of(&[row, shape[3]]) + bytes_of(&[keys.start]);
            self.write(array, start + at, &values)?;
        }
        Ok(())
    }
}

impl Arrays for Store {
    fn shapes(&self) -> Vec<(ArrayKey, Vec<usize>)> {
        self.places.iter().map(|(array, place)| (*array, place.shape.clone())).collect()
    }

    fn of_text(&self, array: ArrayKey, text: usize) -> Result<CowArray<'_, f32, IxDyn>> {
        let place = &self.places[&array];
        Ok(self.read(place.start + text as u64 * place.slab(), &place.shape[1..])?.into())
    }
}

/// Makes a new file of `size` zero bytes, and allocates its disk space if the file system can.
fn reserve(file: &File, size: u64) -> Result<()> {
    #[cfg(unix)]
    if size > 0 {
        use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
        use rustix::io::Errno;
        // Check the free space first: some file systems fill the whole disk before they report an error.
        if let Ok(disk) = fstatvfs(file)
            && disk.f_bavail.saturating_mul(disk.f_frsize) < size
        {
            return Err(Errno::NOSPC.into());
        }
        let refused = |e: Errno| matches!(e, Errno::NOSPC | Errno::DQUOT | Errno::FBIG);
        // Other errors say nothing about the disk: some file systems cannot allocate, and then the writes will fail if
        // it is full.
        if let Err(e) = fallocate(file, FallocateFlags::empty(), 0, size)
            && refused(e)
        {
            return Err(e.into());
        }
    }
    if size > i64::MAX as u64 {
        return Err(ErrorKind::FileTooLarge.into());
    }
    file.set_len(size)
}
