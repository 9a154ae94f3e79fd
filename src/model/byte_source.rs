//! Where the bytes of a checkpoint's files come from. Owns the trait [`ByteSource`], by which ranges of a file are read when they
//! are needed, and its two sources on this machine: a file that is mapped into memory, and bytes that are in memory already.
//! Read next: `checkpoint.rs`, which reads headers and tensors through it.

use crate::device::{Blob, BoxFuture, Bytes, Shareable};
use memmap2::Mmap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A file of which ranges of bytes are read when they are needed. A mapped file is one. Another is a file that a browser's user
/// chose: there, a model's weights never are in memory all at once.
///
/// A checkpoint reads the header of a file when it is opened, and each tensor when a run first needs it.
///
/// ```
/// use actscope::device::{Blob, BoxFuture};
/// use actscope::model::byte_source::ByteSource;
/// use std::io::{Read, Seek, SeekFrom};
/// use std::ops::Range;
/// use std::sync::Arc;
///
/// /// A file that is read and not mapped.
/// struct Plain(std::path::PathBuf);
///
/// impl ByteSource for Plain {
///     fn size(&self) -> u64 {
///         std::fs::metadata(&self.0).map_or(0, |metadata| metadata.len())
///     }
///
///     fn read(&self, range: Range<u64>) -> BoxFuture<'_, std::io::Result<Blob>> {
///         Box::pin(async move {
///             let mut file = std::fs::File::open(&self.0)?;
///             file.seek(SeekFrom::Start(range.start))?;
///             let mut bytes = Vec::new();
///             file.take(range.end - range.start).read_to_end(&mut bytes)?;
///             Ok(bytes.into())
///         })
///     }
/// }
///
/// # fn main() -> Result<(), actscope::Error> {
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
/// let file = |name: &str| {
///     (name.to_string(), Arc::new(Plain(std::path::Path::new(folder).join(name))) as Arc<dyn ByteSource>)
/// };
/// let files = ["config.json", "model.safetensors", "tokenizer.json"].map(file);
/// let model = actscope::Model::from_sources("mine", files)?;
/// # assert!(model.tokenizer().is_ok());
/// # Ok(())
/// # }
/// ```
pub trait ByteSource: Shareable {
    /// The number of bytes.
    fn size(&self) -> u64;

    /// The bytes of a range within the file. Bytes that are in memory need no copy: a [`Blob`] may refer to them.
    ///
    /// # Errors
    /// If the bytes cannot be read. The model's error then names the file.
    fn read(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<Blob>>;

    /// False if the source can tell that another program has changed the file since it was opened.
    fn unchanged(&self) -> bool {
        true
    }
}

impl ByteSource for Arc<dyn Bytes> {
    fn size(&self) -> u64 {
        Bytes::size(&**self) as u64
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<Blob>> {
        // What is in memory has a size that fits `usize`.
        let blob = Blob::new(self.clone(), range.start as usize..range.end as usize);
        Box::pin(std::future::ready(Ok(blob)))
    }

    fn unchanged(&self) -> bool {
        Bytes::unchanged(&**self)
    }
}

/// The result of a future that never waits, as those of bytes in memory do not.
///
/// # Panics
/// If the future waits.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("bytes in memory are read at once"),
    }
}

/// A memory-mapped file. The map is read-only, but another process can change the file while it is mapped:
///
/// - If the file is *replaced* (a new one is renamed over it, as downloads do), the map still shows the old contents.
/// - If the file is *changed* in place, or truncated and filled again, `Checkpoint::check_unchanged` detects it at the
///   end of the run by size and modification time, and the run fails.
/// - If the file is *truncated*, reads beyond its new end fail. On Unix they raise the signal SIGBUS, which a `Result`
///   cannot carry. The binary catches it, prints the cause, deletes unfinished output files and exits with code 1. A
///   program that uses the library receives the signal.
///
/// A stronger guarantee needs a full copy in memory, which the map avoids.
pub(crate) struct Mapped {
    map: Mmap,
    file: std::fs::File,
    /// Size and modification time when the file was opened.
    opened: (u64, Option<std::time::SystemTime>),
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> io::Result<Mapped> {
        be_a_file(path)?;
        let file = std::fs::File::open(path)?;
        let opened = size_and_time(&file)?;
        // SAFETY: see the three cases above.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Mapped { map, file, opened })
    }
}

fn size_and_time(file: &std::fs::File) -> io::Result<(u64, Option<std::time::SystemTime>)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

impl Bytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn unchanged(&self) -> bool {
        size_and_time(&self.file).is_ok_and(|now| now == self.opened)
    }

    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        use memmap2::UncheckedAdvice;
        // SAFETY: the map is a read-only view of a file, so the system reads a dropped page from the file again. If the
        // call fails, the memory just stays in use.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}

/// Reads a regular file. Anything else is refused: opening a pipe may block for ever, and a device may have no end.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    be_a_file(path)?;
    std::fs::read(path)
}

/// # Errors
/// When `path` does not exist, or is not a regular file.
pub(crate) fn be_a_file(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path)?.is_file() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a folder, a pipe or a device, not a file"))
    }
}
