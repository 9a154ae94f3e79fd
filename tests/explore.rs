//! The requests of the explorer: every answer against the goldens, or against runs and arithmetic of this test. What the page makes of
//! the answers is in tests/explorer.rs, in a browser.

mod common;

use actscope::explore::{Answer, Request};
use actscope::{Choice, Edit, Model, Select, Session, Site};
use common::{Golden, assert_close, fixtures};
use ndarray::{ArrayD, Axis, s};
use serde_json::{Value, json};
use std::ops::ControlFlow;

const TEXT: &str = "The cat sat on the mat.";
/// Of as many tokens.
const OTHER: &str = "The dog sat in the sun.";

fn session() -> Session {
    Model::open("demo").unwrap().on(Choice::Cpu).unwrap()
}

fn ask(session: &Session, request: Value) -> Answer {
    let request: Request = serde_json::from_value(request).unwrap();
    pollster::block_on(session.explore_async(&request, &|_, _, _| ControlFlow::Continue(()))).unwrap()
}

/// The array of this name.
fn array(answer: &Answer, name: &str) -> ArrayD<f32> {
    let array = answer.arrays.iter().find(|array| array.name == name).unwrap_or_else(|| panic!("no {name}"));
    ArrayD::from_shape_vec(array.shape.clone(), array.values.clone()).unwrap()
}

/// The numbers of a JSON list, nested or not.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap()],
    }
}

/// A hook of one text, without the batch axis, after edits that this test makes itself.
fn run(session: &Session, text: &str, edits: &[(Site, Select, Edit)], site: Site) -> ArrayD<f32> {
    let model = session.model();
    let mut hooks = model.hooks();
    for (site, select, edit) in edits {
        hooks.edit_at(*site, select.clone(), edit.clone()).unwrap();
    }
    hooks.tap_at(site, Select::all()).unwrap();
    let mut capture = session.run(&model.encode(&[text]).unwrap(), &hooks).unwrap();
    capture.take(site).unwrap().index_axis_move(Axis(0), 0)
}

fn log_softmax(logits: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let logits: Vec<f64> = logits.into_iter().collect();
    let sum = logits.iter().copied().map(f64::exp).sum::<f64>().ln();
    logits.into_iter().map(|x| x - sum).collect()
}

/// The log probability of token `id` after position `pos`.
fn log_p(logits: &ArrayD<f32>, pos: usize, id: usize) -> f64 {
    log_softmax(logits.slice(s![pos, ..]).iter().map(|x| f64::from(*x)))[id]
}

/// Values of up to about 100, each off by a few roundings of the largest in its row.
fn close(what: &str, got: &[f64], want: &[f64]) {
    let f32s = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<_>>();
    assert_close(what, &f32s(got), &f32s(want), 1e-4, 1e-5);
}

/// What the page reads of an unedited run is what the goldens of transformers and TransformerLens have. Seen red: heads in reverse
/// order, the position before, ranks off by one, and a loss over all positions.
#[test]
fn what_is_read_is_what_the_goldens_have() {
    let (session, golden) = (session(), Golden::read(&fixtures().join("demo")));
    let (layers, heads) = (session.model().config().n_layer, session.model().config().n_head);
    let (ids, hook) = (&golden.ids[0], |name: &str| golden.hooks[name].index_axis(Axis(0), 0));
    let n = ids.len();
    let run = json!({"texts": golden.ids});
    let logits = hook("unembed.hook_out");

    for pos in [0, n / 2, n - 1] {
        let got = array(&ask(&session, json!({"do": "next", "run": run, "pos": pos})), "logits");
        let got = log_softmax(got.iter().map(|x| f64::from(*x)));
        close("next", &got, &log_softmax(logits.slice(s![pos, ..]).iter().copied()));
    }
    let (query, key) = (n - 2, 1);
    let pair = array(&ask(&session, json!({"do": "pair", "run": run, "query": query, "key": key})), "pair");
    assert_eq!(pair.shape(), [layers, heads]);
    for layer in 0..layers {
        for head in 0..heads {
            let want = hook(&format!("blocks.{layer}.attn.hook_pattern"))[[head, query, key]];
            let got = f64::from(pair[[layer, head]]);
            assert!((got - want).abs() < 1e-5, "head {layer}.{head}: {got}, the golden has {want}");
        }
    }

    let answer = ask(&session, json!({"do": "where", "run": run, "top": 3}));
    let stages: Vec<String> = serde_json::from_value(answer.json["stages"].clone()).unwrap();
    assert_eq!(stages.len(), layers + 1);
    let [norm, entropy, next, rank, top, top_p] =
        ["norm", "entropy", "next", "rank", "top", "top_p"].map(|name| array(&answer, name));
    let mut loss = 0.0;
    for pos in 0..n {
        for (stage, name) in stages.iter().enumerate() {
            let want = hook(name).slice(s![pos, ..]).iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((f64::from(norm[[stage, pos]]) - want).abs() < 1e-4 * want, "the norm of {name} at {pos}");
        }
        // The last stage is the model's own prediction.
        let log_p = log_softmax(logits.slice(s![pos, ..]).iter().copied());
        let mut order: Vec<usize> = (0..log_p.len()).collect();
        order.sort_by(|a, b| log_p[*b].total_cmp(&log_p[*a]));
        let last = |array: &ArrayD<f32>| f64::from(array[[layers, pos]]);
        close("entropy", &[last(&entropy)], &[-log_p.iter().map(|x| x * x.exp()).sum::<f64>()]);
        for (i, id) in order[..3].iter().enumerate() {
            assert_eq!(top[[layers, pos, i]], *id as f32);
            close("top_p", &[f64::from(top_p[[layers, pos, i]])], &[log_p[*id].exp()]);
        }
        let Some(follows) = ids.get(pos + 1).map(|id| *id as usize) else {
            assert!(last(&next).is_nan() && last(&rank).is_nan(), "nothing follows the last token");
            continue;
        };
        close("next", &[last(&next)], &[log_p[follows].exp()]);
        assert_eq!(last(&rank) as usize, 1 + order.iter().position(|id| *id == follows).unwrap());
        loss -= log_p[follows] / (n - 1) as f64;
    }
    close("loss", &[answer.json["loss"].as_f64().unwrap()], &[loss]);
}

/// Taps cut what they say out of the whole. Seen red: with all keys, and with another head.
#[test]
fn taps_are_parts_of_the_whole() {
    let (session, golden) = (session(), Golden::read(&fixtures().join("demo")));
    for (tap, name, axes) in [
        (
            json!({"hook": "pattern.2", "head": [1, 4], "pos": [3], "key": [1, 2]}),
            "blocks.2.attn.hook_pattern",
            [[1, 4].as_slice(), &[3], &[1, 2]],
        ),
        (
            json!({"hook": "z.1", "pos": [0, 3], "head": [2], "dim": [5, 7]}),
            "blocks.1.attn.hook_z",
            [[0, 3].as_slice(), &[2], &[5, 7]],
        ),
    ] {
        let answer = ask(&session, json!({"do": "look", "run": {"texts": [golden.ids[0]]}, "taps": [tap]}));
        assert_eq!(answer.arrays.len(), 1);
        let got = array(&answer, name);
        let mut want = golden.hooks[name].index_axis(Axis(0), 0).to_owned();
        for (axis, of) in axes.iter().enumerate() {
            want = want.select(Axis(axis), of);
        }
        assert_eq!(got.shape()[1..], *want.shape());
        let got: Vec<f64> = got.iter().map(|x| f64::from(*x)).collect();
        let want: Vec<f64> = want.iter().copied().collect();
        assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-5), "{name}: {got:?}, {want:?}");
    }
}

/// Edits of the page are those of the library, at the positions and heads that they name; a patch takes the second text's values
/// there. Seen red without the edits.
#[test]
fn edits_are_the_librarys() {
    let session = session();
    let at = |pos: usize| Select::all().positions(vec![vec![pos]]);
    let other = run(&session, OTHER, &[], Site::ResidPost(1));
    let row = |pos: usize| Edit::Replace(other.slice(s![pos, ..]).to_vec());
    for (edits, made) in [
        (vec!["blocks.2.attn.hook_z@head=4:zero"], vec![(Site::Z(2), Select::all().heads([4]), Edit::Zero)]),
        (vec!["resid_post.1@pos=1:patch"], vec![(Site::ResidPost(1), at(1), row(1))]),
        (
            vec!["resid_post.1@pos=5:patch", "mlp_out.3@pos=6:scale=0.5"],
            vec![(Site::ResidPost(1), at(5), row(5)), (Site::MlpOut(3), at(6), Edit::Scale(0.5))],
        ),
    ] {
        let (want, unedited) = (run(&session, TEXT, &made, Site::Unembed), run(&session, TEXT, &[], Site::Unembed));
        let moved = |pos: usize| (log_p(&want, pos, 13) - log_p(&unedited, pos, 13)).abs();
        assert!(moved(5).max(moved(6)) > 1e-3, "{edits:?} changes nothing");
        for pos in [5, 6] {
            let run = json!({"texts": [TEXT], "edits": edits, "source": OTHER});
            let answer = ask(&session, json!({"do": "next", "run": run, "pos": pos}));
            assert_eq!(answer.json["edits"].as_array().unwrap().len(), edits.len());
            let want = want.slice(s![pos, ..]).to_vec();
            assert_close(&format!("{edits:?}"), array(&answer, "logits").as_slice().unwrap(), &want, 1e-4, 1e-5);
        }
    }
}

/// Each cell of a sweep is a run of its own, with that head at zero or with the second text's values at that place. Seen red with the
/// second text's tokens shifted by one.
#[test]
fn sweeps_are_runs_of_their_own() {
    let session = session();
    let (layers, heads) = (session.model().config().n_layer, session.model().config().n_head);
    let n = session.model().encode(&[TEXT]).unwrap().n_pos();
    let (pos, answer) = (5, 13);
    let sweep = |run: Value, site: &str, axes: [&str; 2]| {
        let request = json!({
            "do": "sweep", "run": run, "site": site, "axes": axes, "metric": "logprob", "pos": pos, "answer": answer,
        });
        ask(&session, request).json
    };
    let zeroed = sweep(json!({"texts": [TEXT]}), "z", ["layer", "head"]);
    let patched = sweep(json!({"texts": [TEXT], "source": OTHER}), "resid_pre", ["layer", "pos"]);
    assert_eq!((&zeroed["shape"], &patched["shape"]), (&json!([layers, heads]), &json!([layers, n])));
    let after = |edits: &[_]| log_p(&run(&session, TEXT, edits, Site::Unembed), pos, answer);
    close("the unchanged run", &[zeroed["unchanged"].as_f64().unwrap()], &[after(&[])]);
    close(
        "the second text's",
        &[patched["source"].as_f64().unwrap()],
        &[log_p(&run(&session, OTHER, &[], Site::Unembed), pos, answer)],
    );
    let (zeroed, patched) = (numbers(&zeroed["values"]), numbers(&patched["values"]));
    for layer in 0..layers {
        for head in 0..heads {
            let want = after(&[(Site::Z(layer), Select::all().heads([head]), Edit::Zero)]);
            close(&format!("head {layer}.{head} at zero"), &[zeroed[layer * heads + head]], &[want]);
        }
        let other = run(&session, OTHER, &[], Site::ResidPre(layer));
        for at in 0..n {
            let place = Select::all().positions(vec![vec![at]]);
            let want = after(&[(Site::ResidPre(layer), place, Edit::Replace(other.slice(s![at, ..]).to_vec()))]);
            close(&format!("layer {layer}, token {at} patched"), &[patched[layer * n + at]], &[want]);
        }
    }
}

/// What attribution adds up to is the logit, and its heads are in their places: one at zero adds nothing. Seen red: the position
/// before, and without the edits.
#[test]
fn attributions_add_up() {
    let session = session();
    let (pos, answer) = (5, 13);
    let attribute = |edits: &[&str]| {
        let run = json!({"texts": [TEXT], "edits": edits});
        let by = json!({"do": "attribute", "run": run, "pos": pos, "answer": answer, "by": "head", "method": "direct"});
        ask(&session, by).json
    };
    let found = attribute(&[]);
    let (values, total) = (numbers(&found["values"]), found["total"].as_f64().unwrap());
    close("the logit", &[total], &[f64::from(run(&session, TEXT, &[], Site::Unembed)[[pos, answer as usize]])]);
    close("the sum", &[values.iter().sum::<f64>() + found["remainder"].as_f64().unwrap()], &[total]);
    let labels: Vec<String> = serde_json::from_value(found["labels"].clone()).unwrap();
    for head in [2, 4] {
        let without = numbers(&attribute(&[&format!("blocks.3.attn.hook_z@head={head}:zero")])["values"]);
        let of = |head: usize| {
            labels.iter().position(|label| *label == format!("blocks.3.attn.hook_result[{head}]")).unwrap()
        };
        let other = 6 - head;
        assert!(without[of(head)].abs() < 1e-6 && values[of(head)].abs() > 0.1, "head {head}");
        assert!(without[of(other)].abs() > 0.1, "head {other}");
    }
}

/// What is written is the likeliest token after what is there, again and again. Seen red with a temperature.
#[test]
fn texts_are_continued_by_their_likeliest_tokens() {
    let session = session();
    let request = json!({"do": "generate", "run": {"texts": ["The cat"]}, "n": 5, "temperature": 0, "seed": 0});
    let written = ask(&session, request).json;
    let new = written["new"].as_array().unwrap();
    assert_eq!(new.len(), 5);
    let mut ids = session.model().encode(&["The cat"]).unwrap().ids().to_vec();
    for new in new {
        let request = json!({"do": "next", "run": {"texts": [ids]}, "pos": ids.len() - 1});
        let log_p = log_softmax(array(&ask(&session, request), "logits").iter().map(|x| f64::from(*x)));
        let id = new["id"].as_u64().unwrap() as usize;
        assert!(log_p.iter().all(|other| *other <= log_p[id]), "{id} is not the likeliest");
        close("logprob", &[new["logprob"].as_f64().unwrap()], &[log_p[id]]);
        ids.push(id as u32);
    }
    assert_eq!(written["ids"], json!(ids));
}
