//! What gradients attribute, against f64 values from transformers and PyTorch's autograd (tools/goldens/attributions.py) on four
//! checkpoints and three devices: sweeps estimated from one gradient, logits by gradients and integrated gradients, scores of
//! edges, and runs with some edges only. And gradients of blocks that are run again, against those of a run that keeps all.

mod common;

use actscope::analysis::attribute::{Attribution, By};
use actscope::analysis::attribute_gradient::Along;
use actscope::analysis::cases::{Case, Cases};
use actscope::analysis::edges::{Edge, Writer, readers};
use actscope::analysis::gradients::{GradientOptions, Target, tape_bytes};
use actscope::analysis::metric::{Metric, Question};
use actscope::analysis::sweep::{Replacement, Sweep, SweepSite};
use actscope::device::Choice;
use actscope::hooks::capture::Capture;
use actscope::model::forward::Start;
use actscope::verify::hooks::ROUNDING;
use actscope::{Edit, Select, Session, Site};
use common::{DEVICES, floats, goldens, ids, open};
use ndarray::Axis;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const NAMES: [&str; 4] = ["classic", "untied_erf", "inverse_f16", "no_ln"];
/// Of the largest value. The bound of sweeps in tests/edits.rs; the contract is 1e-4. Seen red: the gradient taken at the source run,
/// the points of a line half a step off, EAP-IG's points one step off, a head's queries with the weights of keys, a LayerNorm
/// without its slope, and a run with some edges whose MLPs read the corrupt stream.
const BOUND: f64 = 2e-5;

fn named(value: &Value) -> BTreeMap<String, f64> {
    value.as_object().unwrap().iter().map(|(name, v)| (name.clone(), v.as_f64().unwrap())).collect()
}

/// Checks values against expected ones, as shares of the largest, `among` being others that it may be.
fn check(what: &str, got: &[f64], want: &[f64], among: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().chain(among).fold(0.0f64, |a, b| a.max(b.abs()));
    for (n, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= BOUND * largest, "{what}: value {n} is {got}, expected {want} of {largest}");
    }
}

/// The corrupt text with the clean one as its source, or the other way round.
fn case(golden: &Value, noise: bool) -> Case {
    let token = |name: &str| golden[name].as_u64().unwrap() as u32;
    let question = |ids: &[u32]| Question { position: ids.len() - 1, answer: token("answer"), wrong: token("wrong") };
    let (clean, corrupt) = (ids(&golden["clean"]), ids(&golden["corrupt"]));
    let (here, source) = if noise { (clean, corrupt) } else { (corrupt, clean) };
    let (asked, of_source) = (question(&here), question(&source));
    Case { aligned: here.len(), ids: here, question: asked, source: Some((source, of_source)), from_source: !noise }
}

fn sweep(session: &Session, at: &str, by: &Value, metric: &Value) -> Sweep {
    Sweep {
        sites: vec![SweepSite::find(at, session.model().config()).unwrap()],
        axes: by.as_array().unwrap().iter().map(|axis| axis.as_str().unwrap().parse().unwrap()).collect(),
        replacement: Replacement::Patch,
        metric: metric.as_str().unwrap().parse().unwrap(),
    }
}

#[test]
fn fast_sweeps() {
    let goldens = goldens("attributions.json");
    for (name, choice) in NAMES.iter().flat_map(|name| DEVICES.map(|choice| (name, choice))) {
        let session = open(name, choice);
        for wanted in goldens[name]["fast"].as_array().unwrap() {
            let what = format!("{name} {choice:?} {}", wanted["at"]);
            let noise = wanted["noise"].as_bool().unwrap();
            let sweep = sweep(&session, wanted["at"].as_str().unwrap(), &wanted["by"], &wanted["metric"]);
            let found = session.patch_fast(&sweep, &[case(&goldens[name], noise)]).unwrap();
            let [clean, corrupt] = ["clean", "corrupt"].map(|key| wanted[key].as_f64().unwrap());
            let (here, there) = if noise { (clean, corrupt) } else { (corrupt, clean) };
            check(&what, &found.values[0], &floats(&wanted["values"]), &[clean, corrupt]);
            check(&what, &[found.unchanged[0], found.source[0]], &[here, there], &[]);
        }
    }
}

/// Several pairs are those one by one, several sites those apart, and edits are in force in both runs. Seen red without the edits in
/// one or the other, and with all sites in the cells of the first.
#[test]
fn fast_sweeps_of_several() {
    let (session, golden) = (open("classic", Choice::Cpu), &goldens("attributions.json")["classic"]);
    let config = session.model().config();
    let (one, two) = (case(golden, false), case(golden, true));
    let two = Case { from_source: true, ..two };
    let site = |name: &str| SweepSite::find(name, config).unwrap();
    let axes = vec!["layer".parse().unwrap(), "head".parse().unwrap()];
    let both =
        Sweep { sites: vec![site("z"), site("q")], axes, replacement: Replacement::Patch, metric: Metric::Logprob };
    let all = session.patch_fast(&both, &[one.clone(), two.clone()]).unwrap();
    assert_eq!(all.shape, [2, 3, 4]);
    for (n, case) in [one.clone(), two.clone()].iter().enumerate() {
        assert_eq!(all.values[n], session.patch_fast(&both, std::slice::from_ref(case)).unwrap().values[0]);
    }
    // Sweeps by axes of their own share one gradient.
    let (none, cases) = (session.model().hooks(), [one.clone(), two.clone()]);
    let both_cases = Cases { cases: &cases, edits: &none, source_edits: &none };
    let of_mlp = Sweep { sites: vec![site("mlp_out")], axes: vec!["pos".parse().unwrap()], ..both.clone() };
    let sweeps = [both.clone(), of_mlp.clone()];
    let each = pollster::block_on(session.patch_fast_each_async(&sweeps, both_cases, None)).unwrap();
    for (found, sweep) in each.iter().zip(&sweeps) {
        let apart = session.patch_fast(sweep, &cases).unwrap();
        assert_eq!((&found.shape, &found.values), (&apart.shape, &apart.values));
        assert_eq!((&found.unchanged, &found.source), (&apart.unchanged, &apart.source));
    }
    let sweeps = [both.clone(), Sweep { metric: Metric::Prob, ..of_mlp }];
    let e = pollster::block_on(session.patch_fast_each_async(&sweeps, both_cases, None)).unwrap_err();
    assert!(e.to_string().contains("logprob and prob"), "{e}");
    let only = Sweep { sites: vec![site("q")], ..both.clone() };
    let apart = session.patch_fast(&only, std::slice::from_ref(&one)).unwrap();
    assert_eq!(all.values[0][12..], apart.values[0]);
    // A head that is zeroed in both runs has no difference to put in.
    let mut edits = session.model().hooks();
    edits.edit_at(Site::Z(1), Select::all().heads([2]), Edit::Zero).unwrap();
    let all = Cases { cases: &[one], edits: &edits, source_edits: &edits };
    let edited = pollster::block_on(session.patch_fast_async(&both, all, None)).unwrap();
    assert_eq!(edited.values[0][4 + 2], edited.unchanged[0]);
    assert_ne!(edited.values[0][4 + 1], edited.unchanged[0]);
}

/// Texts of different lengths line up at their ends: an estimate is the gradient times the source's value less the own one there. Seen
/// red with texts that line up at their starts.
#[test]
fn fast_sweeps_of_texts_of_different_lengths() {
    let session = open("classic", Choice::Cpu);
    let (here, source) = (vec![3, 1, 4, 1, 5], vec![9, 2, 6, 5]);
    let (n, offset) = (source.len(), here.len() - source.len());
    let question = |ids: &[u32]| Question { position: ids.len() - 1, answer: 1, wrong: 2 };
    let case = Case {
        question: question(&here),
        aligned: n,
        source: Some((source.clone(), question(&source))),
        ids: here.clone(),
        from_source: true,
    };
    let sweep = sweep(&session, "resid_pre", &json!(["layer", "pos"]), &json!("logit-diff"));
    let found = session.patch_fast(&sweep, &[case]).unwrap();
    let (batch, other) = (session.model().batch(&[&here]).unwrap(), session.model().batch(&[&source]).unwrap());
    let mut hooks = session.model().hooks();
    hooks.tap("resid_pre.*").unwrap();
    let own = session.gradients(&batch, &hooks, &Target::Metric(Metric::LogitDiff, vec![question(&here)])).unwrap();
    let values = session.run(&other, &hooks).unwrap();
    let n_layer = session.model().config().n_layer;
    let of_cell = |(layer, pos): (usize, usize)| {
        let site = Site::ResidPre(layer);
        let row = |capture: &Capture, pos: usize| {
            let array = capture.get(site).unwrap().index_axis(Axis(0), 0).index_axis(Axis(0), pos).to_owned();
            array.into_iter().map(f64::from).collect::<Vec<f64>>()
        };
        let (by, from) = (row(&own.gradients, offset + pos), row(&own.values, offset + pos));
        let change = by.iter().zip(from).zip(row(&values, pos)).map(|((by, from), to)| by * (to - from)).sum::<f64>();
        own.target[0] + change
    };
    let want: Vec<f64> = (0..n_layer).flat_map(|layer| (0..n).map(move |pos| (layer, pos))).map(of_cell).collect();
    check("estimates", &found.values[0], &want, &[]);
}

/// The divergence from the run itself has no slope, and an ablation no other text.
#[test]
fn what_cannot_be_estimated() {
    let (session, golden) = (open("classic", Choice::Cpu), &goldens("attributions.json")["classic"]);
    let z = |replacement, metric| Sweep {
        sites: vec![SweepSite::find("z", session.model().config()).unwrap()],
        axes: vec!["layer".parse().unwrap()],
        replacement,
        metric,
    };
    let noise = case(golden, true);
    for (sweep, says) in
        [(z(Replacement::Patch, Metric::Kl), "gradient 0"), (z(Replacement::Zero, Metric::Loss), "no other text")]
    {
        let e = session.patch_fast(&sweep, std::slice::from_ref(&noise)).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
    // A divergence is from a distribution over the vocabulary for each text.
    let (batch, mut hooks) = (session.model().batch(&[[1, 2]]).unwrap(), session.model().hooks());
    hooks.tap("embed").unwrap();
    let target = Target::Divergence(vec![Question { position: 1, answer: 0, wrong: 0 }], vec![vec![0.0; 3]]);
    let e = session.gradients(&batch, &hooks, &target).unwrap_err().to_string();
    assert!(e.contains("0 distributions over the vocabulary are given for 1 texts"), "{e}");
}

#[test]
fn logits_by_gradients() {
    let goldens = goldens("attributions.json");
    for (name, choice) in NAMES.iter().flat_map(|name| DEVICES.map(|choice| (name, choice))) {
        let (session, golden) = (open(name, choice), &goldens[name]["divided"]);
        let token = |key: &str| goldens[name][key].as_u64().unwrap() as u32;
        let batch = session.model().batch(&[ids(&golden["ids"])]).unwrap();
        let question = Question { position: batch.n_pos() - 1, answer: token("answer"), wrong: token("wrong") };
        let none = session.model().hooks();
        let divided = |by: By, along: &Along| -> Attribution {
            let run = session.attribute_gradient_async(&batch, &question, true, by, along, &none, None);
            pollster::block_on(run).unwrap()
        };
        let compare = |by: By, found: &Attribution, wanted: &Value, total: f64| {
            let what = format!("{name} {choice:?} by {}", by.name());
            let mut wanted = named(wanted);
            let want: Vec<f64> = found.labels.iter().filter_map(|label| wanted.remove(label)).collect();
            assert!(wanted.is_empty(), "{what}: nothing is said of {wanted:?}");
            check(&what, &found.values, &want, &[total]);
            check(&what, &[found.total], &[total], &want);
            let sum: f64 = found.values.iter().sum();
            assert!((sum + found.remainder - found.total).abs() <= 1e-9 * total.abs().max(1.0), "{what}");
        };
        for (name, by) in By::ALL {
            let found = divided(by, &Along::Here);
            compare(by, &found, &golden["gradient"][name], golden["total"].as_f64().unwrap());
        }
        let steps = golden["steps"].as_u64().unwrap() as usize;
        for line in golden["integrated"].as_array().unwrap() {
            let from = line["baseline"].as_array().map(|_| ids(&line["baseline"]));
            let total = line["total"].as_f64().unwrap();
            let along = Along::Line { steps, from };
            compare(By::Position, &divided(By::Position, &along), &line["position"], total);
            // The parts that are no heads have no golden here.
            let found = divided(By::Head, &along);
            let heads = named(&line["head"]);
            let of_label = |(label, value): (&String, &f64)| heads.get(label).map(|want| (*value, *want));
            let (got, want): (Vec<f64>, Vec<f64>) = found.labels.iter().zip(&found.values).filter_map(of_label).unzip();
            assert_eq!(got.len(), heads.len());
            check(&format!("{name} {choice:?} heads along a line"), &got, &want, &[total]);
        }
    }
}

/// With more points the parts add up to the total. An edit of a head's result is differentiated through. Seen red: the weight of one
/// point more, a total without the line's start, and a head's share at z where its result is edited.
#[test]
fn lines_and_edits() {
    let session = Session::open("demo").unwrap();
    let batch = session.model().encode(&["The king and the queen went out, and the king spoke to the"]).unwrap();
    let question = Question { position: batch.n_pos() - 1, answer: 300, wrong: 301 };
    let mut hooks = session.model().hooks();
    let run = |by, along: &Along, hooks: &actscope::Hooks| {
        pollster::block_on(session.attribute_gradient_async(&batch, &question, true, by, along, hooks, None))
    };
    let line = |steps| run(By::Position, &Along::Line { steps, from: None }, &hooks).unwrap();
    let (few, many) = (line(5), line(80));
    assert!(many.remainder.abs() < few.remainder.abs() / 20.0, "{} and {}", many.remainder, few.remainder);
    assert!(many.remainder.abs() < 2e-3 * many.values.iter().map(|v| v.abs()).sum::<f64>(), "{}", many.remainder);

    hooks.edit_at(Site::Result(2), Select::all().heads([1]), Edit::Scale(0.0)).unwrap();
    let found = run(By::Head, &Along::Here, &hooks).unwrap();
    let at = |label: &str| found.values[found.labels.iter().position(|other| other == label).unwrap()];
    assert_eq!(at("blocks.2.attn.hook_result[1]"), 0.0);
    assert_ne!(at("blocks.2.attn.hook_result[2]"), 0.0);

    // What an edit adds after z has its share: values and gradients are those of the edited site. One number for all dimensions would
    // have none, since LayerNorm takes it off.
    let row = (0..session.model().config().n_embd).map(|dim| (dim % 7) as f32 / 7.0).collect();
    hooks.edit_at(Site::Result(2), Select::all().heads([2]), Edit::Add(row)).unwrap();
    let found = run(By::Head, &Along::Here, &hooks).unwrap();
    let mut tapped = hooks.clone();
    tapped.tap_at(Site::Result(2), Select::all()).unwrap();
    let target = Target::Metric(Metric::LogitDiff, vec![question.clone()]);
    let there = session.gradients(&batch, &tapped, &target).unwrap();
    let of_head = |capture: &Capture| {
        let of_text = capture.get(Site::Result(2)).unwrap().index_axis(Axis(0), 0).index_axis(Axis(1), 2).to_owned();
        of_text.into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let want: f64 = of_head(&there.values).iter().zip(of_head(&there.gradients)).map(|(v, by)| v * by).sum();
    let at = found.labels.iter().position(|label| label == "blocks.2.attn.hook_result[2]").unwrap();
    check("the share of an edited head", &[found.values[at]], &[want], &[found.total]);

    hooks.edit_at(Site::Embed, Select::all(), Edit::Scale(0.5)).unwrap();
    for (along, says) in [
        (Along::Line { steps: 2, from: None }, "an edit changes hook_embed"),
        (Along::Line { steps: 0, from: None }, "at least one step"),
        (Along::Line { steps: 2, from: Some(vec![1, 2]) }, "the baseline has 2 tokens and the text 15"),
    ] {
        let e = run(By::Position, &along, &hooks).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
}

fn edge(words: &str, session: &Session) -> Edge {
    let config = session.model().config();
    let (from, to) = words.split_once("...").unwrap();
    let from = Writer::all(config).into_iter().find(|writer| writer.to_string() == from).unwrap();
    let to = readers(config).into_iter().find(|reader| reader.to_string() == to).unwrap();
    Edge { from, to, score: 0.0 }
}

#[test]
fn edges_and_runs_with_some_of_them() {
    let goldens = goldens("attributions.json");
    for (name, choice) in NAMES.iter().flat_map(|name| DEVICES.map(|choice| (name, choice))) {
        let (session, golden) = (open(name, choice), &goldens[name]["edges"]);
        let case = case(&goldens[name], false);
        assert!(session.edges(&[], Metric::LogitDiff, 1).is_err(), "a mean over no pairs");
        for wanted in golden["scores"].as_array().unwrap() {
            let metric: Metric = wanted["metric"].as_str().unwrap().parse().unwrap();
            let steps = wanted["steps"].as_u64().unwrap() as usize;
            let found = session.edges(std::slice::from_ref(&case), metric, steps).unwrap();
            let mut scores = named(&wanted["scores"]);
            let got: Vec<f64> = found.edges.iter().map(|edge| edge.score).collect();
            let name_of = |edge: &Edge| format!("{}...{}", edge.from, edge.to);
            let want: Vec<f64> = found.edges.iter().filter_map(|edge| scores.remove(&name_of(edge))).collect();
            assert!(scores.is_empty(), "edges that are not there: {scores:?}");
            check(&format!("{name} {choice:?} {metric:?} {steps}"), &got, &want, &[]);
            let [clean, corrupt] = ["clean", "corrupt"].map(|key| wanted[key].as_f64().unwrap());
            check("metrics", &[found.clean[0], found.corrupt[0]], &[clean, corrupt], &[]);
        }
        for wanted in golden["circuits"].as_array().unwrap() {
            let metric: Metric = wanted["metric"].as_str().unwrap().parse().unwrap();
            let words = wanted["edges"].as_array().unwrap().iter().map(|words| words.as_str().unwrap());
            let edges: Vec<Edge> = words.map(|words| edge(words, &session)).collect();
            let found = session.edge_circuit(&case, metric, &edges).unwrap();
            let clean = golden["scores"][0]["clean"].as_f64().unwrap();
            let what = format!("{name} {choice:?} {metric:?} with {} edges", edges.len());
            check(&what, &[found], &[wanted["value"].as_f64().unwrap()], &[clean]);
        }
    }
}

/// What a writer's edges carry is what attribution patching gives for the writer: all of its readers together.
#[test]
fn the_edges_of_a_writer_are_its_estimate() {
    let session = Session::open("demo").unwrap();
    let texts = ["The king and the queen went out", "The king and the boy went out"];
    let [clean, corrupt] = texts.map(|text| session.model().encode(&[text]).unwrap().ids_of(0).to_vec());
    let question = Question { position: clean.len() - 1, answer: 300, wrong: 301 };
    let source = Some((clean.clone(), question.clone()));
    let case = Case { aligned: clean.len(), ids: corrupt, question, source, from_source: true };
    let cases = [case];
    let found = session.edges(&cases, Metric::LogitDiff, 1).unwrap();
    let sum = |of: Writer| found.edges.iter().filter(|edge| edge.from == of).map(|edge| edge.score).sum::<f64>();
    for (at, axes) in [("result", &["layer", "head"][..]), ("mlp_out", &["layer"]), ("embed", &[])] {
        let sites = vec![SweepSite::find(at, session.model().config()).unwrap()];
        let axes: Vec<_> = axes.iter().map(|axis| axis.parse().unwrap()).collect();
        let sweep = Sweep { sites, axes, replacement: Replacement::Patch, metric: Metric::LogitDiff };
        let fast = session.patch_fast(&sweep, &cases).unwrap();
        let effects: Vec<f64> = fast.values[0].iter().map(|value| value - fast.unchanged[0]).collect();
        let n_head = session.model().config().n_head;
        let writer = |n: usize| match at {
            "result" => Writer::Head { layer: n / n_head, head: n % n_head },
            "mlp_out" => Writer::Mlp { layer: n },
            _ => Writer::Embed,
        };
        let sums: Vec<f64> = (0..effects.len()).map(|n| sum(writer(n))).collect();
        check(at, &sums, &effects, &[]);
    }
}

/// Blocks that are run again give the gradients of a run that keeps all: of parts of sites, through edits at both ends of a block, from
/// embeddings, and where the target lies between blocks. Operations fuse in another way at the ends of blocks, so the bound is that
/// of rounding. Seen red: the edits of a block's stream applied again, and the gradient of the next text for a text.
#[test]
fn blocks_that_are_run_again() {
    for (name, choice) in ["untied_erf", "inverse_f16"].iter().flat_map(|name| DEVICES.map(|choice| (name, choice))) {
        let session = open(name, choice);
        let (model, n_embd) = (session.model(), session.model().config().n_embd);
        let batch = model.batch(&[vec![1, 2, 3, 4, 5], vec![7, 8, 9]]).unwrap();
        let mut hooks = model.hooks();
        for site in Site::all(model.config().n_layer) {
            let select = match site {
                Site::ResidPre(_) => Select::all().positions(vec![vec![1, 3], vec![2]]),
                Site::Z(_) => Select::all().heads([1]),
                _ => Select::all(),
            };
            hooks.tap_at(site, select).unwrap();
        }
        let add = |n: f32| Edit::Add((0..n_embd).map(|i| n * (i as f32).cos()).collect());
        for layer in 0..model.config().n_layer {
            hooks.edit_at(Site::ResidPre(layer), Select::all(), Edit::Scale(1.25)).unwrap();
            hooks.edit_at(Site::ResidPost(layer), Select::all().positions(vec![vec![0, 4], vec![]]), add(0.1)).unwrap();
        }
        let question = |position| Question { position, answer: 1, wrong: 2 };
        let questions = vec![question(4), question(1)];
        let last = model.config().n_layer - 1;
        let dot = |site, n| Target::Dot { site, select: Select::all(), by: (0..n).map(|i| (i as f32).sin()).collect() };
        let embeddings: Vec<f32> = (0..8 * n_embd).map(|i| (i as f32).sin()).collect();
        for (target, start) in [
            (Target::Metric(Metric::LogitDiff, questions.clone()), Start::Tokens),
            (Target::Metric(Metric::Loss, questions.clone()), Start::Embeddings(&embeddings)),
            (Target::Metric(Metric::Prob, questions), Start::Tokens),
            (dot(Site::ResidPre(last), 8 * n_embd), Start::Tokens),
            (dot(Site::AttnOut(0), 8 * n_embd), Start::Tokens),
        ] {
            let run = |recompute, gradients_only| {
                let options = GradientOptions { start, recompute, gradients_only };
                pollster::block_on(session.gradients_async(&batch, &hooks, &target, options, None)).unwrap()
            };
            let (kept, again) = (run(false, false), run(true, false));
            // Values may be left out.
            for (recompute, whole) in [(false, &kept), (true, &again)] {
                let only = run(recompute, true);
                assert!(only.values.iter().next().is_none(), "{name} {choice:?}");
                assert!(only.gradients == whole.gradients && only.target == whole.target, "{name} {choice:?}");
            }
            for (what, one, other) in
                [("values", &kept.values, &again.values), ("gradients", &kept.gradients, &again.gradients)]
            {
                for (site, want) in one.iter() {
                    let got = other.get(site).unwrap();
                    let largest = want.iter().filter(|v| v.is_finite()).fold(0.0f32, |a, b| a.max(b.abs()));
                    let near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= ROUNDING as f32 * largest;
                    assert!(got.iter().zip(want).all(near), "{name} {choice:?}: {what} of {site} for {target:?}");
                }
            }
            assert!(kept.target.iter().zip(&again.target).all(|(a, b)| (a - b).abs() <= ROUNDING * a.abs().max(1.0)));
        }
    }
}

/// The tape holds one block at a time, so that gpt2-xl fits a small card.
#[test]
fn the_memory_of_one_block() {
    let session = Session::open("demo").unwrap();
    let (model, config) = (session.model(), session.model().config());
    let batch = model.batch(&[vec![1; 64]]).unwrap();
    let mut hooks = model.hooks();
    hooks.tap("resid_pre.*").unwrap();
    let target = Target::Metric(Metric::Logit, vec![Question { position: 63, answer: 1, wrong: 1 }]);
    let bytes = |recompute| tape_bytes(config, &batch, &hooks, &target, recompute).unwrap();
    // A logit is computed from the final LayerNorm's output, so no logits are on the tape.
    assert_eq!(bytes(true) * config.n_layer as u64, bytes(false));
    // A function would be called twice.
    hooks.edit_at(Site::ResidPre(1), Select::all(), Edit::with("twice", |x| x.to_owned())).unwrap();
    let options = GradientOptions { recompute: true, ..GradientOptions::default() };
    let e = pollster::block_on(session.gradients_async(&batch, &hooks, &target, options, None)).unwrap_err();
    assert!(e.to_string().contains("call it twice"), "{e}");
}

/// A linear function of logits is computed from the logits that it reads, whatever else is tapped: of one logit, its gradient is that
/// of the metric. Seen red without these logits.
#[test]
fn a_linear_function_of_logits() {
    for choice in DEVICES {
        let session = open("untied_erf", choice);
        let batch = session.model().batch(&[vec![1, 2, 3, 4], vec![5, 6]]).unwrap();
        let questions = [3, 0].map(|position| Question { position, answer: 7, wrong: 7 });
        let select = Select::all().positions(vec![vec![3], vec![0]]).dims([7]);
        let dot = Target::Dot { site: Site::Unembed, select, by: vec![1.0, 1.0] };
        for taps in [&["resid_pre.0"][..], &["resid_pre.0", "unembed.hook_out"]] {
            let mut hooks = session.model().hooks();
            for tap in taps {
                hooks.tap(tap).unwrap();
            }
            hooks.at_positions(&[vec![0, 1], vec![1]]);
            let run = |target: &Target| session.gradients(&batch, &hooks, target).unwrap();
            let (of_dot, of_metric) = (run(&dot), run(&Target::Metric(Metric::Logit, questions.to_vec())));
            let (got, want) =
                (&of_dot.gradients["blocks.0.hook_resid_pre"], &of_metric.gradients["blocks.0.hook_resid_pre"]);
            let largest = want.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            assert!(largest > 0.0);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= ROUNDING as f32 * largest;
            assert!(got.iter().zip(want).all(near), "{choice:?} {taps:?}");
            assert!(
                of_dot.target.iter().zip(&of_metric.target).all(|(a, b)| (a - b).abs() <= ROUNDING * b.abs().max(1.0))
            );
        }
    }
}

/// Progress counts the blocks of both ways up to the total, also where only the first block is tapped, and stops the run. Seen red
/// where the last blocks that are run again were not counted.
#[test]
fn progress_there_and_back() {
    // A GPU gets a short run as one submit, and counts its blocks at the end.
    for choice in [Choice::Cpu, Choice::Gpu] {
        progress_on(choice);
    }
}

fn progress_on(choice: Choice) {
    let session = open("classic", choice);
    let batch = session.model().batch(&[vec![1, 2, 3]]).unwrap();
    let mut hooks = session.model().hooks();
    hooks.tap("resid_pre.0").unwrap();
    let target = Target::Metric(Metric::Loss, vec![Question { position: 2, answer: 0, wrong: 0 }]);
    for recompute in [false, true] {
        let options = GradientOptions { recompute, ..GradientOptions::default() };
        let heard = std::cell::RefCell::new(Vec::new());
        let run = |stop: Option<usize>| {
            let told = |done: usize, of: usize| {
                heard.borrow_mut().push((done, of));
                if stop.is_some_and(|stop| done >= stop) {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            };
            pollster::block_on(session.gradients_async(&batch, &hooks, &target, options, Some(&told)))
        };
        run(None).unwrap();
        let (all, total) = (heard.take(), (2 + usize::from(recompute)) * session.model().config().n_layer);
        assert!(all.is_sorted() && all.iter().all(|(done, of)| *of == total && *done <= total), "{all:?}");
        assert_eq!(all.last(), Some(&(total, total)), "{all:?}");
        let stopped = run(Some(total - 2));
        assert!(matches!(stopped, Err(actscope::Error::Cancelled)), "{stopped:?}");
    }
}
