//! Generates the Rust side of every kernel's interface from its WGSL file: a struct for its `Params`, and the access
//! mode of each storage binding. Owns a reader of the one form in which our shaders declare them; it refuses any other
//! form. `tests/shaders.rs` compares its results with those of naga.
//! Read next: `src/device/gpu/kernels.rs`, which includes the generated code.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A field of a struct: its name, its WGSL type (`u32` or `f32`), and the comment after it.
type Field = (String, String, String);

struct Shader {
    stem: String,
    params: Vec<Field>,
    /// One entry per storage binding, from binding 1 on. True if the kernel writes it.
    writes: Vec<bool>,
}

fn main() {
    println!("cargo::rerun-if-changed=shaders");
    let shaders = Path::new("shaders");
    let mut out = String::new();
    let mut seen: Vec<Shader> = Vec::new();
    for path in files(shaders) {
        let shader = read(&path);
        write_file(&mut out, &shader);
        // `linear_few.wgsl` has the same parameters as `linear.wgsl`, comments included, so both share one type.
        let same = seen.iter().find(|s| s.params == shader.params && shader.stem.starts_with(&format!("{}_", s.stem)));
        match same {
            Some(first) => alias(&mut out, &shader.stem, &first.stem),
            None => {
                write_struct(&mut out, &camel(&shader.stem), &format!("shaders/{}.wgsl", shader.stem), &shader.params)
            }
        }
        seen.push(shader);
    }
    for path in files(&shaders.join("lib")) {
        let text = fs::read_to_string(&path).expect("a shader is readable");
        for name in text.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {")) {
            let file = format!("shaders/lib/{}.wgsl", stem(&path));
            write_struct(&mut out, name, &file, &fields(&text, name, &file));
        }
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(folder.join("kernels.rs"), out).expect("OUT_DIR is writable");
}

/// The WGSL files of a folder, sorted by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry of a folder").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "wgsl"));
    paths.sort();
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file has a name").to_string_lossy().into_owned()
}

fn read(path: &Path) -> Shader {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{file}: {e}"));
    let mut writes = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("@group(0)")) {
        let expected = match writes.len() {
            0 if line.contains("var<uniform>") => continue,
            n => format!("@group(0) @binding({}) var<storage, ", n + 1),
        };
        let rest = line.strip_prefix(&expected).unwrap_or_else(|| panic!("{file}: {line:?} is not {expected:?}"));
        writes.push(match rest.split('>').next() {
            Some("read") => false,
            Some("read_write") => true,
            access => panic!("{file}: a binding's access is read or read_write, not {access:?}"),
        });
    }
    Shader { stem: stem(path), params: fields(&text, "Params", &file), writes }
}

/// The fields of a struct. Each field must have a line of its own: `name: u32, // comment`.
fn fields(text: &str, name: &str, file: &str) -> Vec<Field> {
    let begin = format!("struct {name} {{");
    let lines = text.lines().skip_while(|line| *line != begin).skip(1).take_while(|line| *line != "}");
    let field = |line: &str| {
        let (code, comment) = line.split_once("//").unwrap_or((line, ""));
        let (name, kind) = code.trim().strip_suffix(',')?.split_once(": ")?;
        matches!(kind, "u32" | "f32").then(|| (name.to_string(), kind.to_string(), comment.trim().to_string()))
    };
    let fields: Vec<Field> = lines
        .map(|l| field(l).unwrap_or_else(|| panic!("{file}: {l:?} is not `name: u32,` or `name: f32,`")))
        .collect();
    assert!(!fields.is_empty(), "{file} has no `{begin}`");
    fields
}

/// Turns `linear_few` into `LinearFew`.
fn camel(stem: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    stem.split('_').map(word).collect()
}

fn alias(out: &mut String, stem: &str, first: &str) {
    let (name, first) = (camel(stem), camel(first));
    writeln!(out, "/// Parameters of `shaders/{stem}.wgsl`.\npub type {name} = {first};\n")
        .expect("a String takes all");
}

fn write_struct(out: &mut String, name: &str, file: &str, fields: &[Field]) {
    let mut text = format!("/// `{name}` of `{file}`.\n");
    if !file.starts_with("shaders/lib/") {
        text = format!("/// Parameters of `{file}`.\n");
    }
    text += "#[repr(C)]\n#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]\n";
    text += &format!("pub struct {name} {{\n");
    for (field, kind, comment) in fields {
        let doc = if comment.is_empty() { format!("`{field}`.") } else { comment.clone() };
        text += &format!("    #[doc = {doc:?}]\n    pub {field}: {kind},\n");
    }
    let all: String = fields.iter().map(|(field, kind, _)| format!("({field:?}, {}), ", kind == "f32")).collect();
    text += &format!("}}\nimpl Params for {name} {{\n    const FIELDS: &'static [Field] = &[{all}];\n}}\n\n");
    out.push_str(&text);
}

/// Writes the constant `FILE_...`, which the table of kernels uses.
fn write_file(out: &mut String, shader: &Shader) {
    let Shader { stem, params, writes } = shader;
    let access: String = writes.iter().map(|w| if *w { "Access::Write, " } else { "Access::Read, " }).collect();
    let fields: String = params.iter().map(|(field, kind, _)| format!("({field:?}, {}), ", kind == "f32")).collect();
    let path = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it") + &format!("/shaders/{stem}.wgsl");
    let konst = stem.to_uppercase();
    let text = format!(
        "const FILE_{konst}: File = File {{\n    stem: {stem:?},\n    text: include_str!({path:?}),\n    bindings: &[{access}],\n    params: &[{fields}],\n}};\n\n"
    );
    out.push_str(&text);
}
