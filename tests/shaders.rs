//! What can be checked of the shaders without a driver: every kernel parses, keeps to WebGPU's default limits, agrees
//! with its Rust side, and translates to SPIR-V, MSL and HLSL. Native wgpu enforces little of this; browsers enforce
//! all of it.

#[path = "common/races.rs"]
mod races;

use actscope::device::gpu::autotune::{Tile, Tuning};
use actscope::device::gpu::kernels::{self, Access, Family, Kernel};
use actscope::device::gpu::products::Plan;
use actscope::device::gpu::unroll;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, ScalarKind, StorageAccess, TypeInner};
use std::collections::BTreeSet;
use std::path::Path;

/// Those of operations, and those that measure the adapter.
fn every_kernel() -> impl Iterator<Item = &'static Kernel> {
    kernels::ALL.iter().chain(kernels::PROBES).copied()
}

/// A kernel's module as the GPU device compiles it, with the largest constants it is used with, and its overrides
/// resolved.
fn module(kernel: &Kernel) -> (naga::Module, ModuleInfo) {
    compiled(kernel, kernel.overrides, kernel.consts)
}

/// Its modules with every value of its overrides, and every tile configuration.
fn modules(kernel: &Kernel) -> Vec<(naga::Module, ModuleInfo)> {
    let named = |values: Vec<u32>, of: &[(&'static str, u32)]| of.iter().map(|(name, _)| *name).zip(values).collect();
    // Subgroups of every size that an adapter with matrices may have: llvmpipe's, Apple's, and the largest.
    let with_matrices = [8, 32, 64].map(|subgroup_size| Tile::Matrices { subgroup_size });
    let cuts = Tile::PRESETS.into_iter().chain(with_matrices);
    let mine = cuts.filter(|tile| tile.kernels().iter().any(|one| one.name == kernel.name));
    let mut consts: Vec<Vec<(&str, u32)>> = mine.map(|tile| named(tile.settings(), kernel.consts)).collect();
    if consts.is_empty() {
        consts.push(kernel.consts.to_vec());
    }
    let all = kernel.overrides.iter().fold(vec![Vec::new()], |all, (_, largest)| {
        all.iter().flat_map(|values| (0..=*largest).map(move |value| [values.clone(), vec![value]].concat())).collect()
    });
    let overrides: Vec<Vec<(&str, u32)>> = all.into_iter().map(|values| named(values, kernel.overrides)).collect();
    consts.iter().flat_map(|consts| overrides.iter().map(|values| compiled(kernel, values, consts))).collect()
}

fn compiled(
    kernel: &Kernel,
    overrides: &[(&'static str, u32)],
    consts: &[(&'static str, u32)],
) -> (naga::Module, ModuleInfo) {
    let text = unroll::unrolled(&kernel.module(consts));
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&text, kernel.name)));
    let info = validate(kernel, &module);
    let constants = overrides.iter().map(|(name, value)| (name.to_string(), f64::from(*value))).collect();
    let entry = Some((naga::ShaderStage::Compute, kernel.file));
    let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, entry, &constants)
        .unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
    (module.into_owned(), info.into_owned())
}

/// No capability beyond WebGPU's own, except in kernels with subgroup operations or cooperative matrices. Those are
/// chosen only where the adapter supports them, and each has an alternative.
fn validate(kernel: &Kernel, module: &naga::Module) -> ModuleInfo {
    let capabilities = match kernel.family {
        Some(Family::Broadcast) => Capabilities::SUBGROUP,
        _ if kernel.matrices => Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP,
        _ => Capabilities::empty(),
    };
    Validator::new(ValidationFlags::all(), capabilities)
        .validate(module)
        .unwrap_or_else(|e| panic!("{}: {e:?}", kernel.name))
}

fn entry<'a>(kernel: &Kernel, module: &'a naga::Module) -> &'a naga::EntryPoint {
    assert_eq!(module.entry_points.len(), 1, "{}: one entry point", kernel.name);
    assert_eq!(module.entry_points[0].name, kernel.file, "the entry point has the file's name");
    &module.entry_points[0]
}

/// WebGPU's default limits: 256 invocations, 16,384 bytes of workgroup memory, 8 storage buffers.
#[test]
fn kernels_keep_to_webgpus_default_limits() {
    let all = every_kernel().flat_map(|kernel| modules(kernel).into_iter().map(move |module| (kernel, module)));
    for (kernel, (module, _)) in all {
        let size = entry(kernel, &module).workgroup_size;
        assert!(size.iter().product::<u32>() <= 256 && size[2] <= 64, "{}: {size:?} invocations", kernel.name);
        let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
        assert!(bytes <= 16_384, "{}: {bytes} bytes of workgroup memory", kernel.name);
        assert!(kernel.bindings.len() <= 8, "{}", kernel.name);
    }
}

/// Access modes, the order of bindings, and every field of `Params` match the table.
#[test]
fn kernels_agree_with_their_table() {
    for kernel in every_kernel() {
        let (module, _) = module(kernel);
        let mut seen = 0;
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            seen += 1;
            match variable.space {
                AddressSpace::Uniform => {
                    assert_eq!(binding.binding, 0, "{}", kernel.name);
                    let TypeInner::Struct { members, span } = &module.types[variable.ty].inner else {
                        panic!("{}", kernel.name)
                    };
                    assert_eq!(*span as usize, 4 * kernel.params.len(), "{}: size of Params", kernel.name);
                    for (i, (member, (name, is_float))) in members.iter().zip(kernel.params).enumerate() {
                        assert_eq!(member.name.as_deref(), Some(*name), "{}", kernel.name);
                        assert_eq!(member.offset as usize, 4 * i, "{}.{name}", kernel.name);
                        let kind = module.types[member.ty].inner.scalar_kind();
                        assert_eq!(
                            kind,
                            Some(if *is_float { ScalarKind::Float } else { ScalarKind::Uint }),
                            "{}.{name}",
                            kernel.name
                        );
                    }
                }
                AddressSpace::Storage { access } => {
                    let writes = access.contains(StorageAccess::STORE);
                    let expected = kernel.bindings[binding.binding as usize - 1] == Access::Write;
                    assert_eq!(writes, expected, "{}: access of binding {}", kernel.name, binding.binding);
                }
                space => panic!("{}: a binding in {space:?}", kernel.name),
            }
        }
        assert_eq!(seen, 1 + kernel.bindings.len(), "{}: number of bindings", kernel.name);
    }
}

/// Kernels with matrices go to Metal and Vulkan alone: HLSL has none, and no adapter of DirectX 12 offers them.
#[test]
fn kernels_translate_to_every_backend() {
    let all = every_kernel().flat_map(|kernel| modules(kernel).into_iter().map(move |module| (kernel, module)));
    for (kernel, (module, info)) in all {
        entry(kernel, &module);
        naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None)
            .unwrap_or_else(|e| panic!("{} to SPIR-V: {e}", kernel.name));
        let lang_version = if kernel.matrices { (2, 3) } else { naga::back::msl::Options::default().lang_version };
        let options = naga::back::msl::Options { fake_missing_bindings: true, lang_version, ..Default::default() };
        let (msl, _) =
            naga::back::msl::write_string(&module, &info, &options, &naga::back::msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{} to MSL: {e}", kernel.name));
        assert!(msl.contains("kernel void"), "{}", kernel.name);
        assert_eq!(msl.contains("simdgroup_multiply_accumulate"), kernel.matrices, "{}", kernel.name);
        if kernel.matrices {
            continue;
        }
        let mut hlsl = String::new();
        let options = naga::back::hlsl::Options { fake_missing_bindings: true, ..Default::default() };
        naga::back::hlsl::Writer::new(&mut hlsl, &options, &naga::back::hlsl::PipelineOptions::default())
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{} to HLSL: {e}", kernel.name));
        assert!(hlsl.contains("numthreads"), "{}", kernel.name);
    }
}

/// Every file of shaders/ is a kernel of the table, and the table has no kernel without a file.
#[test]
fn every_shader_file_is_in_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let stems: BTreeSet<String> = every_kernel().map(|kernel| kernel.file.to_string()).collect();
    assert_eq!(files, stems.into_iter().collect::<Vec<_>>());
    let names: BTreeSet<&str> = every_kernel().map(|kernel| kernel.name).collect();
    assert_eq!(names.len(), every_kernel().count(), "each has a name of its own");
}

/// A kernel's source without its comments.
fn code(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// tanh overflows to NaN on some drivers and exp is inexact on others: the functions of lib/ stand in for both. An
/// early return above a barrier is undefined behaviour that naga lets pass, and so is a barrier in a branch that
/// depends on the invocation.
#[test]
fn kernels_avoid_what_breaks_elsewhere() {
    for kernel in every_kernel() {
        let text = code(&kernel.module(kernel.consts));
        // A kernel enables exactly the features of its table entry.
        let enabled: Vec<&str> = text.lines().filter(|line| line.starts_with("enable")).collect();
        let expected: &[&str] = if kernel.matrices { &["enable wgpu_cooperative_matrix;"] } else { &[] };
        assert_eq!(enabled, expected, "{}", kernel.name);
        for word in ["tanh", "exp", "unpack2x16float", "immediate"] {
            let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            assert!(!words.any(|w| w == word), "{} uses {word:?}", kernel.name);
        }
        let own = code(kernel.source);
        let body = &own[own.find("@compute").unwrap()..];
        assert!(!body.contains("return"), "{}: no return in an entry point", kernel.name);
        for (i, line) in body
            .lines()
            .enumerate()
            .filter(|(_, line)| ["workgroupBarrier", "workgroup_", "subgroup", "coop"].iter().any(|w| line.contains(w)))
        {
            let before: Vec<&str> = body.lines().take(i).collect();
            assert!(!under_if(&before), "{}: a barrier under an if, line {:?}", kernel.name, line.trim());
        }
    }
}

/// True when the last of `lines` stand inside an `if` that is still open.
fn under_if(lines: &[&str]) -> bool {
    let mut open = Vec::new();
    for line in lines {
        for (i, c) in line.char_indices() {
            match c {
                '{' => open.push(line[..i].trim_start().starts_with("if ") || line[..i].contains("} else")),
                '}' => {
                    open.pop();
                }
                _ => {}
            }
        }
    }
    open.contains(&true)
}

/// A barrier stands between what one invocation writes to workgroup memory and another reads. Tests of results cannot show
/// this: a software adapter runs eight invocations in step, and a GPU may run in the right order by chance.
#[test]
fn barriers_stand_where_invocations_share_memory() {
    for kernel in every_kernel() {
        let (module, _) = module(kernel);
        assert_eq!(races::races(&module), BTreeSet::new(), "{}", kernel.name);
    }
}

/// The check above notices each barrier that is taken away.
#[test]
fn every_missing_barrier_is_noticed() {
    const BARRIER: &str = "workgroupBarrier();";
    let mut unnoticed = BTreeSet::new();
    for kernel in every_kernel() {
        let text = kernel.module(kernel.consts);
        for (at, _) in text.match_indices(BARRIER) {
            let without = [&text[..at], &text[at + BARRIER.len()..]].concat();
            let module = naga::front::wgsl::parse_str(&unroll::unrolled(&without)).unwrap();
            let function = text[..at].rsplit_once("fn ").and_then(|(_, rest)| rest.split_once('(')).unwrap().0;
            let is_called = function == kernel.file || text.matches(&format!("{function}(")).count() > 1;
            if is_called && races::races(&module).is_empty() {
                unnoticed.insert(format!("{} {function} {}", kernel.name, text[..at].matches('\n').count()));
            }
        }
    }
    assert_eq!(unnoticed, BTreeSet::new());
}

/// Even a large GPU has a workgroup for every core, from a few tokens on.
#[test]
fn products_of_gpt2_have_workgroups_enough() {
    // c_attn, the attention's output, c_fc and the MLP's output of gpt2-small.
    for (k, cols) in [(768, 2304), (768, 768), (768, 3072), (3072, 768)] {
        for rows in [9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 1024] {
            let plan = Plan::linear(&Tuning::DEFAULT, rows, k, cols);
            assert!(plan.workgroups() >= 128, "{rows} x {k} x {cols}: {plan:?}");
        }
    }
}
