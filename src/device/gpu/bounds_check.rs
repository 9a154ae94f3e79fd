//! Detects kernels that index outside of their bindings or their workgroup memory. Only in builds with the feature
//! `mutants`: releases have no such checks, so a test must show that they are not needed. Owns the instrumented text of
//! a kernel, in which every index goes through a function that records indices that are too large, and the buffer of
//! these records.
//! Read next: `tests/bounds.rs`, the test.

use super::Gpu;
use super::kernels::{self, Family, Kernel};
use crate::device::{Device, DeviceError};
use std::cell::RefCell;

thread_local! {
    /// One word per kernel, with one bit per binding or array that was indexed outside.
    static NOTES: RefCell<Option<wgpu::Buffer>> = const { RefCell::new(None) };
}

/// The buffer of records, while this thread checks the kernels of a device.
pub(super) fn notes() -> Option<wgpu::Buffer> {
    NOTES.with_borrow(Clone::clone)
}

impl Gpu {
    /// From now on the kernels that this thread compiles record indices that are too large. The thread must compile for this
    /// device only. Ends the check of another device.
    pub fn start_bounds_check(&self) {
        let notes = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("notes"),
            size: 4 * kernels::ALL.len() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        NOTES.set(Some(notes));
    }

    /// Ends the check. Returns every kernel whose index was too large, with the names of the bindings and arrays.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] if the device failed.
    pub async fn finish_bounds_check(&self) -> Result<Vec<(&'static str, Vec<String>)>, DeviceError> {
        let notes = NOTES.take().expect("`start_bounds_check` was called");
        self.submit();
        let read = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("notes to read"),
            size: notes.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&notes, 0, &read, 0, notes.size());
        let index = self.queue.submit([encoder.finish()]);
        read.map_async(wgpu::MapMode::Read, .., |_| {});
        let waited = super::poll::wait(&self.device, index);
        self.outcome(waited)?;
        let view = self.outcome(read.get_mapped_range(..).map_err(|e| e.to_string()))?;
        let words: &[u32] = bytemuck::cast_slice(&view);
        let left = |(kernel, bits): (&&'static Kernel, &u32)| {
            let arrays = arrays(kernel.module(&[]).as_str());
            let names = arrays.into_iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, array)| array.name);
            (kernel.name, names.collect())
        };
        Ok(kernels::ALL.iter().zip(words).filter(|(_, bits)| **bits != 0).map(left).collect())
    }
}

/// A binding or an array in workgroup memory.
struct Array {
    name: String,
    /// The WGSL expression of its length.
    len: String,
}

/// The bindings and workgroup arrays that a module declares.
fn arrays(text: &str) -> Vec<Array> {
    let array = |line: &str| {
        let declaration = code(line).trim_end().strip_suffix(';')?;
        if let Some((_, rest)) = declaration.split_once("var<storage, ") {
            let (name, _) = rest.split_once("> ")?.1.split_once(": array<")?;
            return Some(Array { name: name.into(), len: format!("arrayLength(&{name})") });
        }
        let (name, kind) = declaration.strip_prefix("var<workgroup> ")?.split_once(": array<")?;
        let (_, len) = kind.strip_suffix('>')?.rsplit_once(", ")?;
        Some(Array { name: name.into(), len: len.into() })
    };
    text.lines().filter_map(array).collect()
}

fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The text of a kernel with every index checked, and one more binding for the records.
pub(super) fn instrumented(kernel: &Kernel, text: &str) -> String {
    let arrays = arrays(text);
    let place = kernels::ALL.iter().position(|k| k.name == kernel.name).expect("a kernel of an operation");
    // A subgroup's broadcast takes a constant, so these kernels need their loops written out. Others compile faster with loops.
    let unrolled = kernel.family == Some(Family::Broadcast);
    let with_checks = |line: &str| {
        let marker = if unrolled { line[code(line).len()..].trim_start() } else { "" };
        with_checked_indices(code(line), &arrays) + marker + "\n"
    };
    let mut out: String = text.lines().map(with_checks).collect();
    let binding = 1 + kernel.bindings.len();
    out += &format!(
        "@group(0) @binding({binding}) var<storage, read_write> notes: array<atomic<u32>, {}>;\n",
        kernels::ALL.len()
    );
    for (i, Array { name, len }) in arrays.iter().enumerate() {
        let note = format!("atomicOr(&notes[{place}], {}u);", 1u32 << i);
        out += &format!("fn inside_{name}(i: u32) -> u32 {{ if i >= {len} {{ {note} }} return i; }}\n");
    }
    out
}

/// Replaces `x[i]` by `x[inside_x(i)]` for each of the arrays, also within an index.
fn with_checked_indices(line: &str, arrays: &[Array]) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(open) = rest.find('[') {
        let before = &rest[..open];
        let word = before.len() - before.chars().rev().take_while(|c| c.is_alphanumeric() || *c == '_').count();
        let mut depth = 0;
        let close = rest[open..].find(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            depth == 0
        });
        let close = open + close.expect("an index ends on its line");
        let index = with_checked_indices(&rest[open + 1..close], arrays);
        match arrays.iter().find(|array| array.name == before[word..]) {
            Some(Array { name, .. }) => out += &format!("{before}[inside_{name}({index})]"),
            None => out += &format!("{before}[{index}]"),
        }
        rest = &rest[close + 1..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_looked_at() {
        let arrays = arrays(
            "@group(0) @binding(1) var<storage, read> x: array<f32>; // x [n]\nvar<workgroup> tile: array<vec4<f32>, N * 4u>;\n",
        );
        assert_eq!(arrays[1].len, "N * 4u");
        let seen = with_checked_indices("    max_x[1] = x[i + u32(tile[2u * k].x)] + tile[0][c];", &arrays);
        assert_eq!(seen, "    max_x[1] = x[inside_x(i + u32(tile[inside_tile(2u * k)].x))] + tile[inside_tile(0)][c];");
    }
}
