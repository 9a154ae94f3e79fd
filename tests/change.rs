//! `--edit`, `patch`, `ablate`, `edges`, `attribute --method`, `extract --mean`, `weights`, `lens --vector`, `run` and
//! `--record` as scripts call them: the content of their JSON and files, and the errors of wrong requests.

#[path = "common/binary.rs"]
mod binary;

use binary::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&run_well([args, &["--json", "-q", "--device", "cpu"]].concat())).unwrap()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

/// The values of a nested list.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

const PAIR: [&str; 10] = [
    "patch",
    "-m",
    CLASSIC,
    "--clean-ids",
    "1 2 3 4 5 6",
    "--corrupt-ids",
    "1 2 9 4 5 6",
    "--answer",
    "id:7",
    "--wrong=id:8",
];

#[test]
fn the_json_of_a_sweep() {
    let one = json_of(&PAIR);
    let contract = [
        "command",
        "at",
        "by",
        "shape",
        "metric",
        "values",
        "clean",
        "corrupt",
        "base",
        "normalized",
        "n",
        "standard_error",
        "ci",
        "p",
        "labels",
    ];
    assert_eq!(keys(&one)[..contract.len()], contract);
    assert_eq!(
        (&one["by"], &one["shape"], &one["metric"], &one["n"]),
        (&json!(["layer", "pos"]), &json!([3, 6]), &json!("logit-diff"), &json!(1))
    );
    for null in ["base", "standard_error", "ci", "p", "edits"] {
        assert_eq!(one[null], Value::Null, "{null}");
    }
    assert_eq!(one["labels"][1][2], "#3");
    // Normalized by its definition; the changed token's own stream is the clean run.
    let (clean, corrupt) = (one["clean"].as_f64().unwrap(), one["corrupt"].as_f64().unwrap());
    for (value, normalized) in flat(&one["values"]).iter().zip(flat(&one["normalized"])) {
        assert!(((value - corrupt) / (clean - corrupt) - normalized).abs() < 1e-12);
    }
    assert!((one["normalized"][0][2].as_f64().unwrap() - 1.0).abs() < 1e-4);

    let noise = json_of(&[&PAIR[..], &["--noise"]].concat());
    assert!((noise["normalized"][0][2].as_f64().unwrap() + 1.0).abs() < 1e-4);
    let every = json_of(&[&PAIR[..], &["--at", "every", "--by", "layer,head"]].concat());
    assert_eq!((&every["by"], &every["shape"]), (&json!(["site", "layer", "head"]), &json!([5, 3, 4])));
    assert_eq!(every["labels"][0], json!(["z", "q", "k", "v", "pattern"]));
}

/// The keys of a record, in order.
fn keys(record: &Value) -> Vec<&str> {
    record.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn estimates_beside_exact_values() {
    let exact = json_of(&PAIR);
    assert!(exact.get("fast").is_none() && exact.get("exact").is_none() && exact.get("correlation").is_none());
    let fast = json_of(&[&PAIR[..], &["--fast"]].concat());
    assert_eq!(fast["fast"], json!(true));
    assert!(fast.get("exact").is_none());
    let both = json_of(&[&PAIR[..], &["--fast", "--compare"]].concat());
    assert_eq!((&both["fast"], &both["values"]), (&json!(true), &fast["values"]));
    assert_ne!(both["exact"], both["values"]);
    let (estimated, values, again) = (flat(&both["values"]), flat(&exact["values"]), flat(&both["exact"]));
    // Both exact sweeps do the same arithmetic.
    assert_eq!(again, values);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (a, b) = (mean(&estimated), mean(&values));
    let sum = |of: &dyn Fn(f64, f64) -> f64| estimated.iter().zip(&values).map(|(x, y)| of(x - a, y - b)).sum::<f64>();
    let correlation = sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
    assert!((both["correlation"].as_f64().unwrap() - correlation).abs() < 1e-12);
    assert!(both.get("correlation_by_site").is_none(), "there is one site");

    // Of several sites each has its own, which is that of the site by itself; rounding differs with the cells that run together.
    let of = |sites: &[&str]| {
        let at: Vec<&str> = sites.iter().flat_map(|site| ["--at", site]).collect();
        json_of(&[&PAIR[..], &["--fast", "--compare"], &at].concat())
    };
    let several = of(&["resid_mid", "mlp_out"]);
    for site in ["resid_mid", "mlp_out"] {
        let alone = of(&[site])["correlation"].as_f64().unwrap();
        assert!((several["correlation_by_site"][site].as_f64().unwrap() - alone).abs() < 1e-4, "{site}");
    }
    assert_eq!(keys(&several["correlation_by_site"]), ["resid_mid", "mlp_out"]);
    assert_ne!(several["correlation"], several["correlation_by_site"]["mlp_out"]);
}

#[test]
fn the_json_and_files_of_edges() {
    let args = [&["edges"], &PAIR[1..]].concat();
    let found = json_of(&[&args[..], &["--top", "3"]].concat());
    let contract = ["command", "method", "metric", "n", "clean", "corrupt", "n_edges", "edges"];
    assert_eq!(keys(&found)[..contract.len()], contract);
    assert_eq!((&found["method"], &found["n"], &found["n_edges"]), (&json!("eap"), &json!(1), &json!(262)));
    assert!(found.get("faithfulness").is_none() && found.get("steps").is_none());
    let scores: Vec<f64> =
        found["edges"].as_array().unwrap().iter().map(|edge| edge["score"].as_f64().unwrap()).collect();
    assert_eq!(scores.len(), 3);
    assert!(scores.is_sorted_by(|a, b| a.abs() >= b.abs()), "{scores:?}");

    // All edges are the whole model, so they carry all of the metric.
    let all = json_of(&[&args[..], &["--top", "262", "--faithfulness", "--method", "eap-ig=2"]].concat());
    assert_eq!((&all["method"], &all["steps"]), (&json!("eap-ig"), &json!(2)));
    assert!((all["faithfulness"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{}", all["faithfulness"]);
    assert!((all["circuit"].as_f64().unwrap() - all["clean"].as_f64().unwrap()).abs() < 1e-5);

    let folder = tempfile::tempdir().unwrap();
    let csv = path(folder.path(), "edges.csv");
    let printed = run([&args[..], &["--top", "3", "--device", "cpu", "-o", &csv]].concat());
    assert_eq!(printed.status.code(), Some(0), "{}", stderr(&printed));
    let table = std::fs::read_to_string(&csv).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("from,to,score"));
    assert_eq!(lines.clone().count(), 262);
    let first = &found["edges"][0];
    let row = format!("{},{},", first["from"].as_str().unwrap(), first["to"].as_str().unwrap());
    assert!(lines.next().unwrap().starts_with(&row), "{row}");
}

/// Seen red: a step too many, no baseline, and a remainder of 0.
#[test]
fn the_json_of_gradients_times_values() {
    let args = ["attribute", "-m", CLASSIC, "--ids", "1 2 3", "--answer", "id:7", "--method"];
    let gradient = json_of(&[&args[..], &["gradient"]].concat());
    assert_eq!(gradient["method"], json!("gradient"));
    assert!(gradient.get("steps").is_none() && gradient.get("baseline_ids").is_none());
    let zeros = json_of(&[&args[..], &["integrated=4"]].concat());
    assert_eq!(
        (&zeros["method"], &zeros["steps"], &zeros["baseline_ids"], &zeros["by"]),
        (&json!("integrated"), &json!(4), &Value::Null, &json!("position"))
    );
    let from = json_of(&[&args[..], &["integrated=4", "--baseline-ids", "4 5 6"]].concat());
    assert_eq!(from["baseline_ids"], json!([4, 5, 6]));
    for found in [&zeros, &from] {
        let (total, rest) = (found["total"].as_f64().unwrap(), found["remainder"].as_f64().unwrap());
        assert!((flat(&found["values"]).iter().sum::<f64>() + rest - total).abs() < 1e-9);
    }
    assert_ne!(zeros["values"], from["values"]);
}

#[test]
fn a_pair_that_shows_nothing_is_told() {
    let at = |clean: &str, corrupt: &str| {
        let told = run([
            "patch",
            "-m",
            CLASSIC,
            "--device",
            "cpu",
            "--clean-ids",
            clean,
            "--corrupt-ids",
            corrupt,
            "--answer",
            "id:7",
            "--wrong=id:8",
        ]);
        assert_eq!(told.status.code(), Some(0), "{}", stderr(&told));
        stderr(&told)
    };
    let (one, other) = ("1 2 3 4 5 6", "1 2 9 4 5 6");
    let less = "the answer is likelier in the corrupt run";
    // JSON has it too.
    let notes = &json_of(&PAIR)["notes"];
    assert!(notes[0].as_str().unwrap().contains(less) && notes.as_array().unwrap().len() == 1, "{notes}");
    let mut turned = PAIR;
    turned.swap(4, 6);
    assert_eq!(json_of(&turned).get("notes"), None);
    assert!(at(one, other).contains(less));
    assert!(!at(other, one).contains("note:"));
    assert!(at(one, one).contains("note:"));
    assert!(!at(one, one).contains(less));
}

#[test]
fn pairs_and_their_statistics() {
    let folder = tempfile::tempdir().unwrap();
    let file = path(folder.path(), "pairs.jsonl");
    let line = |first: u32| {
        json!({"clean": [first, 2, 3, 4], "corrupt": [first, 2, 9, 4], "answer": 7, "wrong": 8}).to_string()
    };
    std::fs::write(&file, [1, 11, 21].map(line).join("\n\n")).unwrap();
    let all = json_of(&["patch", "-m", CLASSIC, "--pairs", &file]);
    assert_eq!(all["n"], 3);
    let each = |first: &str| {
        let (clean, corrupt) = (format!("{first} 2 3 4"), format!("{first} 2 9 4"));
        let pair = ["--clean-ids", &clean, "--corrupt-ids", &corrupt, "--answer", "id:7", "--wrong", "id:8"];
        let found = json_of(&[&["patch", "-m", CLASSIC][..], &pair].concat());
        assert_eq!(found["effect_standard_error"], Value::Null);
        (flat(&found["values"]), found["corrupt"].as_f64().unwrap())
    };
    let each = ["1", "11", "21"].map(each);
    let error_of_mean = |of: [f64; 3]| {
        let mean = of.iter().sum::<f64>() / 3.0;
        (of.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2.0 / 3.0).sqrt()
    };
    for (cell, mean) in flat(&all["values"]).iter().enumerate() {
        let of = [0, 1, 2].map(|pair| each[pair].0[cell]);
        assert!((of.iter().sum::<f64>() / 3.0 - mean).abs() < 1e-9);
        assert!((flat(&all["standard_error"])[cell] - error_of_mean(of)).abs() < 1e-9);
        let effects = [0, 1, 2].map(|pair| of[pair] - each[pair].1);
        assert!((flat(&all["effect_standard_error"])[cell] - error_of_mean(effects)).abs() < 1e-9);
        let ci = &flat(&all["ci"])[2 * cell..2 * cell + 2];
        assert!(ci[0] <= *mean && *mean <= ci[1]);
    }
    assert!(flat(&all["p"]).iter().all(|p| (0.25..=1.0).contains(p)), "three pairs have eight patterns of signs");

    for extension in ["json", "csv", "npz", "safetensors", "png", "svg"] {
        let out = path(folder.path(), &format!("out.{extension}"));
        run_well(["patch", "-m", CLASSIC, "--pairs", &file, "-o", &out, "-q", "--device", "cpu"]);
        assert!(std::fs::metadata(&out).unwrap().len() > 500, "{extension}");
    }
    let rows = std::fs::read_to_string(folder.path().join("out.csv")).unwrap();
    assert_eq!(rows.lines().count(), 1 + 3 * 4);
}

#[test]
fn ablation_by_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let other = path(folder.path(), "other.npz");
    run_well(["extract", "-m", CLASSIC, "--ids", "4 3 2 1", "-k", "z.*", "-o", &other, "-q", "--device", "cpu"]);
    let texts = ["ablate", "-m", CLASSIC, "--ids", "1 2 3 4", "--ids", "5 6 7 8", "--at", "z"];
    for with in ["zero", "mean", &other] {
        let found = json_of(&[&texts[..], &["--with", with]].concat());
        assert_eq!(
            (&found["shape"], &found["metric"], &found["n"]),
            (&json!([3, 4]), &json!("loss"), &json!(2)),
            "{with}"
        );
        assert_eq!((&found["clean"], &found["normalized"]), (&Value::Null, &Value::Null));
        assert!(found["base"].is_f64());
    }
    // Ablating a text with its own values changes nothing.
    let own = path(folder.path(), "own.npz");
    run_well(["extract", "-m", CLASSIC, "--ids", "1 2 3 4", "-k", "z.*", "-o", &own, "-q", "--device", "cpu"]);
    let same = json_of(&["ablate", "-m", CLASSIC, "--ids", "1 2 3 4", "--at", "z", "--with", &own]);
    assert!(flat(&same["values"]).iter().all(|value| *value == same["base"].as_f64().unwrap()));
}

#[test]
fn an_edited_file_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mean = path(folder.path(), "mean.npz");
    let text = ["extract", "-m", CLASSIC, "--ids", "1 2 3 4"];
    run_well([&text[..], &["-k", "z.1", "--mean", "-o", &mean, "-q", "--device", "cpu"]].concat());
    // Setting every position to the mean equals the edit `mean`.
    let set = format!("z.1:set={mean}");
    let by_file = json_of(&[&text[..], &["--edit", &set]].concat());
    let by_op = json_of(&[&text[..], &["--edit", "z.1:mean"]].concat());
    assert_eq!(by_file["hooks"], by_op["hooks"]);
    assert_eq!(by_file["edits"][0]["sha256"], by_op["edits"][0]["sha256"]);
    assert_eq!(by_op["edits"][0]["edit"], "blocks.1.attn.hook_z:mean");
    let plain = json_of(&text);
    assert_eq!(plain.get("edits"), None);
    assert_ne!(plain["hooks"], by_op["hooks"]);
    // Freezing, and patching from the text itself, change nothing.
    for edit in ["blocks.*.hook_mlp_out:freeze", "resid_pre.1:patch"] {
        let source: &[&str] = if edit.ends_with("patch") { &["--source-ids", "1 2 3 4"] } else { &[] };
        let same = json_of(&[&text[..], &["--edit", edit], source].concat());
        let (a, b) = (flat(&same["hooks"]["ln_final.hook_out"]), flat(&plain["hooks"]["ln_final.hook_out"]));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{edit}");
    }
    let svg = path(folder.path(), "lens.svg");
    run_well(["lens", "The cat sat", "--edit", "z.3@head=3:zero", "-o", &svg, "-q", "--device", "cpu"]);
    assert!(std::fs::read_to_string(&svg).unwrap().contains("edited: blocks.3.attn.hook_z@head=3:zero"));
    let page = path(folder.path(), "page.html");
    run_well(["report", "The cat sat", "--edit", "z.3@head=3:zero", "-o", &page, "-q", "--device", "cpu"]);
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("(edited)") && page.contains("--edit"));
}

/// In windows an edit's positions are the text's, and it is made in every window that holds its position.
#[test]
fn edits_in_windows() {
    let ids: Vec<String> = (0..20).map(|i| (i * 7 % 50 + 1).to_string()).collect();
    let source: Vec<String> = (0..20).map(|i| (i * 3 % 40 + 2).to_string()).collect();
    let (ids, source) = (ids.join(" "), source.join(" "));
    // Windows 0..8, 4..12, 8..16, 12..20.
    let rows = |ids: &str, edits: &[&str]| -> Vec<Vec<f64>> {
        let json = json_of(&[&["extract", "--ids", ids, "--window", "8:4", "-k", "resid_post.1"], edits].concat());
        json["hooks"]["blocks.1.hook_resid_post"][0].as_array().unwrap().iter().map(flat).collect()
    };
    let plain = rows(&ids, &[]);
    let changed = |got: &[Vec<f64>]| (0..20).filter(|i| got[*i] != plain[*i]).collect::<Vec<usize>>();
    let zeroed = rows(&ids, &["--edit", "resid_post.1@pos=10+-1:zero"]);
    assert_eq!(changed(&zeroed), [10, 19]);
    assert!(zeroed[10].iter().chain(&zeroed[19]).all(|v| *v == 0.0));
    // Rows 12..16 come from the window 8..16, which holds position 10; rows from 16 on from one that does not.
    let before = rows(&ids, &["--edit", "resid_pre.1@pos=10:zero"]);
    assert_eq!(changed(&before), [10, 11, 12, 13, 14, 15]);
    let near = |got: &[f64], want: &[f64]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs().max(1.0));
    let mean = rows(&ids, &["--edit", "resid_post.1@pos=3:mean"]);
    let want: Vec<f64> = (0..plain[0].len()).map(|d| plain.iter().map(|row| row[d]).sum::<f64>() / 20.0).collect();
    assert_eq!(changed(&mean), [3]);
    assert!(near(&mean[3], &want), "{:?} for {want:?}", mean[3]);
    let patched = rows(&ids, &["--edit", "resid_post.1@pos=5+13:patch", "--source-ids", &source]);
    let of_source = rows(&source, &[]);
    assert_eq!(changed(&patched), [5, 13]);
    assert!(near(&patched[5], &of_source[5]) && near(&patched[13], &of_source[13]));
    let frozen = rows(&ids, &["--edit", "resid_pre.1@pos=10:zero", "--edit", "resid_post.1:freeze"]);
    assert!(frozen.iter().zip(&plain).all(|(got, want)| near(got, want)));
}

/// `--check` compares an edited run with the reference, edited alike.
#[test]
fn an_edited_run_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let out = path(folder.path(), "checked.npz");
    let edits =
        ["--edit", "z.0@head=1,pos=1..:scale=-2", "--edit", "resid_pre.1@pos=-1:mean", "--edit", "mlp_out.1:freeze"];
    let text = [
        "extract",
        "-m",
        CLASSIC,
        "--ids",
        "1 2 3 4 5",
        "-k",
        "resid_post.*",
        "-k",
        "pattern.1",
        "--check",
        "-o",
        &out,
    ];
    let output = run([&text[..], &edits, &["--device", "cpu"]].concat());
    let said = stderr(&output);
    assert!(output.status.success() && said.contains("all values are within bounds"), "{said}");
    // A position of which nothing is recorded in the prefix, and windows.
    let windows = run([&text[..], &["--edit", "z.1@pos=3:zero", "--window", "3:2", "--device", "cpu"]].concat());
    assert!(windows.status.success(), "{}", stderr(&windows));
}

#[test]
fn wrong_requests_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let typo = path(folder.path(), "typo.jsonl");
    std::fs::write(&typo, r#"{"claen": "a", "corrupt": "b", "answer": "c"}"#).unwrap();
    // A file has its own tokens: no option stands for them.
    let [unasked, mixed] = ["unasked.jsonl", "mixed.jsonl"].map(|name| path(folder.path(), name));
    std::fs::write(&unasked, r#"{"clean": [1, 2], "corrupt": [1, 3]}"#).unwrap();
    let lines = [
        r#"{"clean": [1, 2], "corrupt": [1, 3], "answer": 4}"#,
        r#"{"clean": [1, 2], "corrupt": [1, 3], "answer": 4, "wrong": 5}"#,
    ];
    std::fs::write(&mixed, lines.join("\n")).unwrap();
    let pairs = |file: &str| ["patch", "-m", CLASSIC, "--pairs", file].map(String::from).to_vec();
    let ids = ["-m", CLASSIC, "--ids", "1 2 3"];
    let extract = |rest: &[&str]| [&["extract"], &ids[..], rest].concat().iter().map(|s| s.to_string()).collect();
    let patch = |rest: &[&str]| [&PAIR[..], rest].concat().iter().map(|s| s.to_string()).collect();
    let cases: Vec<(Vec<String>, i32, &str)> = vec![
        (extract(&["--edit", "z.1@head=9:zero"]), 2, "9 of 4 heads"),
        (extract(&["--edit", "z.1"]), 2, "no `:OP`"),
        (extract(&["--edit", "zz.1:zero"]), 2, "nearest"),
        (extract(&["--edit", "z.1:patch"]), 2, "--source"),
        (extract(&["--edit", "z.1:zero", "--source-ids", "1 2"]), 2, "no edit is a patch"),
        (extract(&["--edit", "z.1:set=/there/is/no.npy"]), 1, "cannot read"),
        (extract(&["--edit", "z.1:patch", "--source-ids", "1 2"]), 2, "do not line up"),
        (extract(&["--edit", "pattern.1:mean"]), 2, "two or more"),
        (extract(&["-k", "pattern.0", "--mean"]), 2, "pairs of tokens"),
        (patch(&["--at", "resid_prev"]), 2, "resid_pre"),
        (patch(&["--by", "layer,head"]), 2, "no axis head"),
        (patch(&["--by", "layer,layer"]), 2, "layer is named twice"),
        (patch(&["--at", "every", "--at", "resid_pre"]), 2, "resid_pre is named twice"),
        (patch(&["--metric", "logits"]), 2, "none of logit-diff"),
        (patch(&["-o", "a.txt"]), 2, ".json, .csv"),
        (vec!["patch".into(), "--pairs".into(), typo], 1, "is \"clean\" meant?"),
        (pairs(&unasked), 1, "has no \"answer\", which the metric needs; add it"),
        (pairs(&mixed), 1, "has no \"wrong\", and other pairs have one"),
        (
            [pairs(&unasked), vec!["--metric".into(), "kl".into(), "--at".into(), "z.1".into()]].concat(),
            2,
            "without its layer",
        ),
        (vec!["patch".into(), "--clean".into(), "a".into()], 2, "--corrupt"),
        (vec!["ablate".into(), "a cat".into(), "--metric".into(), "logit".into()], 2, "--answer"),
        (
            ["ablate", "-m", CLASSIC, "--ids", "1 2", "--at", "z", "--with", "/there/is/no.npy"]
                .map(String::from)
                .to_vec(),
            1,
            "--with: cannot read",
        ),
        (vec!["weights".into(), "blocks.1.attn.WQ".into()], 2, "blocks.1.attn.W_Q"),
    ];
    for (args, code, what) in cases {
        let output = run(&args);
        let said = stderr(&output);
        assert_eq!((output.status.code(), said.contains(what)), (Some(code), true), "{args:?}: {said}");
    }
    let longer = run(["patch", "-m", CLASSIC, "--clean-ids", "1 2 3", "--corrupt-ids", "1 4", "--answer", "id:7"]);
    assert!(stderr(&longer).contains("1: \"#2\" / \"#4\" | 2: \"#3\" / -"), "{}", stderr(&longer));
    let ends = ["--align", "end", "--clean-ids", "1 2 3", "--corrupt-ids", "2 4", "--answer", "id:7"];
    assert_eq!(json_of(&[&["patch", "-m", CLASSIC][..], &ends].concat())["shape"], json!([3, 2]));
}

#[test]
fn weights_and_directions() {
    let folder = tempfile::tempdir().unwrap();
    let file = path(folder.path(), "w.npz");
    run_well(["weights", "-m", CLASSIC, "blocks.*.attn.W_?", "W_U", "-o", &file, "-q"]);
    let listed = json_of_weights(&["weights", "-m", CLASSIC, "*"]);
    assert_eq!(listed.as_array().unwrap().len(), 3 * 16 + 6);
    // The embedding of a token, read in tokens, is nearest to that token where the two are tied and it is long.
    let vector = format!("{}#unembed.W_U", path(folder.path(), "u.npz"));
    run_well(["weights", "-m", CLASSIC, "embed.W_E", "-o", &path(folder.path(), "e.npz"), "-q"]);
    let read = run_well(["lens", "-m", CLASSIC, "--vector", &path(folder.path(), "e.npz"), "--json", "-q"]);
    let read: Value = serde_json::from_str(&read).unwrap();
    assert_eq!(read["vectors"].as_array().unwrap().len(), 101);
    // A file that cannot be read is wrong input, not a wrong argument.
    let output = run(["lens", "-m", CLASSIC, "--vector", &vector]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let both = run(["lens", "-m", CLASSIC, "--vector", &vector, "a text"]);
    assert_eq!(both.status.code(), Some(2), "a text is not ignored: {}", stderr(&both));
}

/// What is recorded runs again, after a last line without its end too. `--check` overwrites nothing, however a step names its
/// output file.
#[test]
fn steps_are_recorded_repeated_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (steps, out) = (path(folder.path(), "steps.toml"), path(folder.path(), "out.json"));
    let lock = path(folder.path(), "steps.lock.json");
    std::fs::write(&steps, "# of a paper").unwrap();
    let extract = ["extract", "-m", CLASSIC, "--ids", "1 2 3", "-k", "ln_f", "-q", "--device", "cpu"];
    run_well([&extract[..], &[&format!("-o{out}"), "--record", &steps]].concat());
    run_well(["devices", "--json", "--record", &steps]);
    let text = std::fs::read_to_string(&steps).unwrap();
    assert!(text.starts_with("# of a paper\n\n[[step]]\nname = \"1 extract\"\n"), "{text}");
    assert!(text.contains("\n\n[[step]]\nname = \"2 devices\"\n"), "{text}");

    run_well(["run", &steps, "-q"]);
    let locked: Value = serde_json::from_slice(&std::fs::read(&lock).unwrap()).unwrap();
    assert_eq!(locked["steps"][0]["outputs"][0]["file"], json!(out));
    assert_eq!(locked["steps"][1]["model"], Value::Null);
    let written = || std::fs::metadata(&out).unwrap().modified().unwrap();
    let before = written();
    run_well(["run", &steps, "--check", "-q"]);
    assert_eq!(written(), before, "--check wrote the output again");

    // An output of other numbers is named. The lock file has its hash, as if it had been written so.
    let read = |file: &str| std::fs::read_to_string(file).unwrap();
    let text = read(&out);
    let (before, values) = text.split_at(text.find("\"hooks\"").unwrap());
    let changed = format!("{before}{}", values.replacen("0.", "1.", 1));
    std::fs::write(&out, &changed).unwrap();
    let sha256: String = Sha256::digest(&changed).iter().map(|byte| format!("{byte:02x}")).collect();
    let hash = locked["steps"][0]["outputs"][0]["sha256"].as_str().unwrap();
    std::fs::write(&lock, read(&lock).replace(hash, &sha256)).unwrap();
    let refused = run(["run", &steps, "--check", "-q"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("out.json: the numbers of hooks"), "{}", stderr(&refused));
    let before = written();

    // A step that is repeated has no stdin.
    let refused = actscope(["tokens", "--record", &steps]).write_stdin("The cat").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("a recorded step cannot read stdin"), "{}", stderr(&refused));
    assert!(!read(&steps).contains("tokens"));

    // Flags and the output file in one argument are understood by clap only.
    let args = json!(["extract", "-m", CLASSIC, "--ids", "1 2", format!("-qo{out}")]);
    std::fs::write(&steps, format!("[[step]]\nname = \"a\"\nargs = {args}\n")).unwrap();
    let refused = run(["run", &steps]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("write its output file as two arguments"), "{}", stderr(&refused));
    assert_eq!(written(), before, "a step that is refused ran");
    // What is no file of steps is left as it is.
    std::fs::write(&steps, "text = \"other").unwrap();
    let refused = run(["devices", "--record", &steps]);
    assert!(
        stderr(&refused).contains("is not a file of steps, so nothing can be appended to it"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(std::fs::read_to_string(&steps).unwrap(), "text = \"other");
    let refused = run(["run", &steps, "--record", &steps]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
}

fn json_of_weights(args: &[&str]) -> Value {
    serde_json::from_str(&run_well([args, &["--json", "-q"]].concat())).unwrap()
}
