//! What a file is by its first bytes, whatever its name says. Owns the kinds that people mistake for checkpoints, and what to do
//! with each.

use std::fmt;

/// What a file is by its first bytes, where they do not fit its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    LfsPointer,
    Html,
    Gguf,
    Hdf5,
    Zip,
    Pickle,
}

impl Kind {
    /// As many bytes of a file's beginning as show its kind.
    pub(crate) const BYTES: u64 = 512;

    /// `None` for bytes that are none of these.
    pub(crate) fn of(bytes: &[u8]) -> Option<Kind> {
        const STARTS: [(&[u8], Kind); 6] = [
            (b"version https://git-lfs", Kind::LfsPointer),
            (b"GGUF", Kind::Gguf),
            (b"\x89HDF\r\n", Kind::Hdf5),
            (b"PK\x03\x04", Kind::Zip),
            (b"\x80\x02", Kind::Pickle),
            (b"\x80\x04", Kind::Pickle),
        ];
        if let Some((_, kind)) = STARTS.iter().find(|(start, _)| bytes.starts_with(start)) {
            return Some(*kind);
        }
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
        let starts =
            |word: &str| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
        (starts("<!doctype html") || starts("<html")).then_some(Kind::Html)
    }
}

impl fmt::Display for Kind {
    /// What it is and what to do, to follow "it is".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::LfsPointer => {
                "a git-lfs pointer: the file that it stands for was not fetched; run `git lfs pull` in its folder"
            }
            Kind::Html => {
                "an HTML page, such as a log-in page or the hub's page about the file; fetch the file itself (on the hub, the \
                 address with /resolve/ in it)"
            }
            Kind::Gguf => "a GGUF file, which actscope does not read; give the checkpoint that it was made of",
            Kind::Hdf5 => "an HDF5 file, as TensorFlow writes them, which actscope does not read; save it as safetensors",
            Kind::Zip => {
                "a zip archive, as torch.save writes pickles, which can run code, so actscope does not read it; save the model \
                 with save_pretrained, which writes safetensors"
            }
            Kind::Pickle => {
                "a pickle, which can run code, so actscope does not read it; save the model with save_pretrained, which writes \
                 safetensors"
            }
        })
    }
}
