//! What each fuzz target does with its bytes, and what it promises about them. Owns no fuzzer: `fuzz_targets/` hands these
//! to libFuzzer, and `tests/properties.rs` runs them over the seeds in every test run.
//!
//! Whatever the bytes are: no panic, no endless loop, no memory beyond what they hold; and what is accepted keeps what its
//! type promises.
#![allow(unreachable_pub, reason = "the fuzz targets and a test include this file")]

use actscope::batch::Batch;
use actscope::config::Config;
use actscope::device::reference::Reference;
use actscope::hooks::layout::Layout;
use actscope::hooks::site;
use actscope::model::checkpoint::Checkpoint;
use actscope::model::forward::{self, Run};
use actscope::model::params::Params;
use actscope::model::shard_index;
use actscope::model::token_select::{self, Selection};
use actscope::model::tokenizer::{self, Token, Tokenizer};
use actscope::{Capture, Hooks};
use std::path::Path;
use std::sync::Arc;

/// libFuzzer's crate ends the process at every panic; those of the `tokenizers` crate are caught and turned into errors.
pub fn let_guarded_panics_pass() {
    std::panic::set_hook(Box::new(|panic| {
        if !tokenizer::panics_are_guarded() {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

/// `config.json`.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::from_json(text) {
        Ok(c) => {
            let sizes = [c.n_embd, c.n_layer, c.n_head, c.n_positions, c.vocab_size];
            assert!(sizes.iter().all(|n| (1..1 << 31).contains(n)) && (1..1 << 33).contains(&c.n_inner), "{c:?}");
            assert_eq!(c.head_dim() * c.n_head, c.n_embd);
            assert!(c.layer_norm_epsilon >= 0.0 && (c.layer_norm_epsilon as f32).is_finite(), "{c:?}");
            assert!(c.attn_scale(c.n_layer - 1) > 0.0);
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

/// A checkpoint in one file: the first line is its `config.json`, the rest its `model.safetensors`. A rest that begins with
/// `{` is a header, a line break, and the values; the length before the header is then put there, so that mutations need not
/// find it. What is accepted runs.
pub fn safetensors(data: &[u8]) {
    let line = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n');
    let Some(end) = line(data) else { return };
    let Ok(config) = std::str::from_utf8(&data[..end]) else { return };
    let rest = &data[end + 1..];
    let weights = match (rest.first(), line(rest)) {
        (Some(b'{'), Some(n)) => [&(n as u64).to_le_bytes(), &rest[..n], &rest[n + 1..]].concat(),
        _ => rest.to_vec(),
    };
    let n_bytes = weights.len();
    let checkpoint = match Checkpoint::from_bytes("fuzzed", config, Arc::new(weights)) {
        Ok(checkpoint) => Arc::new(checkpoint),
        Err(e) => return assert!(!e.to_string().is_empty()),
    };
    assert_eq!(checkpoint.fingerprint_of_every_byte().expect("it is in memory").len(), 64);
    let c = checkpoint.config().clone();
    let wte = checkpoint.tensor("wte.weight").expect("a checkpoint without an embedding is refused");
    assert!(wte.to_f32().len() == c.vocab_size * c.n_embd && wte.blob.bytes().len() <= n_bytes);

    let ids: Vec<u32> = (0..c.n_positions.min(3)).map(|i| (i % c.vocab_size) as u32).collect();
    let batch = Batch::new(&[ids], &c).expect("these ids are in the vocabulary");
    let mut hooks = Hooks::new(&c);
    hooks.tap("*").expect("every model has hooks");
    let mut capture = Capture::empty(&hooks, &batch).expect("a few tokens of a small model fit");
    let params = Params::new(checkpoint, None);
    let (dev, layout) = (Reference::default(), Layout::new(&hooks, &batch).expect("a request without positions"));
    let mut run = std::pin::pin!(forward::forward(&dev, &params, Run::new(&layout, 0..1), &mut capture, None));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match run.as_mut().poll(&mut context) {
        std::task::Poll::Ready(Ok(())) => {}
        other => panic!("an accepted checkpoint runs on the reference at once: {other:?}"),
    }
}

/// `model.safetensors.index.json`.
pub fn shard_index(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match shard_index::shards(Path::new("index.json"), text) {
        Ok(names) => {
            assert!(!names.is_empty() && names.is_sorted());
            // Every shard lies beside its index.
            let beside = |name: &String| Path::new("folder").join(name).parent() == Some(Path::new("folder"));
            assert!(names.iter().all(|name| beside(name) && name != ".."), "{names:?}");
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

/// `tokenizer.json`. What is accepted cuts texts and shows tokens.
pub fn tokenizer(data: &[u8]) {
    match Tokenizer::from_bytes("tokenizer.json", data) {
        Ok(text) => {
            for sample in ["The cat sat on the mat.", "a", "\n\n  \t", "<|endoftext|>", "naïve 🙂 \u{202e}x", "1234 's"]
            {
                let Ok(ids) = text.encode(sample) else { continue };
                ids.iter().for_each(|id| assert!(text.token(*id).label().chars().all(|c| !c.is_control())));
            }
            [0, 1, 255, 50256, u32::MAX].iter().for_each(|id| drop(text.token(*id).text()));
            text.end_of_text();
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

/// What stands beside a tokenizer: a line each for tokenizer_config.json, added_tokens.json and special_tokens_map.json (none
/// where it is empty), over a vocabulary of three tokens. A fourth line that is not empty makes it a WordPiece one.
pub fn tokenizer_folder(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder for a few files");
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("a small file");
    let mut lines = data.split(|byte| *byte == b'\n');
    for name in ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"] {
        if let Some(line) = lines.next().filter(|line| !line.is_empty()) {
            put(name, line);
        }
    }
    if lines.next().is_some_and(|line| !line.is_empty()) {
        put("vocab.txt", b"[UNK]\n[CLS]\n[SEP]\na\n##b\n");
    } else {
        put("vocab.json", br#"{"a": 0, "b": 1, "ab": 2}"#);
        put("merges.txt", b"#version: 0.2\na b\n");
    }
    match Tokenizer::from_folder(folder.path()) {
        Ok(Some(text)) => {
            for sample in ["ab a<x> b", "", "<pad>[UNK] <|endoftext|>", "é\n\t 1"] {
                for ids in [text.encode(sample), text.encode_plain(sample)].into_iter().flatten() {
                    ids.iter().for_each(|id| drop(text.token(*id).label()));
                }
                drop(text.special_tokens());
            }
            assert!(text.notes().iter().all(|note| !note.is_empty()));
        }
        Ok(None) => {}
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

/// `--hook`.
pub fn hook_pattern(data: &[u8]) {
    let Ok(pattern) = std::str::from_utf8(data) else { return };
    for n_layer in [1, 3] {
        match site::resolve(pattern, n_layer) {
            Ok(found) => {
                assert!(!found.is_empty() && found.is_sorted());
                assert!(found.iter().all(|site| site.layer().is_none_or(|layer| layer < n_layer)));
            }
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
}

/// `--token`: one selector a line.
pub fn token_selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let selectors: Vec<String> = text.lines().map(String::from).collect();
    let token = |bytes: &[u8]| Token { id: 0, bytes: Some(bytes.to_vec()) };
    let words = [token(b"The"), token(b" cat"), token(b"3"), token(b"\xf0\x9f"), token(b".."), token(b"\n")];
    let unread = [Token { id: 464, bytes: None }, Token { id: 3797, bytes: None }];
    for tokens in [&words[..], &unread, &words[..1]] {
        match token_select::select(&selectors, tokens, 0) {
            Ok(Selection { positions, .. }) => {
                assert!(positions.is_sorted_by(|a, b| a < b) && positions.iter().all(|p| *p < tokens.len()));
                assert_eq!(positions.is_empty(), selectors.is_empty());
            }
            Err(e) => assert!(!e.to_string().is_empty()),
        }
    }
}
