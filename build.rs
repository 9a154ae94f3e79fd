//! Generates the Rust side of every kernel's interface from WGSL: a struct for its `Params`, and the access mode of each
//! storage binding. They stand in the kernel's file, or in the file of `shaders/interfaces` that it names. Owns a reader of
//! the one form in which our shaders declare them; it refuses any other form. `tests/shaders.rs` compares its results with
//! those of naga.
//! Read next: `src/device/gpu/kernels.rs`, which includes the generated code.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// A field of a struct: its name, its WGSL type (`u32` or `f32`), and the comment after it.
type Field = (String, String, String);

struct Shader {
    stem: String,
    /// The file of `shaders/interfaces` that has its `Params`, if a line `// Interface: ` names one.
    interface: Option<String>,
    params: Vec<Field>,
    /// One entry per storage binding, from binding 1 on. True if the kernel writes it.
    writes: Vec<bool>,
}

/// A kernel's file names its interface in a line of this form.
const INTERFACE: &str = "// Interface: ";

fn main() {
    println!("cargo::rerun-if-changed=shaders");
    let shaders = Path::new("shaders");
    let mut out = String::new();
    let mut bindings = String::new();
    for path in files(shaders) {
        let shader = read(&path, &mut bindings);
        write_file(&mut out, &shader);
        if shader.interface.is_none() {
            write_struct(&mut out, &camel(&shader.stem), &path, &shader.params);
        }
    }
    for path in files(&shaders.join("interfaces")) {
        write_struct(&mut out, &camel(&stem(&path)), &path, &fields(&text_of(&path), "Params", &path));
    }
    for path in files(&shaders.join("lib")) {
        let text = text_of(&path);
        let names = text.lines().filter_map(|line| line.strip_prefix("struct ")?.strip_suffix(" {"));
        // The host writes those that are elements of a binding.
        for name in names.filter(|name| bindings.contains(&format!("array<{name}>"))) {
            write_struct(&mut out, name, &path, &fields(&text, name, &path));
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

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a kernel's file and that of its interface. Appends the lines of its bindings to `bindings`.
fn read(path: &Path, bindings: &mut String) -> Shader {
    let file = path.display();
    let mut text = text_of(path);
    let interface = text.lines().find_map(|line| line.strip_prefix(INTERFACE)).map(String::from);
    if let Some(interface) = &interface {
        text += &text_of(&Path::new("shaders").join(interface));
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| line.starts_with("@group(0)")).collect();
    lines.sort();
    let mut writes = Vec::new();
    for (i, line) in lines.into_iter().enumerate() {
        let kind = if i == 0 { "uniform" } else { "storage, " };
        let expected = format!("@group(0) @binding({i}) var<{kind}");
        let rest = line.strip_prefix(&expected).unwrap_or_else(|| panic!("{file}: {line:?} is not {expected:?}"));
        writes.extend(match rest.split('>').next() {
            _ if i == 0 => None,
            Some("read") => Some(false),
            Some("read_write") => Some(true),
            access => panic!("{file}: a binding's access is read or read_write, not {access:?}"),
        });
        *bindings += rest;
    }
    Shader { stem: stem(path), interface, params: fields(&text, "Params", path), writes }
}

/// The fields of a struct. Each field must have a line of its own: `name: u32, // comment`.
fn fields(text: &str, name: &str, path: &Path) -> Vec<Field> {
    let file = path.display();
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

/// Turns `linear_join` into `LinearJoin`.
fn camel(stem: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    stem.split('_').map(word).collect()
}

fn write_struct(out: &mut String, name: &str, path: &Path, fields: &[Field]) {
    let mut text = format!("/// The struct of `{}` with these fields.\n", path.display());
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
    let Shader { stem, interface, params, writes } = shader;
    let access: String = writes.iter().map(|w| if *w { "Access::Write, " } else { "Access::Read, " }).collect();
    let fields: String = params.iter().map(|(field, kind, _)| format!("({field:?}, {}), ", kind == "f32")).collect();
    // The folder is found when the crate is compiled: cargo may use this output for a copy of the crate in another folder.
    let include =
        |file: &str| format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {:?}))", format!("/shaders/{file}"));
    let (own, shared) = (include(&format!("{stem}.wgsl")), interface.as_deref().map_or("\"\"".into(), include));
    let konst = stem.to_uppercase();
    let text = format!(
        "const FILE_{konst}: File = File {{\n    stem: {stem:?},\n    text: {own},\n    interface: {shared},\n    bindings: &[{access}],\n    params: &[{fields}],\n}};\n\n"
    );
    out.push_str(&text);
}
