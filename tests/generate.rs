//! Generation: the model writes the same text as transformers, the recorded activations equal those of one run over the
//! finished text, and requests, stops and files behave as documented.

#[path = "common/binary.rs"]
mod binary;
mod common;

use actscope::analysis::generate::{Generated, Generation, StopReason, Told};
use actscope::analysis::sampling::Sampling;
use actscope::device::Choice;
use actscope::hooks::capture::Capture;
use actscope::model::windows::Windows;
use actscope::{Edit, Hooks, Model, Select, Session, Site};
use binary::*;
use common::{DEVICES, Golden, fixtures, floats, goldens, ids};
use ndarray::{ArrayD, Axis, Slice, s};
use safetensors::SafeTensors;
use serde_json::Value;
use std::ops::ControlFlow;

fn session(model: &str, device: Choice) -> Session {
    Model::open(model).unwrap().on(device).unwrap()
}

fn classic(device: Choice) -> Session {
    session(fixtures().join("classic").to_str().unwrap(), device)
}

/// Greedy ids and log-probabilities of every fixture, with and without a repetition penalty.
#[test]
fn greedy_is_what_transformers_writes() {
    let golden = goldens("generation.json");
    for (fixture, texts) in golden["fixtures"].as_object().unwrap() {
        let folder = fixtures().join(fixture);
        if !folder.exists() {
            // The packed crate, which alone has this file, leaves out the two largest fixtures.
            assert!(fixtures().join("../../Cargo.toml.orig").exists(), "the fixture {fixture} is missing");
            continue;
        }
        let model = Golden::read(&folder).model(&folder);
        for device in DEVICES {
            let session = session(model.to_str().unwrap(), device);
            for text in texts.as_array().unwrap() {
                let prompts = session.model().batch(&[ids(&text["prompt"])]).unwrap();
                let expected = ids(&text["new"]);
                let sampling =
                    Sampling { repetition_penalty: text["penalty"].as_f64().unwrap(), ..Sampling::default() };
                let generation = Generation { new_tokens: expected.len(), sampling, ..Generation::default() };
                let written = session.generate(&prompts, &generation).unwrap().remove(0);
                assert_eq!(written.new_ids(), expected, "{fixture} on {device:?}");
                for (token, expected) in written.new.iter().zip(floats(&text["logprobs"])) {
                    let near = (token.logprob - expected).abs() <= 1e-4 * expected.abs().max(1.0);
                    assert!(near, "{fixture} on {device:?}: {}, expected {expected}", token.logprob);
                }
            }
        }
    }
}

#[test]
fn filters_leave_what_transformers_leaves() {
    let golden = goldens("generation.json");
    let logits: Vec<f32> = floats(&golden["logits"]).iter().map(|x| *x as f32).collect();
    for filter in golden["filters"].as_array().unwrap() {
        let settings = &filter["settings"];
        let sampling = Sampling {
            temperature: settings["temperature"].as_f64().unwrap_or(1.0),
            top_k: settings["top_k"].as_u64().map(|k| k as usize),
            top_p: settings["top_p"].as_f64(),
            min_p: settings["min_p"].as_f64(),
            repetition_penalty: settings["repetition_penalty"].as_f64().unwrap_or(1.0),
            seed: 0,
        };
        let got = sampling.probabilities(&logits, &ids(&golden["ids"]));
        for (got, expected) in got.iter().zip(floats(&filter["probabilities"])) {
            assert!((got - expected).abs() < 1e-9, "{settings}: {got}, expected {expected}");
        }
    }
}

/// Prompts of different length.
const PROMPTS: [&[u32]; 3] = [&[5, 17, 5, 99], &[100], &[2, 3, 42, 7, 8, 9, 10]];

/// Generates with a request; returns the texts and the capture.
fn generate(session: &Session, generation: &Generation, ask: impl Fn(&mut Hooks)) -> (Vec<Generated>, Capture, Hooks) {
    let prompts = session.model().batch(&PROMPTS).unwrap();
    let whole = generation.texts(&prompts, session.model()).unwrap();
    let mut hooks = session.model().hooks();
    ask(&mut hooks);
    let mut capture = Capture::empty(&hooks, &whole).unwrap();
    let tell = &mut |_: Told<'_>| ControlFlow::Continue(());
    let run = session.generate_async(&prompts, generation, &hooks, &mut capture, tell, None);
    (pollster::block_on(run).unwrap(), capture, hooks)
}

/// The largest difference between two arrays, as a share of the largest value. Infinite and NaN elements must be equal.
fn distance(got: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    assert_eq!(got.shape(), expected.shape());
    let largest = expected.iter().filter(|v| v.is_finite()).fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let pairs = got.iter().zip(expected);
    pairs.fold(0.0, |worst: f64, (a, b)| {
        if a == b {
            worst
        } else {
            worst.max(f64::from((a - b).abs() / largest)).max(if b.is_finite() { 0.0 } else { f64::INFINITY })
        }
    })
}

/// Every hook, for prompt and new tokens including the last one, equals that of one run over the finished texts, edits
/// included. On `cpu` it is equal bit for bit, except for logits, which are summed in another order for few rows.
#[test]
fn activations_are_those_of_one_run() {
    let tap = |hooks: &mut Hooks| {
        hooks.tap("*").unwrap();
    };
    let edit = |hooks: &mut Hooks| {
        tap(hooks);
        let lists = |lists: [&[usize]; 3]| Select::all().positions(lists.map(<[usize]>::to_vec).to_vec());
        let steer: Vec<f32> = (0..32).map(|i| i as f32 / 40.0 - 0.3).collect();
        // New tokens of every text; a prompt's and new ones'; scores by one row for each; the logits.
        let new: [&[usize]; 3] = [&[4, 5, 6, 7, 8], &[1, 2, 3, 4, 5], &[7, 8, 9, 10, 11]];
        hooks.edit_at(Site::ResidPre(1), lists(new), Edit::Add(steer)).unwrap();
        hooks.edit_at(Site::Z(0), lists([&[1, 3, 5], &[], &[0, 9]]).heads([1, 2]), Edit::Zero).unwrap();
        let all: Vec<f32> = (0..4 * 32).map(|i| (i % 7) as f32 / 10.0).collect();
        hooks.edit_at(Site::MlpOut(2), lists([&[0, 6], &[], &[8, 11]]), Edit::Replace(all)).unwrap();
        hooks.edit_at(Site::Pattern(1), lists([&[2, 5], &[3], &[]]).heads([0]), Edit::Scale(0.5)).unwrap();
        hooks.edit_at(Site::Unembed, Select::all().dims([3, 50]), Edit::Add(vec![0.75])).unwrap();
    };
    for device in DEVICES {
        let session = classic(device);
        let generation = Generation { new_tokens: 5, ..Generation::default() };
        for ask in [&tap as &dyn Fn(&mut Hooks), &edit] {
            let (texts, capture, hooks) = generate(&session, &generation, ask);
            let finished =
                session.model().batch(&texts.iter().map(|text| text.ids.clone()).collect::<Vec<_>>()).unwrap();
            let expected = session.run(&finished, &hooks).unwrap();
            for (site, expected) in expected.iter() {
                let off = distance(&capture.get(site).unwrap().to_owned(), expected);
                let allowed = if device == Choice::Cpu && site != Site::Unembed { 0.0 } else { 4e-6 };
                assert!(off <= allowed, "{device:?} {site}: off by {off}");
            }
            for text in &texts {
                assert_eq!((text.new.len(), text.stop, text.run), (5, StopReason::Length, text.ids.len()));
            }
        }
    }
}

/// A whole selection's values of scores, cut for every step; and heads, dims and keys of taps.
#[test]
fn selections_are_cut_for_every_step() {
    let session = classic(Choice::Cpu);
    let generation = Generation { new_tokens: 4, ..Generation::default() };
    let lists = |lists: [&[usize]; 3]| lists.map(<[usize]>::to_vec).to_vec();
    let ask = |hooks: &mut Hooks| {
        let queries = lists([&[3, 5], &[2], &[6, 7, 10]]);
        let keys = lists([&[0, 2, 3], &[0, 2], &[1, 6]]);
        let rows: usize = 2 * (2 * 3 + 2 + 3 * 2);
        let values: Vec<f32> = (0..rows).map(|i| i as f32 / rows as f32).collect();
        let select = Select::all().positions(queries.clone()).keys(keys.clone()).heads([1, 3]);
        hooks.edit_at(Site::AttnScores(0), select, Edit::Add(values)).unwrap();
        hooks.tap_at(Site::AttnScores(0), Select::all().positions(queries).keys(keys)).unwrap();
        hooks.tap_at(Site::Pattern(1), Select::all().positions(lists([&[7], &[], &[0, 8]])).heads([2])).unwrap();
        hooks.tap_at(Site::Unembed, Select::all().positions(lists([&[1, 4], &[3], &[10]])).dims([5, 9, 80])).unwrap();
        hooks.tap_at(Site::K(2), Select::all().heads([0]).dims([1, 2])).unwrap();
    };
    let (texts, capture, hooks) = generate(&session, &generation, ask);
    let finished = session.model().batch(&texts.iter().map(|text| text.ids.clone()).collect::<Vec<_>>()).unwrap();
    let expected = session.run(&finished, &hooks).unwrap();
    for (site, expected) in expected.iter() {
        let off = distance(&capture.get(site).unwrap().to_owned(), expected);
        assert!(off <= if site == Site::Unembed { 4e-6 } else { 0.0 }, "{site}: off by {off}");
    }
}

/// A text that ends early leaves zeros, and it does not affect the other texts.
#[test]
fn texts_end_at_different_places() {
    let session = classic(Choice::Cpu);
    let plain = Generation { new_tokens: 6, ..Generation::default() };
    let (long, ..) = generate(&session, &plain, |_| {});
    // The first text's third new token ends it, and the last text's last one ends that text.
    let end = long[0].ids[PROMPTS[0].len() + 2];
    let ended = Generation { end_of_text: vec![end, 100_000], ..plain };
    let (texts, capture, _) = generate(&session, &ended, |hooks| {
        hooks.tap("*").unwrap();
    });
    let place = |text: &Generated| long.iter().position(|l| l.prompt == text.prompt).unwrap();
    for text in &texts {
        let whole = &long[place(text)];
        let n = whole.ids[text.prompt_tokens..].iter().position(|id| *id == end).map_or(6, |i| i + 1);
        assert_eq!(text.ids, whole.ids[..text.prompt_tokens + n]);
        assert_eq!(text.stop, if text.ids.last() == Some(&end) { StopReason::EndOfText } else { StopReason::Length });
        assert_eq!(text.new_ids().len(), n - usize::from(text.stop == StopReason::EndOfText));
        let scores = capture.get(Site::AttnScores(1)).unwrap();
        let scores = scores.index_axis(Axis(0), text.prompt);
        let last = text.ids.len();
        assert!(scores.slice_axis(Axis(1), Slice::from(last..)).iter().all(|v| *v == 0.0));
        assert!(scores.slice_axis(Axis(2), Slice::from(last..)).iter().all(|v| *v == 0.0));
        assert!(scores.slice(s![.., 0, 1..last]).iter().all(|v| *v == f32::NEG_INFINITY));
        let stream = capture.get(Site::ResidPost(2)).unwrap();
        assert!(stream.slice(s![text.prompt, last - 1, ..]).iter().any(|v| *v != 0.0), "the last token was run");
    }
    assert!(
        texts.iter().any(|text| text.stop == StopReason::EndOfText)
            && texts.iter().any(|text| text.stop == StopReason::Length)
    );
}

#[test]
fn the_context_ends_texts() {
    let session = classic(Choice::Cpu);
    let n = session.model().config().n_positions;
    let prompt = |n: usize| (0..n as u32).map(|i| i % 7).collect::<Vec<_>>();
    let prompts = session.model().batch(&[prompt(n - 2), prompt(n), prompt(n - 3)]).unwrap();
    let generation = Generation { new_tokens: 3, ..Generation::default() };
    let texts = session.generate(&prompts, &generation).unwrap();
    let got: Vec<_> = texts.iter().map(|text| (text.new.len(), text.stop)).collect();
    assert_eq!(got, [(2, StopReason::Context), (0, StopReason::Context), (3, StopReason::Length)]);
}

/// The same seed gives the same text, whichever texts share the batch. Other seeds and samples give other texts.
#[test]
fn seeds_and_samples() {
    let session = classic(Choice::Cpu);
    let sampling = Sampling { temperature: 1.5, seed: 3, ..Sampling::default() };
    let generation = Generation { new_tokens: 8, samples: 4, sampling: sampling.clone(), ..Generation::default() };
    let run = |generation: &Generation| {
        let prompts = session.model().batch(&[PROMPTS[0]]).unwrap();
        session.generate(&prompts, generation).unwrap().into_iter().map(|text| text.ids).collect::<Vec<_>>()
    };
    let first = run(&generation);
    assert_eq!(first, run(&generation));
    assert_eq!(first[..2], run(&Generation { samples: 2, ..generation.clone() }));
    assert!(first.iter().any(|ids| *ids != first[0]), "samples differ");
    assert_ne!(first, run(&Generation { sampling: Sampling { seed: 4, ..sampling }, ..generation }));
}

/// The caller can end a run and receives the text so far with its activations.
#[test]
fn a_run_that_is_ended() {
    let session = classic(Choice::Cpu);
    let prompts = session.model().batch(&PROMPTS).unwrap();
    let generation = Generation { new_tokens: 9, ..Generation::default() };
    let whole = generation.texts(&prompts, session.model()).unwrap();
    let mut hooks = session.model().hooks();
    hooks.tap("resid_post.0").unwrap();
    let mut capture = Capture::empty(&hooks, &whole).unwrap();
    let mut heard = 0;
    let tell = &mut |_: Told<'_>| {
        heard += 1;
        if heard == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let texts =
        pollster::block_on(session.generate_async(&prompts, &generation, &hooks, &mut capture, tell, None)).unwrap();
    for text in &texts {
        assert_eq!((text.stop, text.run, text.new.len()), (StopReason::Interrupted, text.ids.len(), 2));
        let last = capture.get(Site::ResidPost(0)).unwrap();
        assert!(last.slice(s![text.prompt, text.run - 1, ..]).iter().any(|v| *v != 0.0));
        assert!(last.slice(s![text.prompt, text.run.., ..]).iter().all(|v| *v == 0.0));
    }
}

/// Steered logits, and the details of each step.
#[test]
fn lens_and_alternatives() {
    for device in DEVICES {
        let session = classic(device);
        let generation = Generation { new_tokens: 4, alternatives: 3, lens: 2, ..Generation::default() };
        let (texts, ..) = generate(&session, &generation, |_| {});
        for text in &texts {
            let batch = session.model().batch(&[&text.ids]).unwrap();
            let (rows, _) = session.lens(&batch, &session.model().hooks(), 2).unwrap();
            for (n, token) in text.new.iter().enumerate() {
                assert_eq!(token.alternatives[0].0, token.id);
                assert!((token.alternatives[0].1.ln() - token.logprob).abs() < 1e-9);
                for (row, reading) in rows.iter().zip(&token.lens) {
                    let expected = &row.texts[0][text.prompt_tokens - 1 + n];
                    assert_eq!(reading.top[0].0, expected.top[0].0, "{device:?}");
                    let (got, expected) = (reading.next.unwrap(), expected.next.unwrap());
                    assert!(got.id == expected.id && (got.probability - expected.probability).abs() < 1e-4);
                }
            }
        }
    }
}

/// Scores equal those from the logits of whole texts. The scores of a long text equal those of its windows.
#[test]
fn scores() {
    let session = classic(Choice::Cpu);
    let windows = Windows { size: 6, stride: 4 };
    let long: Vec<u32> = (0..15).map(|i| (i * 31 + 4) % 101).collect();
    let scores = session.score(&[PROMPTS[2], PROMPTS[1], &long], windows).unwrap();
    assert_eq!((scores[1].logprobs.len(), scores[1].perplexity()), (0, None));
    let logprob = |text: &[u32], position: usize, next: u32| {
        let mut hooks = session.model().hooks();
        hooks.tap("unembed").unwrap();
        let logits = session.run(&session.model().batch(&[text]).unwrap(), &hooks).unwrap();
        let row = logits.get(Site::Unembed).unwrap().slice(s![0, position, ..]).mapv(f64::from);
        row[next as usize] - row.mapv(f64::exp).sum().ln()
    };
    for (i, got) in scores[2].logprobs.iter().enumerate() {
        let start = (0..=i).step_by(4).find(|start| i < start + 6).unwrap();
        let expected = logprob(&long[start..(start + 6).min(15)], i - start, long[i + 1]);
        assert!((got - expected).abs() < 1e-5, "token {}: {got}, expected {expected}", i + 1);
    }
    assert!((scores[0].perplexity().unwrap().ln() * 6.0 + scores[0].total()).abs() < 1e-9);
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run_well(["generate", "--json", "-q"].iter().chain(args))).unwrap()
}

#[test]
fn json_on_the_command_line() {
    let ids_of = |value: &Value| ids(&value["ids"]);
    let all = json(&["The cat sat", "Yes", "-n", "5", "--samples", "2", "--device", "cpu"]);
    let texts = all["texts"].as_array().unwrap();
    assert_eq!(texts.len(), 4);
    for text in texts {
        let (prompt, ids) = (ids(&text["prompt_ids"]), ids_of(text));
        assert_eq!(ids[..prompt.len()], prompt);
        assert_eq!(floats(&text["logprobs"]).len(), ids.len() - prompt.len());
        assert!(text["text"].is_string() && text["stop"] == "length");
        let keys: Vec<&String> = text.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["prompt_ids", "ids", "text", "logprobs", "stop"]);
    }
    assert_eq!((&texts[0]["ids"], &texts[2]["ids"]), (&texts[1]["ids"], &texts[3]["ids"]), "greedy samples are alike");
    // Ids on a model without a tokenizer.
    let bare = json(&["-m", CLASSIC, "--ids", "5 17 5", "-n", "3", "--lens", "--alternatives", "2"]);
    let text = &bare["texts"][0];
    assert!(text["text"].is_null());
    assert_eq!(text["alternatives"][0].as_array().unwrap().len(), 2);
    assert_eq!(text["lens"].as_array().unwrap().len(), 4);
    // stdout has only the new text.
    let printed = run_well(["generate", "-q", "The cat sat", "-n", "5", "--device", "cpu"].iter());
    assert_eq!(printed, format!("{}\n", texts[0]["text"].as_str().unwrap()));
    let stop = texts[0]["text"].as_str().unwrap().trim().chars().next().unwrap().to_string();
    let stopped = json(&["The cat sat", "--stop", &stop, "--device", "cpu"]);
    assert_eq!(stopped["texts"][0]["stop"], "stop-text");
    assert!(stopped["texts"][0]["text"].as_str().unwrap().contains(&stop));
}

/// A file of a text that ended early: shapes of the longest possible, masks of what was reached, tokens of what was
/// written.
#[test]
fn files_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.safetensors", "a.npz", "a.json", "a.csv"] {
        let path = folder.path().join(name);
        let path = path.to_str().unwrap();
        let out = json(&[
            "The cat sat",
            "Yes",
            "-n",
            "4",
            "--device",
            "cpu",
            "-k",
            "scores.0",
            "-k",
            "resid_post.1",
            "-o",
            path,
        ]);
        assert_eq!(out["texts"].as_array().unwrap().len(), 2);
    }
    let bytes = std::fs::read(folder.path().join("a.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let tokens: Vec<Vec<String>> = serde_json::from_str(&metadata["tokens"]).unwrap();
    let texts: Vec<String> = serde_json::from_str(&metadata["text"]).unwrap();
    assert_eq!(tokens[0].concat(), texts[0]);
    let generation: Value = serde_json::from_str(&metadata["generation"]).unwrap();
    assert_eq!(generation["texts"][0]["prompt_tokens"].as_u64().unwrap() as usize + 4, tokens[0].len());
    let shape = file.tensor("blocks.1.hook_resid_post").unwrap().shape().to_vec();
    assert_eq!(shape[..2], [2, tokens[0].len().max(tokens[1].len())]);
    assert_eq!(file.tensor("input_ids").unwrap().shape(), [2, shape[1]]);
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.path().join("a.json")).unwrap()).unwrap();
    assert_eq!(json["attention_mask"][1].as_array().unwrap().iter().filter(|m| **m == 1).count(), tokens[1].len());
    assert_eq!(json["hooks"]["blocks.0.attn.hook_attn_scores"][0][0][0][1], "-Infinity");
}

/// Edits at positions of prompts and of new tokens. Ids are given, so that positions are known.
#[test]
fn edits_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    let path = path.to_str().unwrap();
    let edited = |edits: &[&str]| -> Value {
        let edits = edits.iter().flat_map(|edit| ["--edit", edit]);
        let common = [
            "-m",
            CLASSIC,
            "--ids",
            "5 17 5 99",
            "--ids",
            "7",
            "-n",
            "3",
            "--device",
            "cpu",
            "-k",
            "resid_pre.1",
            "-o",
            path,
        ];
        json(&common.into_iter().chain(edits).collect::<Vec<_>>());
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let row =
        |file: &Value, text: usize, position: usize| floats(&file["hooks"]["blocks.1.hook_resid_pre"][text][position]);
    let is =
        |file: &Value, text: usize, position: usize, value: f64| row(file, text, position).iter().all(|v| *v == value);
    let file = edited(&["resid_pre.1@pos=new:set=2", "resid_pre.1@pos=-1:set=3", "resid_pre.1@pos=5,text=0:set=4"]);
    let expected = [[0.0, 0.0, 0.0, 3.0, 2.0, 4.0, 2.0], [3.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]];
    for (text, expected) in expected.iter().enumerate() {
        for (position, value) in expected.iter().enumerate().filter(|(position, _)| text == 1 || *position > 2) {
            assert!(is(&file, text, position, *value), "text {text}, position {position}");
        }
        assert!(text == 1 || !is(&file, text, 0, 0.0));
    }
    let edits = file["edits"].to_string();
    assert!(edits.contains("pos=new") && edits.contains("sha256"), "{edits}");

    // `freeze` restores the prompt's values after an earlier edit; new tokens are not frozen.
    let plain = edited(&[]);
    let frozen = edited(&["resid_pre.0:add=1", "resid_pre.1:freeze"]);
    assert_eq!(row(&plain, 0, 2), row(&frozen, 0, 2));
    assert_ne!(row(&plain, 0, 4), row(&frozen, 0, 4));
    let mean = edited(&["resid_pre.1:mean"]);
    assert_eq!(row(&mean, 0, 0), row(&mean, 1, 0));

    for edit in [
        "resid_pre.1@pos=new:mean",
        "resid_pre.1@pos=4,text=0:freeze",
        "resid_pre.1@pos=9,text=0:zero",
        "z.0@pos=-5,text=0:zero",
    ] {
        let output = run(["generate", "-m", CLASSIC, "--ids", "5 17 5 99", "--ids", "7 8", "-n", "3", "--edit", edit]);
        assert_eq!(output.status.code(), Some(2), "{edit}: {}", stderr(&output));
    }
}

#[test]
fn wrong_usage() {
    for args in [
        &["Yes", "--hook", "ln_f"][..],
        &["Yes", "--temperature", "-1"],
        &["Yes", "--top-p", "1.5"],
        &["Yes", "--top-k", "0", "--temperature", "1"],
        &["Yes", "-n", "0"],
        &["Yes", "--repetition-penalty", "0"],
        &["Yes", "-o", "x.safetensors", "--token", "99"],
    ] {
        assert_eq!(run(["generate"].iter().chain(args)).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(run(["generate", "-m", CLASSIC, "--ids", "1", "--stop", "a"]).status.code(), Some(1));
}

/// Ids that end a text, from the first file that names any.
#[test]
fn what_ends_a_text() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("classic").join(name), folder.path().join(name)).unwrap();
    }
    let of = || Model::open(folder.path().to_str().unwrap()).unwrap().end_of_text();
    let config = |eos: Option<Value>| {
        let text = std::fs::read_to_string(fixtures().join("classic/config.json")).unwrap();
        let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
        config.remove("eos_token_id");
        config.extend(eos.map(|eos| ("eos_token_id".to_string(), eos)));
        std::fs::write(folder.path().join("config.json"), Value::from(config).to_string()).unwrap();
    };
    let generation = |text: &str| std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
    config(None);
    assert_eq!(of(), [] as [u32; 0]);
    config(Some(7.into()));
    assert_eq!(of(), [7]);
    generation(r#"{"eos_token_id": [3, 100000, 4], "temperature": 9}"#);
    assert_eq!(of(), [3, 4]);
    generation(r#"{"eos_token_id": 100000}"#);
    assert_eq!(of(), [] as [u32; 0]);
    generation(r#"{"eos_token_id": null}"#);
    assert_eq!(of(), [7]);
}
