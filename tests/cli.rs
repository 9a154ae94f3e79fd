//! The command line as a contract that scripts call: what each option means, what is on stdout, on stderr and in files,
//! and how a run ends.

#[path = "common/binary.rs"]
mod binary;
mod common;

use binary::*;
use common::{Golden, worst_token_error};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// `actscope extract` on the classic checkpoint, 3 blocks wide 32.
fn extract(args: &[&str]) -> Vec<String> {
    ["extract", "-m", CLASSIC].iter().chain(args).map(|arg| arg.to_string()).collect()
}

/// What `extract --json` prints, with `args` on the demo model.
fn demo_json(args: &[&str]) -> Value {
    serde_json::from_str(&run_well(["extract", "--json", "-q"].iter().chain(args))).unwrap()
}

/// Names of the hooks in the output.
fn hook_names(record: &Value) -> Vec<String> {
    record["hooks"].as_object().unwrap().keys().cloned().collect()
}

/// Nested lists as an array; null stands for -inf.
fn array(value: &Value) -> ArrayD<f32> {
    fn walk(value: &Value, depth: usize, shape: &mut Vec<usize>, flat: &mut Vec<f32>) {
        let Some(list) = value.as_array() else {
            flat.push(value.as_f64().map_or(f32::NEG_INFINITY, |v| v as f32));
            return;
        };
        if shape.len() == depth {
            shape.push(list.len());
        }
        assert_eq!(shape[depth], list.len(), "ragged lists at depth {depth}");
        list.iter().for_each(|value| walk(value, depth + 1, shape, flat));
    }
    let (mut shape, mut flat) = (Vec::new(), Vec::new());
    walk(value, 0, &mut shape, &mut flat);
    ArrayD::from_shape_vec(IxDyn(&shape), flat).unwrap()
}

fn hook(record: &Value, name: &str) -> ArrayD<f32> {
    array(&record["hooks"][name])
}

/// A safetensors file: its f32 arrays, its i64 arrays, its metadata.
struct File {
    floats: BTreeMap<String, ArrayD<f32>>,
    longs: BTreeMap<String, ArrayD<i64>>,
    metadata: HashMap<String, String>,
}

fn read_safetensors(path: &Path) -> File {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let mut file = File { floats: BTreeMap::new(), longs: BTreeMap::new(), metadata };
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
        let shape = IxDyn(view.shape());
        match view.dtype() {
            Dtype::F32 => {
                let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                file.floats.insert(name.into(), ArrayD::from_shape_vec(shape, values).unwrap());
            }
            Dtype::I64 => {
                let values = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
                file.longs.insert(name.into(), ArrayD::from_shape_vec(shape, values).unwrap());
            }
            other => panic!("{name} is {other:?}"),
        }
    }
    file
}

/// Extracts into a safetensors file and reads it.
fn extracted(args: &[&str]) -> File {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.safetensors");
    run_well(extract(args).into_iter().chain(["-q".into(), "-o".into(), out.display().to_string()]));
    read_safetensors(&out)
}

/// A file as numpy reads it: dtype, shape and bytes of every array, in order.
fn read_with_numpy(path: &Path) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    const SCRIPT: &str = "import sys, json, numpy\n\
        with numpy.load(sys.argv[1], allow_pickle=False) as f:\n    \
            print(json.dumps([[k, f[k].dtype.str, f[k].shape, list(f[k].tobytes())] for k in f.files]))";
    let output = std::process::Command::new(common::python("numpy")).args(["-c", SCRIPT]).arg(path).output().unwrap();
    assert!(output.status.success(), "numpy refuses the file: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Two texts of different lengths, so that there is padding.
const RAGGED: &[&str] = &["--ids", "1 2 3 4 5", "--ids", "100 0"];

#[cfg_attr(not(feature = "external-tests"), ignore = "needs Python with numpy; tools/check.sh runs it")]
#[test]
fn four_formats_hold_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |extension: &str| folder.path().join(format!("x.{extension}"));
    for extension in ["safetensors", "npz", "json", "csv"] {
        let out = path(extension).display().to_string();
        run_well(extract(&[RAGGED, &["-k", "*", "-q", "-o", &out]].concat()));
    }
    let expected = read_safetensors(&path("safetensors"));
    assert_eq!(expected.floats.len(), 2 + 3 * 20 + 4, "every hook of three blocks");
    assert_eq!(expected.floats["blocks.2.attn.hook_pattern"].shape(), [2, 4, 5, 5]);
    assert_eq!(expected.floats["unembed.hook_out"].shape(), [2, 5, 101]);
    assert_eq!(expected.longs["input_ids"], array(&json!([[1, 2, 3, 4, 5], [100, 0, 0, 0, 0]])).mapv(|v| v as i64));
    assert_eq!(expected.longs["attention_mask"], array(&json!([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])).mapv(|v| v as i64));

    // .npz, byte for byte.
    let mut of_numpy = 0;
    for (name, dtype, shape, bytes) in read_with_numpy(&path("npz")) {
        if name == "metadata_json" {
            let metadata: HashMap<String, String> = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(metadata, expected.metadata);
            continue;
        }
        let (want_dtype, want_shape, want): (_, _, Vec<u8>) = match expected.longs.get(&name) {
            Some(a) => ("<i8", a.shape(), a.iter().flat_map(|v| v.to_le_bytes()).collect()),
            None => {
                let a = &expected.floats[&name];
                ("<f4", a.shape(), a.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        assert_eq!((dtype.as_str(), shape.as_slice()), (want_dtype, want_shape), "{name}");
        assert!(bytes == want, "{name}: other numbers in .npz than in .safetensors");
        of_numpy += 1;
    }
    assert_eq!(of_numpy, expected.floats.len() + expected.longs.len());

    // .json
    let record: Value = serde_json::from_slice(&std::fs::read(path("json")).unwrap()).unwrap();
    assert_eq!(record["hooks"].as_object().unwrap().len(), expected.floats.len());
    for (name, want) in &expected.floats {
        assert!(hook(&record, name) == want, "{name}: other numbers in .json than in .safetensors");
    }
    assert_eq!(array(&record["attention_mask"]).mapv(|v| v as i64), expected.longs["attention_mask"]);

    // .csv: every value of every real token, once, and nothing else.
    let mut table = csv::ReaderBuilder::new().flexible(true).from_path(path("csv")).unwrap();
    let lead: Vec<String> = table.headers().unwrap().iter().take(7).map(String::from).collect();
    assert_eq!(lead, ["hook", "text", "position", "token_id", "token", "head", "0"]);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for row in table.records() {
        let row = row.unwrap();
        let (name, text, position) = (&row[0], row[1].parse::<usize>().unwrap(), row[2].parse::<usize>().unwrap());
        assert_eq!(row[3].parse::<i64>().unwrap(), expected.longs["input_ids"][[text, position]], "{name}");
        let of_text = expected.floats[name].index_axis(Axis(0), text);
        let square = name.ends_with("attn_scores") || name.ends_with("pattern");
        let at = match (square, row[5].parse::<usize>().ok()) {
            (true, Some(head)) => of_text.index_axis(Axis(0), head).index_axis_move(Axis(0), position).into_owned(),
            (false, Some(head)) => of_text.index_axis(Axis(0), position).index_axis_move(Axis(0), head).into_owned(),
            (_, None) => of_text.index_axis(Axis(0), position).into_owned(),
        };
        let got: Vec<f32> = row.iter().skip(6).map(|v| v.parse().unwrap()).collect();
        let n = if square { [5, 2][text] } else { at.len() };
        assert_eq!(got, at.iter().take(n).copied().collect::<Vec<_>>(), "{name}, text {text}, position {position}");
        *seen.entry(name.to_string()).or_default() += 1;
    }
    for (name, array) in &expected.floats {
        let heads = if array.ndim() == 4 { 4 } else { 1 };
        assert_eq!(seen.get(name), Some(&(7 * heads)), "rows of {name}: 5 tokens and 2");
    }
}

/// `.json` has the same `input_ids` as the others: [batch, pos], padded with zeros.
#[test]
fn json_pads_ids_as_the_other_formats_do() {
    let record: Value = serde_json::from_str(&run_well(extract(&[RAGGED, &["--json", "-q"]].concat()))).unwrap();
    assert_eq!(record["input_ids"], json!([[1, 2, 3, 4, 5], [100, 0, 0, 0, 0]]));
}

/// An entry larger than 4 GiB needs the zip64 form from its first byte on: "version needed to extract" is then 4.5. An
/// archive that is itself larger, with its entries behind the first 4 GiB, was read back by hand.
#[test]
fn npz_entries_may_pass_four_gibibytes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npz");
    run_well(extract(&["--ids", "1", "-q", "-o", out.to_str().unwrap()]));
    let bytes = std::fs::read(out).unwrap();
    let entries: Vec<usize> = (0..bytes.len() - 4).filter(|&i| bytes[i..].starts_with(b"PK\x03\x04")).collect();
    assert_eq!(entries.len(), 4);
    for at in entries {
        assert_eq!(bytes[at + 4], 45, "the entry at byte {at} is written without room for 64-bit sizes");
    }
}

#[test]
fn metadata() {
    let of = |args: &[&str]| extracted(args).metadata;
    let metadata = of(&["--ids", "1 2"]);
    let mut keys: Vec<&str> = metadata.keys().map(String::as_str).collect();
    keys.sort();
    assert_eq!(keys, ["actscope_version", "device", "hook_definitions", "model", "model_fingerprint", "tokens"]);
    assert_eq!(metadata["model"], CLASSIC);
    assert_eq!(metadata["actscope_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(metadata["hook_definitions"], "transformer_lens>=4");
    assert_eq!(metadata["tokens"], r##"[["#1","#2"]]"##);
    assert!(metadata["device"].starts_with("cpu") || metadata["device"].starts_with("gpu"), "{}", metadata["device"]);

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.safetensors").display().to_string();
    run_well(["extract", "The cat", "-q", "-o", &out]);
    let one = read_safetensors(Path::new(&out)).metadata;
    assert_eq!((one["text"].as_str(), one["tokens"].as_str()), ("The cat", r#"[["The"," cat"]]"#));
    run_well(["extract", "The cat", "A \"dog\"", "-q", "-o", &out]);
    let two = read_safetensors(Path::new(&out)).metadata;
    assert_eq!(two["text"], r#"["The cat","A \"dog\""]"#);
    assert_eq!(two["model"], "demo");
}

/// The fingerprint covers config.json and the headers; every byte only with --hash.
#[test]
fn fingerprint() {
    let model = tempfile::tempdir().unwrap();
    let folder = model.path().display().to_string();
    let of = |extra: &[&str]| {
        let args = [&["extract", "--json", "-q", "--ids", "1", "-m", &folder], extra].concat();
        let record: Value = serde_json::from_str(&run_well(args)).unwrap();
        record["model_fingerprint"].as_str().unwrap().to_string()
    };
    copy_of_classic(model.path());
    let (first, first_hash) = (of(&[]), of(&["--hash"]));
    assert!(first.len() == 64 && first.bytes().all(|b| b.is_ascii_hexdigit()), "{first}");
    assert_ne!(first, first_hash);
    assert_eq!(first, of(&[]), "the same model, the same fingerprint");

    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_eq!(first, of(&[]), "a changed number is not in the headers");
    assert_ne!(first_hash, of(&["--hash"]), "--hash sees a single changed bit");

    copy_of_classic(model.path());
    edit_json(model.path().join("config.json"), |c| c["layer_norm_epsilon"] = json!(1e-6));
    assert_ne!(first, of(&[]), "another config.json");
}

#[test]
fn padding_is_zero() {
    let file = extracted(&[RAGGED, &["-k", "*"]].concat());
    for (name, array) in &file.floats {
        let square = name.ends_with("attn_scores") || name.ends_with("pattern");
        let second = array.index_axis(Axis(0), 1);
        let of_padding: Vec<ArrayViewD<f32>> = if square {
            vec![
                second.slice_axis(Axis(1), (2..).into()).into_dyn(),
                second.slice_axis(Axis(2), (2..).into()).into_dyn(),
            ]
        } else {
            vec![second.slice_axis(Axis(0), (2..).into()).into_dyn()]
        };
        assert!(of_padding.iter().all(|a| a.iter().all(|v| *v == 0.0)), "{name}: the padding is not zero");
        let real = second.index_axis(Axis(if square { 1 } else { 0 }), 1);
        assert!(real.iter().any(|v| *v != 0.0), "{name}: a real token is all zero");
    }
}

#[test]
fn several_texts_are_what_each_is_alone() {
    let together = extracted(&[RAGGED, &["-k", "*", "--device", "cpu"]].concat());
    for (i, (ids, n)) in [("1 2 3 4 5", 5), ("100 0", 2)].iter().enumerate() {
        let alone = extracted(&["--ids", ids, "-k", "*", "--device", "cpu"]);
        for (name, want) in &alone.floats {
            let mut got = together.floats[name].index_axis(Axis(0), i).to_owned();
            let want = want.index_axis(Axis(0), 0);
            let square = name.ends_with("attn_scores") || name.ends_with("pattern");
            for axis in if square { 1..3 } else { 0..1 } {
                got = got.slice_axis(Axis(axis), (0..*n).into()).to_owned();
            }
            let got: Vec<f32> = got.iter().copied().collect();
            let want: Vec<f32> = want.iter().copied().collect();
            // A larger matrix may split a row's sums differently. The bound is ten roundings of values of size 1.
            common::assert_close(&format!("text {i}, {name}"), &got, &want, 1e-6, 1e-5);
        }
    }
}

#[test]
fn layers_mean_what_the_notebook_means() {
    for (layers, hooks) in [
        (&[][..], &["ln_final.hook_out"][..]),
        (&["-1"], &["ln_final.hook_out"]),
        (&["0"], &["blocks.0.hook_resid_post"]),
        (&["3"], &["blocks.3.hook_resid_post"]),
        (&["-2"], &["blocks.2.hook_resid_post"]),
        (&["-4"], &["blocks.0.hook_resid_post"]),
        (&["-1", "1", "1", "-3"], &["blocks.1.hook_resid_post", "ln_final.hook_out"]),
        (
            &["all"],
            &[
                "blocks.0.hook_resid_post",
                "blocks.1.hook_resid_post",
                "blocks.2.hook_resid_post",
                "blocks.3.hook_resid_post",
                "ln_final.hook_out",
            ],
        ),
    ] {
        for option in ["-l", "--layer"] {
            let args: Vec<&str> = layers.iter().flat_map(|layer| [option, *layer]).collect();
            let record = demo_json(&[&["The cat"], &args[..]].concat());
            assert_eq!(hook_names(&record), hooks, "{args:?}");
            assert_eq!(hook(&record, hooks[0]).shape(), [1, 2, 160]);
        }
    }
    let joined = demo_json(&["The cat", "--layer=-2", "-k", "hook_embed"]);
    assert_eq!(hook_names(&joined), ["hook_embed", "blocks.2.hook_resid_post"], "layers and hooks together");
}

#[test]
fn hooks_by_name_glob_and_dialect() {
    for (pattern, hooks) in [
        ("blocks.1.attn.hook_pattern", &["blocks.1.attn.hook_pattern"][..]),
        ("*.hook_embed", &[]),
        ("hook_*embed", &["hook_embed", "hook_pos_embed"]),
        (
            "blocks.?.hook_resid_mid",
            &[
                "blocks.0.hook_resid_mid",
                "blocks.1.hook_resid_mid",
                "blocks.2.hook_resid_mid",
                "blocks.3.hook_resid_mid",
            ],
        ),
        ("blocks.3.ln2.*", &["blocks.3.ln2.hook_scale", "blocks.3.ln2.hook_normalized", "blocks.3.ln2.hook_out"]),
        ("blocks.3.hook_in", &["blocks.3.hook_resid_pre"]),
        ("blocks.3.hook_out", &["blocks.3.hook_resid_post"]),
        ("blocks.3.attn.hook_out", &["blocks.3.hook_attn_out"]),
        ("blocks.3.mlp.hook_out", &["blocks.3.hook_mlp_out"]),
        ("blocks.3.attn.q.hook_out", &["blocks.3.attn.hook_q"]),
        ("blocks.3.attn.k.hook_out", &["blocks.3.attn.hook_k"]),
        ("blocks.3.attn.v.hook_out", &["blocks.3.attn.hook_v"]),
        ("blocks.3.mlp.in.hook_out", &["blocks.3.mlp.hook_pre"]),
        ("blocks.3.mlp.out.hook_in", &["blocks.3.mlp.hook_post"]),
        ("embed.hook_out", &["hook_embed"]),
        ("pos_embed.hook_out", &["hook_pos_embed"]),
        ("unembed.hook_in", &["ln_final.hook_out"]),
        ("h.3", &["blocks.3.hook_resid_post"]),
        ("transformer.h.3", &["blocks.3.hook_resid_post"]),
        ("ln_f", &["ln_final.hook_out"]),
        ("transformer.h.3.mlp.act", &["blocks.3.mlp.hook_post"]),
        ("resid_post.3", &["blocks.3.hook_resid_post"]),
        ("pattern.3", &["blocks.3.attn.hook_pattern"]),
    ] {
        let args = ["extract", "--json", "-q", "The cat", "-k", pattern];
        let output = run(args);
        match hooks {
            [] => assert_eq!(output.status.code(), Some(2), "{pattern}: {}", stdout(&output)),
            _ => assert_eq!(hook_names(&serde_json::from_slice(&output.stdout).unwrap()), hooks, "{pattern}"),
        }
    }
    let twice = demo_json(&["The cat", "-k", "h.1", "--hook", "blocks.1.hook_resid_post", "-l", "1"]);
    assert_eq!(hook_names(&twice), ["blocks.1.hook_resid_post"], "one hook under three names");
}

#[test]
fn tokens_are_chosen_by_index_range_and_text() {
    let text = "The cat sat on the cat";
    let hooks = &["-k", "resid_mid.1", "-k", "pattern.2", "-k", "unembed"][..];
    let all = demo_json(&[&[text][..], hooks].concat());
    for (selectors, positions) in [
        (&["0"][..], &[0][..]),
        (&["-1"], &[5]),
        (&["-6"], &[0]),
        (&["1..3"], &[1, 2]),
        (&["..2"], &[0, 1]),
        (&["-2.."], &[4, 5]),
        (&[".."], &[0, 1, 2, 3, 4, 5]),
        (&["3..-1"], &[3, 4]),
        (&["4..99"], &[4, 5]),
        (&[" cat"], &[1, 5]),
        (&["\" cat\""], &[1, 5]),
        (&["-1", "0", " sat"], &[0, 2, 5]),
        (&["0..3", "2..4", "1", "-5"], &[0, 1, 2, 3]),
    ] {
        let args: Vec<&str> = selectors.iter().flat_map(|selector| ["-t", *selector]).collect();
        let some = demo_json(&[&[text][..], hooks, &args[..]].concat());
        assert_eq!(some["positions"], json!([positions]), "{selectors:?}");
        for name in ["blocks.1.hook_resid_mid", "blocks.2.attn.hook_pattern", "unembed.hook_out"] {
            let axis = Axis(if name.ends_with("pattern") { 2 } else { 1 });
            let want = hook(&all, name).select(axis, positions);
            assert_eq!(hook(&some, name).shape(), want.shape(), "{selectors:?} {name}");
            assert!(hook(&some, name) == want, "{selectors:?} {name}: not the numbers of the whole run");
        }
    }
}

/// Texts in which a selector matches different numbers of tokens: rows are padded, and `positions` has the position of
/// each.
#[test]
fn chosen_tokens_of_ragged_texts() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.safetensors").display().to_string();
    let texts = ["The cat saw the cat", "A cat"];
    run_well(
        [&["extract", "-q", "-t", " cat", "-k", "hook_embed", "-k", "pattern.0", "-o", &out], &texts[..]].concat(),
    );
    let file = read_safetensors(Path::new(&out));
    assert_eq!(file.longs["positions"], array(&json!([[1, 4], [1, -1]])).mapv(|v| v as i64));
    assert_eq!(file.longs["input_ids"].shape(), [2, 5], "ids of all tokens stay");
    assert_eq!(file.longs["attention_mask"].sum(), 7);
    let embed = &file.floats["hook_embed"];
    assert_eq!(embed.shape(), [2, 2, 160]);
    assert_eq!(
        embed.index_axis(Axis(0), 0).index_axis(Axis(0), 0),
        embed.index_axis(Axis(0), 1).index_axis(Axis(0), 0)
    );
    assert!(embed.index_axis(Axis(0), 1).index_axis(Axis(0), 1).iter().all(|v| *v == 0.0));
    assert_eq!(file.floats["blocks.0.attn.hook_pattern"].shape(), [2, 5, 2, 5]);
}

#[test]
fn texts_from_a_file_and_from_stdin() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.txt");
    std::fs::write(&file, "The cat\r\nA dog sat\n- and -5").unwrap();
    let given = run_well(["extract", "-q", "--json", "--", "The cat", "A dog sat", "- and -5"]);
    let from_file = run_well(["extract", "-q", "--json", "--file", file.to_str().unwrap()]);
    assert_eq!(from_file, given);
    let mut from_stdin = actscope(["extract", "-q", "--json", "--file", "-"]);
    assert_eq!(stdout(&from_stdin.write_stdin("The cat\nA dog sat\n- and -5\n").output().unwrap()), given);
    let tokens = actscope(["tokens", "-q", "--json", "--file", "-"]).write_stdin("The cat\n").output().unwrap();
    assert_eq!(stdout(&tokens), run_well(["tokens", "-q", "--json", "The cat"]));
}

#[test]
fn ids_in_place_of_text() {
    let of_text = demo_json(&["The cat", "A"]);
    let ids: Vec<String> = of_text["input_ids"]
        .as_array()
        .unwrap()
        .iter()
        .zip([2, 1])
        .map(|(row, n)| row.as_array().unwrap()[..n].iter().map(Value::to_string).collect::<Vec<_>>().join(" "))
        .collect();
    let of_ids = demo_json(&["--ids", &ids[0], "--ids", &ids[1]]);
    assert!(of_ids["hooks"] == of_text["hooks"], "the same ids, the same numbers");
    assert_eq!(of_ids["tokens"], of_text["tokens"]);
    assert!(demo_json(&["--ids", " 1,2\t3,\n4 "])["hooks"] == demo_json(&["--ids", "1 2 3 4"])["hooks"]);
}

#[test]
fn prepend_bos() {
    let plain = demo_json(&["The cat", "A"]);
    let with_bos = demo_json(&["The cat", "A", "--prepend-bos"]);
    let row = |record: &Value, i: usize| record["input_ids"][i].as_array().unwrap().clone();
    assert_eq!(row(&with_bos, 0), [&[json!(4095)], &row(&plain, 0)[..]].concat());
    assert_eq!(row(&with_bos, 1)[0], 4095);
    assert_eq!(hook(&with_bos, "ln_final.hook_out").shape(), [2, 3, 160]);
    assert_eq!(with_bos["tokens"][0], json!(["<|endoftext|>", "The", " cat"]));
    // An empty text then has one token.
    assert_eq!(demo_json(&["", "--prepend-bos"])["input_ids"], json!([[4095]]));
    let of_ids: Value =
        serde_json::from_str(&run_well(extract(&["--ids", "5", "--prepend-bos", "--json", "-q"]))).unwrap();
    assert_eq!(of_ids["input_ids"], json!([[100, 5]]));
}

#[test]
fn truncate() {
    let long = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19";
    let refused = run(extract(&["--ids", "1", "--ids", long]));
    assert_eq!(refused.status.code(), Some(1));
    let message = stderr(&refused);
    for part in ["text 1", "19 tokens", "3 more than the 16", "--truncate"] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    let cut = run(extract(&["--ids", "1", "--ids", long, "--truncate", "--json"]));
    assert_eq!(cut.status.code(), Some(0), "{}", stderr(&cut));
    assert!(stderr(&cut).contains("text 1 is cut from 19 to 16 tokens"), "{}", stderr(&cut));
    let record: Value = serde_json::from_slice(&cut.stdout).unwrap();
    let want: Vec<u32> = (1..=16).collect();
    assert_eq!(record["input_ids"][1], json!(want));
    assert_eq!(hook(&record, "ln_final.hook_out").shape(), [2, 16, 32]);
    // So are the texts that edits take values from.
    let other: Vec<String> = (1..=19).map(|id| (20 - id).to_string()).collect();
    let source = ["--edit", "resid_pre.0:patch", "--source-ids", &other.join(" "), "--json", "-q"];
    let patched = run_well(extract(&[&["--ids", long, "--truncate"], &source[..]].concat()));
    let patched: Value = serde_json::from_str(&patched).unwrap();
    let alone = run_well(extract(&["--ids", &other[..16].join(" "), "--json", "-q"]));
    let alone: Value = serde_json::from_str(&alone).unwrap();
    assert_eq!(hook(&patched, "ln_final.hook_out"), hook(&alone, "ln_final.hook_out"));
    // With the token in front there is room for one token less.
    let bos = run_well(extract(&["--ids", long, "--truncate", "--prepend-bos", "--json", "-q"]));
    let bos: Value = serde_json::from_str(&bos).unwrap();
    assert_eq!(bos["input_ids"][0].as_array().unwrap().len(), 16);
    assert_eq!((&bos["input_ids"][0][0], &bos["input_ids"][0][15]), (&json!(100), &json!(15)));
}

/// stdout has data, stderr has messages, and -q silences the messages.
#[test]
fn stdout_is_data_and_stderr_is_talk() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npz").display().to_string();
    for args in [
        &["extract", "The cat"][..],
        &["extract", "The cat", "--json"],
        &["extract", "The cat", "--dry-run"],
        &["extract", "The cat", "--truncate", "--json"],
        &["extract", "The cat", "-o", &out],
        &["extract", "The cat", "-o", &out, "--json"],
        &["tokens", "The cat"],
        &["hooks"],
        &["hooks", "pattern.1"],
    ] {
        let loud = run(args);
        assert_eq!(loud.status.code(), Some(0), "{args:?}: {}", stderr(&loud));
        assert!(stderr(&loud).starts_with("model: demo"), "{args:?}: {}", stderr(&loud));
        let quiet = run([args, &["-q"]].concat());
        assert_eq!(stderr(&quiet), "", "{args:?} -q");
        assert_eq!(stdout(&quiet), stdout(&loud), "{args:?}: the talk is not on stdout");
        assert_eq!(stdout(&quiet).is_empty(), args.contains(&"-o") && !args.contains(&"--json"), "{args:?}");
    }
    assert!(!stderr(&run(["extract", "x", "-q", "-l", "99"])).is_empty(), "-q does not hide errors");
}

#[test]
fn exit_codes() {
    for (code, args) in [
        (0, &["--help"][..]),
        (0, &["--version"]),
        (0, &["extract", "--help"]),
        (0, &["extract", "hi"]),
        (1, &["extract", ""]),
        (1, &["extract", "hi", "-m", "nobody/nothing"]),
        (2, &[]),
        (2, &["extract", "hi", "--nonsense"]),
        (2, &["extract", "hi", "-k", "nonsense"]),
        (2, &["extract"]),
    ] {
        assert_eq!(run(args).status.code(), Some(code), "{args:?}");
    }
    let version = run_well(["--version"]);
    assert_eq!(version.trim_end(), format!("actscope {}", env!("CARGO_PKG_VERSION")));
}

/// Every command that prints, into a pipe that is closed: no panic, no error.
#[test]
fn a_closed_pipe_is_no_error() {
    let many: Vec<&str> = std::iter::repeat_n("The cat sat on the mat", 40).collect();
    let one = |args: &[&str], and_stderr: bool| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("actscope"));
        command.args(args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let talk = child.stderr.take().filter(|_| !and_stderr).map(|pipe| std::io::read_to_string(pipe).unwrap());
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}: {talk:?}");
        assert!(!talk.unwrap_or_default().contains("panicked"), "{args:?}");
    };
    for and_stderr in [false, true] {
        one(&[&["extract", "-k", "*"], &many[..]].concat(), and_stderr);
        one(&[&["extract", "-l", "all", "--json"], &many[..]].concat(), and_stderr);
        one(&[&["extract", "--dry-run", "-k", "*"], &many[..]].concat(), and_stderr);
        one(&[&["tokens"], &many[..]].concat(), and_stderr);
        one(&["hooks", "*"], and_stderr);
        one(&["devices"], and_stderr);
        one(&["--help"], and_stderr);
    }
}

#[test]
fn dry_run_says_what_a_run_then_writes() {
    for request in
        [&["-k", "*"][..], &[], &["-l", "all", "-t", "-1"], &["-k", "pattern.*", "-k", "hook_embed", "-t", "0..2"]]
    {
        let args = [RAGGED, request].concat();
        let dry: Value =
            serde_json::from_str(&run_well(extract(&[&args[..], &["--dry-run", "--json"]].concat()))).unwrap();
        let file = extracted(&args);
        let rows = dry["hooks"].as_array().unwrap();
        assert_eq!(rows.len(), file.floats.len(), "{request:?}");
        for row in rows {
            let array = &file.floats[row["name"].as_str().unwrap()];
            assert_eq!(row["shape"], json!(array.shape()), "{request:?} {}", row["name"]);
            assert_eq!(row["bytes"], json!(4 * array.len()), "{request:?} {}", row["name"]);
        }
        let total: usize = file.floats.values().map(|array| 4 * array.len()).sum();
        assert_eq!(dry["bytes"], json!(total), "{request:?}");
        let text = run_well(extract(&[&args[..], &["--dry-run"]].concat()));
        assert!(text.contains(&format!("({total} bytes)")), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npz").display().to_string();
    run_well(extract(&["--ids", "1", "--dry-run", "-o", &out]));
    assert_eq!(names_in(folder.path()), [""; 0], "a dry run writes nothing");
    for (hooks, said) in [("hook_embed", "1 hook, "), ("hook_*embed", "2 hooks, ")] {
        let args = ["--ids", "1", "--device", "cpu", "-k", hooks];
        let forecast = run_well(extract(&[&args[..], &["--dry-run"]].concat()));
        assert!(forecast.lines().any(|line| line.starts_with(said)), "{forecast}");
        let written = stderr(&run(extract(&[&args[..], &["-o", &out]].concat())));
        assert!(written.contains(&format!("x.npz: {said}")), "{written}");
    }
}

/// The predicted size is right to the byte for files whose size does not depend on the values. It includes the name of
/// the device.
#[test]
fn dry_run_forecasts_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let requests: [(&str, &[&str]); 4] = [
        ("cpu", &["-k", "*"]),
        ("reference", &["-t", "-1", "--hash"]),
        ("gpu", &["-k", "pattern.0"]),
        ("cpu", &["-l", "all", "-t", "0..2"]),
    ];
    for (device, request) in requests {
        for extension in ["safetensors", "npz"] {
            let out = folder.path().join(format!("x.{extension}"));
            let to = ["--device", device, "-q", "-o", out.to_str().unwrap()];
            let args = [RAGGED, request, &to].concat();
            let dry: Value =
                serde_json::from_str(&run_well(extract(&[&args[..], &["--dry-run", "--json"]].concat()))).unwrap();
            let text = run_well(extract(&[&args[..], &["--dry-run"]].concat()));
            run_well(extract(&args));
            let bytes = std::fs::metadata(&out).unwrap().len();
            assert_eq!(dry["file_bytes"], json!(bytes), "{device} {request:?} {extension}");
            assert!(text.contains(&format!("({bytes} bytes)\n")), "{text}");
        }
    }
    for extension in ["json", "csv"] {
        let out = folder.path().join(format!("x.{extension}")).display().to_string();
        let dry = run_well(extract(&["--ids", "1", "--dry-run", "--json", "-o", &out]));
        assert_eq!(serde_json::from_str::<Value>(&dry).unwrap()["file_bytes"], Value::Null);
        assert!(run_well(extract(&["--ids", "1", "--dry-run", "-o", &out])).contains("depends on the values"));
    }
}

/// The same run, the same bytes: files can be compared and cached by their hash.
#[test]
fn files_are_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    for extension in ["safetensors", "npz", "json", "csv"] {
        let out = folder.path().join(format!("x.{extension}"));
        let write = || {
            run_well(extract(&[RAGGED, &["-k", "*", "-q", "--device", "cpu", "-o", out.to_str().unwrap()]].concat()));
            std::fs::read(&out).unwrap()
        };
        assert!(write() == write(), "{extension}");
    }
}

/// A checkpoint of 32 GiB whose data is one hole in a sparse file. Reading it all would take minutes, or that much
/// memory.
#[cfg(target_os = "linux")]
#[test]
fn dry_run_loads_no_weights() {
    let model = tempfile::tempdir().unwrap();
    let (embd, vocab) = (1 << 15, 1 << 17);
    let config = json!({"model_type": "gpt2", "n_embd": embd, "n_head": 8, "n_layer": 1, "vocab_size": vocab,
        "n_positions": 4, "n_inner": 1});
    std::fs::write(model.path().join("config.json"), config.to_string()).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0u64);
    for (name, shape) in [
        ("wte.weight", vec![vocab, embd]),
        ("wpe.weight", vec![4, embd]),
        ("h.0.ln_1.weight", vec![embd]),
        ("h.0.ln_1.bias", vec![embd]),
        ("h.0.attn.c_attn.weight", vec![embd, 3 * embd]),
        ("h.0.attn.c_attn.bias", vec![3 * embd]),
        ("h.0.attn.c_proj.weight", vec![embd, embd]),
        ("h.0.attn.c_proj.bias", vec![embd]),
        ("h.0.ln_2.weight", vec![embd]),
        ("h.0.ln_2.bias", vec![embd]),
        ("h.0.mlp.c_fc.weight", vec![embd, 1]),
        ("h.0.mlp.c_fc.bias", vec![1]),
        ("h.0.mlp.c_proj.weight", vec![1, embd]),
        ("h.0.mlp.c_proj.bias", vec![embd]),
        ("ln_f.weight", vec![embd]),
        ("ln_f.bias", vec![embd]),
    ] {
        let end = at + 4 * shape.iter().map(|&n| n as u64).product::<u64>();
        header.insert(name.into(), json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let weights = model.path().join("model.safetensors");
    let header = Value::from(header).to_string();
    join_safetensors(&weights, &header, &[]);
    let size = 8 + header.len() as u64 + at;
    assert!(size > 32 << 30);
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(size).unwrap();

    let folder = model.path().display().to_string();
    let mut command = actscope(["extract", "--ids", "1 2", "--dry-run", "--json", "-q", "-m", &folder]);
    let output = command.timeout(std::time::Duration::from_secs(10)).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let dry: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(dry["hooks"][0]["shape"], json!([1, 2, embd]));
    assert_eq!(dry["weight_bytes"], json!(size));
}

/// Every device from the command line, compared with the f64 golden.
#[test]
fn devices_compute_the_golden_numbers() {
    let golden = Golden::read(Path::new(CLASSIC));
    let ids: Vec<String> =
        golden.ids.iter().map(|row| row.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")).collect();
    let ids: Vec<&str> = ids.iter().flat_map(|row| ["--ids", row]).collect();
    for device in ["reference", "cpu", "gpu"] {
        let file = extracted(&[&ids[..], &["-k", "*", "--device", device]].concat());
        assert!(file.metadata["device"].starts_with(device), "{device}: {}", file.metadata["device"]);
        assert_eq!(file.floats.len(), golden.hooks.len());
        for (name, array) in &file.floats {
            // `golden.rs` tests the exact bound. A wrong device, weight or row differs by far more than this one.
            let error = worst_token_error(name, array.view(), &golden.hooks[name]);
            assert!(error < 1e-5, "{device} {name}: {error:e}");
        }
    }
}

/// A software adapter is used only when it is requested, and then one line says so.
#[test]
fn a_software_adapter_says_so() {
    let list: Vec<Value> = serde_json::from_str(&run_well(["devices", "--json"])).unwrap();
    let gpus: Vec<&Value> = list.iter().filter(|device| device["device"] == "gpu").collect();
    assert!(!gpus.is_empty(), "no adapter at all; on Debian: apt install mesa-vulkan-drivers");
    let hardware = gpus.iter().any(|device| device["software"] == false);
    let auto: Vec<&Value> = list.iter().filter(|device| device["auto"] == true).collect();
    assert_eq!(auto.len(), 1, "auto picks one");
    assert_eq!(auto[0]["device"], if hardware { "gpu" } else { "cpu" });

    let says_software = |args: &[&str]| {
        let talk = stderr(&run(extract(&[&["--ids", "1 2"], args].concat())));
        talk.lines().filter(|line| line.contains("software adapter")).count()
    };
    assert_eq!(says_software(&["--device", "gpu"]), if hardware { 0 } else { 1 });
    assert_eq!(says_software(&[]), 0);
    assert_eq!(says_software(&["--device", "cpu"]), 0);
    assert_eq!(says_software(&["--device", "reference"]), 0);
    let auto = extracted(&["--ids", "1 2"]).metadata["device"].clone();
    assert!(auto.starts_with(if hardware { "gpu" } else { "cpu" }), "{auto}");
}

#[test]
fn weights_in_other_precisions() {
    for device in ["reference", "cpu", "gpu"] {
        let of = |weights: &[&str]| {
            let args = [&["--ids", "1 2 3", "-k", "*", "--device", device], weights].concat();
            extracted(&args).floats
        };
        let stored = of(&[]);
        assert!(of(&["--weights", "f32"]) == stored, "{device}: the file is f32 already");
        assert!(of(&["--weights", "stored"]) == stored, "{device}");
        // Eleven bits of mantissa and eight.
        for (weights, least, most) in [("f16", 1e-6, 3e-3), ("bf16", 1e-4, 3e-2)] {
            let half = of(&["--weights", weights]);
            let want = stored["ln_final.hook_out"].mapv(f64::from);
            let error = worst_token_error("ln_final.hook_out", half["ln_final.hook_out"].view(), &want);
            assert!(
                (least..most).contains(&error),
                "{device} {weights}: off by {error:e}, expected {least:e}..{most:e}"
            );
        }
    }
}

#[test]
fn tokens_command() {
    let text = "The cat\n\"é";
    let tokens: Value = serde_json::from_str(&run_well(["tokens", "--json", "-q", text, "A"])).unwrap();
    let list = tokens.as_array().unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0][0], json!({"position": 0, "id": 557, "token": "The", "bytes": [0, 3], "chars": [0, 3]}));
    assert_eq!(list[0][1]["token"], " cat");
    assert_eq!(list[0][2]["token"], "\n");
    assert_eq!(list[1], json!([{"position": 0, "id": 32, "token": "A", "bytes": [0, 1], "chars": [0, 1]}]));
    let table = run_well(["tokens", "-q", text, "A"]);
    assert_eq!(table.lines().count(), 1 + list[0].as_array().unwrap().len() + 1, "one line a token:\n{table}");
    assert!(table.contains("\" cat\"") && table.contains("\"\\n\""), "{table}");
    let of_ids = run_well(["tokens", "-q", "-m", CLASSIC, "--ids", "7 8"]);
    assert!(of_ids.contains("#7") && of_ids.contains("#8"), "{of_ids}");
    let special = run_well(["tokens", "-q", "--json", "<|endoftext|>"]);
    assert_eq!(
        special.trim_end(),
        r#"[[{"position":0,"id":4095,"token":"<|endoftext|>","bytes":[0,13],"chars":[0,13]}]]"#
    );
    assert_eq!(
        run_well(["tokens", "-q", "--", "-5", "--help"]).lines().last().unwrap().split_whitespace().next(),
        Some("1")
    );
}

#[test]
fn hooks_command() {
    let all: Vec<Value> = serde_json::from_str(&run_well(["hooks", "--json", "-q"])).unwrap();
    assert_eq!(all.len(), 26, "one row per kind of hook");
    let one: Vec<Value> =
        serde_json::from_str(&run_well(["hooks", "transformer.h.2.mlp.act", "--json", "-q"])).unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one[0]["name"], "blocks.2.mlp.hook_post");
    assert_eq!(one[0]["shape"], json!(["B", "P", "M"]));
    assert_eq!(one[0]["bytes_per_token"], 4 * 640);
    assert!(one[0]["aliases"].as_array().unwrap().contains(&json!("h.2.mlp.act")));
    let every: Vec<Value> = serde_json::from_str(&run_well(["hooks", "*", "--json", "-q", "-m", CLASSIC])).unwrap();
    assert_eq!(every.len(), 2 + 3 * 20 + 4);
    let table = run_well(["hooks", "pattern.1", "-q"]);
    assert!(table.contains("blocks.1.attn.hook_pattern") && table.contains("B H P P"), "{table}");
    let typo = run(["hooks", "blocks.1.hook_resid_pots"]);
    assert!(stderr(&typo).contains("blocks.1.hook_resid_post"), "{}", stderr(&typo));
}

#[test]
fn devices_command() {
    let list: Vec<Value> = serde_json::from_str(&run_well(["devices", "--json"])).unwrap();
    assert!(list.iter().any(|device| device["device"] == "cpu" && device["threads"].as_u64() > Some(0)));
    for gpu in list.iter().filter(|device| device["device"] == "gpu") {
        assert!(gpu["max_binding_bytes"].as_u64() >= Some(128 << 20), "{gpu}");
        assert!(gpu["name"].as_str().is_some_and(|name| !name.is_empty()), "{gpu}");
    }
    let text = run_well(["devices"]);
    assert_eq!(text.lines().filter(|line| line.starts_with("* ") && !line.contains("auto")).count(), 1, "{text}");
    assert!(text.contains("reference"), "{text}");
    // Adapters that the environment leaves out are not missing drivers.
    let filtered = |args: &[&str]| actscope(args).env("WGPU_ADAPTER_NAME", "no such GPU").output().unwrap();
    let said = "no GPU adapter has the name \"no such GPU\"; change or unset WGPU_ADAPTER_NAME";
    assert!(stdout(&filtered(&["devices"])).contains(said));
    let refused = filtered(&["extract", "The cat", "--device", "gpu"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains(said), "{}", stderr(&refused));
}

#[test]
fn what_extract_says_about_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npz").display().to_string();
    let said: Value = serde_json::from_str(&run_well(extract(&["--ids", "1 2", "-o", &out, "--json"]))).unwrap();
    assert_eq!(said["file"], json!(out));
    assert_eq!(said["bytes"], json!(std::fs::metadata(&out).unwrap().len()));
    assert_eq!(said["hooks"], json!([{"name": "ln_final.hook_out", "shape": [1, 2, 32]}]));
}

#[test]
fn where_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| {
        let mut command = actscope(extract(&["--ids", "1 2", "-q", "-o", name]));
        command.current_dir(folder.path()).assert().success().stdout("").stderr("");
        std::fs::read(folder.path().join(name)).unwrap()
    };
    std::fs::write(folder.path().join("x.npz"), "old").unwrap();
    let first = here("x.npz");
    assert!(first.starts_with(b"PK"), "an old file is replaced");
    assert!(here("X.NPZ").starts_with(b"PK"), "extensions in capitals");
    assert_eq!(here("x.y.json")[0], b'{');
    assert_eq!(here("./x.csv")[..5], *b"hook,");
    std::fs::create_dir(folder.path().join("ä b")).unwrap();
    here("ä b/ -x.safetensors");
    assert_eq!(names_in(folder.path()), ["X.NPZ", "x.csv", "x.npz", "x.y.json", "ä b"], "and nothing else");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        for file in ["X.NPZ", "x.csv", "x.y.json", "ä b/ -x.safetensors"] {
            assert_eq!(mode(&folder.path().join(file)), mode(&plain), "{file}: readable by whom any new file is");
        }
    }
}

/// The summary covers real tokens only: a divisor of LayerNorm is never 0, but padding is.
#[test]
fn summary_leaves_padding_out() {
    let ragged = run_well(extract(&[RAGGED, &["-k", "blocks.*.hook_scale", "-q"]].concat()));
    for line in ragged.lines().skip(1) {
        let min: f32 = line.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
        assert!(min > 0.0, "the smallest divisor is the padding's: {line}");
    }
    assert_eq!(ragged.lines().count(), 1 + 6);
}

#[test]
fn summary() {
    let text = run_well(["extract", "The cat", "-q"]);
    assert!(text.starts_with("ln_final.hook_out  [1, 2, 160]\n"), "{text}");
    let record = demo_json(&["The cat"]);
    let second = hook(&record, "ln_final.hook_out").index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 1);
    let norm = second.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let (strongest, value) = second.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
    let line = text.lines().find(|line| line.contains("\" cat\"")).unwrap();
    assert!(line.contains(&format!("{norm:.4}")), "{line}: norm {norm:.4}");
    assert!(line.contains(&format!("[{strongest}] {value:+.3}")), "{line}: [{strongest}] {value:+.3}");
    let min = second.iter().copied().fold(f32::INFINITY, f32::min);
    assert!(line.contains(&format!("{min:.4}")), "{line}: min {min:.4}");
}

/// The same form as in `tokens`.
#[test]
fn summary_shows_a_line_break_once_escaped() {
    let text = run_well(["extract", "a\nb", "-q"]);
    assert!(text.contains(" \"\\n\" "), "{text}");
    assert!(run_well(["tokens", "a\nb", "-q"]).contains("\"\\n\""));
}

/// `--out` must not replace the model's files or the files of texts. Seen red with a check of the weights only.
#[test]
fn a_run_does_not_replace_what_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(CLASSIC).join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let model = folder.path().display().to_string();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = folder.path().join(file);
        let before = std::fs::read(&path).unwrap();
        let output = run(["extract", "-m", &model, "--ids", "1 2", "-o", &path.display().to_string()]);
        assert_eq!(output.status.code(), Some(2), "{file}: {}", stderr(&output));
        assert!(stderr(&output).contains(file));
        assert_eq!(std::fs::read(&path).unwrap(), before, "{file}");
    }
}
