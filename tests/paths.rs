//! Compares path patching with f64 values from transformers (tools/goldens/paths.py), on four checkpoints and three devices, and
//! checks properties that hold for all values. The bound is that of tests/edits.rs. Seen red: the wrong paths of
//! `another_path_would_be_seen`; texts that line up at their starts; a change at all positions for one; other heads not frozen; head 0's
//! output, or a receiver's values of head 0, for every head.

mod common;

use actscope::analysis::cases::{Case, Cases};
use actscope::analysis::metric::Question;
use actscope::analysis::path::PathSweep;
use actscope::analysis::sweep::{SweepAxis, Swept};
use actscope::device::Choice;
use actscope::{Edit, Error, Hooks, Select, Session, Site};
use common::{DEVICES, floats, goldens, ids, open};
use ndarray::Axis;
use serde_json::Value;

const NAMES: [&str; 4] = ["classic", "untied_erf", "inverse_f16", "no_ln"];
const BOUND: f64 = 2e-5;

/// The axes that a golden's path leaves open, and positions.
fn axes(wanted: &Value) -> Vec<SweepAxis> {
    let from = wanted["path"].as_str().unwrap().split("...").next().unwrap();
    let (name, given) = (from.split('.').next().unwrap(), from.split('.').count() - 1);
    let mut axes = Vec::new();
    axes.extend((given < 1).then_some(SweepAxis::Layer));
    axes.extend((name == "head" && given < 2).then_some(SweepAxis::Head));
    axes.extend((wanted["pos"] == true).then_some(SweepAxis::Pos));
    axes
}

/// The case of a golden.
fn case(golden: &Value, wanted: &Value) -> Case {
    let token = |name: &str| golden[name].as_u64().unwrap() as u32;
    let question = |ids: &[u32]| Question { position: ids.len() - 1, answer: token("answer"), wrong: token("wrong") };
    let (here, source) = (ids(&wanted["ids"]), ids(&wanted["source"]));
    Case {
        question: question(&here),
        aligned: here.len().min(source.len()),
        source: Some((source.clone(), question(&source))),
        ids: here,
        from_source: true,
    }
}

fn swept(session: &Session, golden: &Value, wanted: &Value, path: &str, frozen: bool) -> Result<Swept, Error> {
    let metric = wanted["metric"].as_str().unwrap().parse().unwrap();
    let sweep = PathSweep::new(path, &axes(wanted), frozen, metric, session.model().config())?;
    session.path_sweep(&sweep, &[case(golden, wanted)])
}

/// The largest difference as a share of the largest value, the unchanged run's among them.
fn off(got: &[f64], wanted: &Value) -> f64 {
    let want = floats(&wanted["values"]);
    assert_eq!(got.len(), want.len());
    let largest = want.iter().chain(&[wanted["here"].as_f64().unwrap()]).fold(0.0f64, |a, b| a.max(b.abs()));
    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) })
        / largest
}

#[test]
fn every_path_gives_what_transformers_gives() {
    let goldens = goldens("paths.json");
    for choice in DEVICES {
        for name in NAMES {
            let (golden, session) = (&goldens[name], open(name, choice));
            for wanted in golden["paths"].as_array().unwrap() {
                let (path, frozen) = (wanted["path"].as_str().unwrap(), wanted["frozen"] == true);
                let what = format!("{choice:?} {name} {path}, frozen {frozen}, {}", wanted["metric"]);
                let swept = swept(&session, golden, wanted, path, frozen).unwrap_or_else(|e| panic!("{what}: {e}"));
                let shape: Vec<usize> = floats(&wanted["shape"]).iter().map(|n| *n as usize).collect();
                assert_eq!(swept.shape, shape, "{what}");
                let off = off(&swept.values[0], wanted);
                assert!(off <= BOUND, "{what}: off by {off:.1e}: {:?} for {}", swept.values[0], wanted["values"]);
                let here = wanted["here"].as_f64().unwrap();
                assert!((swept.unchanged[0] - here).abs() <= BOUND * here.abs().max(1.0), "{what}");
            }
        }
    }
}

/// What the comparison above would say of other paths: each is off by more than the bound.
#[test]
fn another_path_would_be_seen() {
    let goldens = goldens("paths.json");
    let mut seen = 0;
    for name in NAMES {
        let (golden, session) = (&goldens[name], open(name, Choice::Cpu));
        for wanted in golden["paths"].as_array().unwrap() {
            let (path, frozen) = (wanted["path"].as_str().unwrap(), wanted["frozen"] == true);
            // Heads held still or not; another receiver; another sender.
            let mut others = vec![(path.to_string(), !frozen)];
            for (from, to) in
                [("...k.", "...v."), ("...v.", "...k."), ("...q.", "...v."), ("head.0...", "head.0...v.1.0+")]
            {
                let other = path.replacen(from, to, 1);
                others.extend((other != path).then_some((other, frozen)));
            }
            for (other, frozen) in others {
                let Ok(swept) = swept(&session, golden, wanted, &other, frozen) else { continue };
                // From the last block but one to the logits no other head is on the way of a head's direct path.
                if off(&swept.values[0], wanted) > BOUND {
                    seen += 1;
                }
            }
        }
    }
    assert!(seen >= 60, "{seen} other paths were seen");
}

#[test]
fn a_source_that_is_the_same_text_changes_nothing() {
    let goldens = goldens("paths.json");
    for choice in DEVICES {
        let (golden, session) = (&goldens["classic"], open("classic", choice));
        for wanted in golden["paths"].as_array().unwrap() {
            let mut same = wanted.clone();
            same["source"] = same["ids"].clone();
            let swept = swept(&session, golden, &same, same["path"].as_str().unwrap(), same["frozen"] == true).unwrap();
            for value in &swept.values[0] {
                let off = (value - swept.unchanged[0]).abs() / swept.unchanged[0].abs().max(1e-3);
                assert!(off <= BOUND || same["metric"] == "kl" && value.abs() < 1e-6, "{choice:?} {}", same["path"]);
            }
        }
    }
}

/// Cells that run together are cells alone, edits of the caller's included. Seen red with the first cell's values for all receivers.
#[test]
fn cells_together_are_cells_alone() {
    let goldens = goldens("paths.json");
    let (golden, session) = (&goldens["classic"], open("classic", Choice::Cpu));
    let config = session.model().config();
    let (last, heads) = (config.n_layer - 1, config.n_head);
    let wanted = &golden["paths"][0];
    let case = case(golden, wanted);
    let mut edits = session.model().hooks();
    edits.edit_at(Site::ResidPre(last), Select::all(), Edit::Scale(1.5)).unwrap();
    for frozen in [false, true] {
        for to in [format!("q.{last}.0+v.{last}.{}", heads - 1), format!("mlp.{last}"), "logits".into()] {
            let run = |from: &str| {
                let metric = "logit-diff".parse().unwrap();
                let sweep = PathSweep::new(&format!("{from}...{to}"), &[], frozen, metric, config).unwrap();
                let all = Cases { cases: std::slice::from_ref(&case), edits: &edits, source_edits: &edits };
                pollster::block_on(session.path_sweep_async(&sweep, all, None)).unwrap()
            };
            let all = run("head");
            for (cell, value) in all.values[0].iter().enumerate() {
                let alone = run(&format!("head.{}.{}", cell / heads, cell % heads));
                assert_eq!(alone.shape, Vec::<usize>::new());
                let off = (alone.values[0][0] - value).abs() / value.abs().max(1e-3);
                assert!(off <= 4e-6, "frozen {frozen}, to {to}, cell {cell}: {off:.1e}");
            }
        }
    }
}

/// The caller's edits are in force where a sender's output is computed, and in the run that gets the difference. A path to the logits is
/// such a run: the output in the source's run less that in the text's own is added to the last stream, where the texts line up. Seen red
/// without the edits in one or the other.
#[test]
fn edits_are_in_force_in_every_run_of_a_path() {
    let session = open("classic", Choice::Cpu);
    let config = session.model().config();
    let (last, heads, width) = (config.n_layer - 1, config.n_head, config.n_embd);
    let (here, source) = (vec![3, 1, 4, 1, 5], vec![9, 2, 6, 5]);
    let offset = here.len() - source.len();
    let question = |ids: &[u32]| Question { position: ids.len() - 1, answer: 1, wrong: 2 };
    let case = Case {
        question: question(&here),
        aligned: source.len(),
        source: Some((source.clone(), question(&source))),
        ids: here.clone(),
        from_source: true,
    };
    let edited = |factor: f32| {
        let mut hooks = session.model().hooks();
        for site in [Site::V(1), Site::MlpOut(last)] {
            hooks.edit_at(site, Select::all(), Edit::Scale(factor)).unwrap();
        }
        hooks
    };
    let (edits, source_edits) = (edited(0.5), edited(2.0));
    let run = |ids: &[u32], mut hooks: Hooks, site: Site| {
        hooks.tap_at(site, Select::all()).unwrap();
        let mut capture = session.run(&session.model().batch(&[ids]).unwrap(), &hooks).unwrap();
        capture.take(site).unwrap().index_axis_move(Axis(0), 0)
    };
    for from in ["head", "mlp"] {
        let sweep =
            PathSweep::new(&format!("{from}...logits"), &[], false, "logit-diff".parse().unwrap(), config).unwrap();
        let all = Cases { cases: std::slice::from_ref(&case), edits: &edits, source_edits: &source_edits };
        let swept = pollster::block_on(session.path_sweep_async(&sweep, all, None)).unwrap();
        assert_eq!(swept.values[0].len(), if from == "head" { (last + 1) * heads } else { last + 1 });
        for (cell, got) in swept.values[0].iter().enumerate() {
            let output = |ids: &[u32], hooks: &Hooks| match from {
                "head" => run(ids, hooks.clone(), Site::Result(cell / heads)).index_axis_move(Axis(1), cell % heads),
                _ => run(ids, hooks.clone(), Site::MlpOut(cell)),
            };
            let (own, other) = (output(&here, &edits), output(&source, &source_edits));
            let difference = other - own.slice_axis(Axis(0), (offset..).into());
            let added = vec![0.0; offset * width].into_iter().chain(difference).collect();
            let mut hooks = edits.clone();
            hooks.edit_at(Site::ResidPost(last), Select::all(), Edit::Add(added)).unwrap();
            let logits = run(&here, hooks, Site::Unembed);
            let want = f64::from(logits[[here.len() - 1, 1]]) - f64::from(logits[[here.len() - 1, 2]]);
            assert!((got - want).abs() <= BOUND * want.abs().max(1.0), "{from}, cell {cell}: {got}, expected {want}");
        }
    }
}

#[test]
fn paths_that_do_not_exist() {
    let session = open("classic", Choice::Cpu);
    let config = session.model().config();
    let (last, heads) = (config.n_layer - 1, config.n_head);
    let cases: Vec<(String, &[SweepAxis], &str)> = vec![
        ("head.0.0".into(), &[], "FROM...TO"),
        ("neuron.0...logits".into(), &[], "sends nothing"),
        ("mlp.0.1...logits".into(), &[], "more numbers"),
        ("head.x...logits".into(), &[], "not the number"),
        (format!("head.{}...logits", last + 1), &[], "does not exist"),
        (format!("head.0.{heads}...logits"), &[], "does not exist"),
        ("head.0...out".into(), &[], "receives nothing"),
        ("head.0...q.1".into(), &[], "receives nothing"),
        (format!("head.0...q.1.{heads}"), &[], "does not exist"),
        ("head.0...q.1.0+q.1.0".into(), &[], "twice"),
        ("head.0...q.1.0+logits".into(), &[], "stands alone"),
        ("head...q.0.0".into(), &[], "no layer comes before"),
        ("mlp...mlp.0".into(), &[], "no layer comes before"),
        ("head.1...q.1.0".into(), &[], "layer 1 does not come before"),
        ("head...logits".into(), &[SweepAxis::Layer], "leaves head open"),
        ("head.0...logits".into(), &[SweepAxis::Layer, SweepAxis::Head], "layer is not an axis"),
        ("mlp...logits".into(), &[SweepAxis::Layer, SweepAxis::Dim], "dim is not an axis"),
    ];
    for (path, axes, message) in cases {
        let error = PathSweep::new(&path, axes, false, "logit".parse().unwrap(), config).unwrap_err();
        assert!(error.to_string().contains(message), "{path}: {error}");
    }
    let sweep = PathSweep::new("head...logits", &[], false, "logit".parse().unwrap(), config).unwrap();
    let question = Question { position: 1, answer: 1, wrong: 2 };
    let alone = Case { ids: vec![1, 2], question, source: None, aligned: 2, from_source: true };
    let error = session.path_sweep(&sweep, &[alone]).unwrap_err().to_string();
    assert!(error.contains("case 0 has no source run"), "{error}");
}
