//! The demo model's tokenizer against transformers' GPT2TokenizerFast on thousands of odd strings, and decoding of
//! tokens that are no whole characters. The data is made by tools/goldens.

mod common;

use actscope::Model;
use serde_json::Value;

fn entries(file: &str) -> Vec<(String, Vec<u32>)> {
    let text = std::fs::read_to_string(common::fixtures().join(file)).unwrap();
    let values: Vec<Value> = serde_json::from_str(&text).unwrap();
    let ids = |v: &Value| v["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    values.iter().map(|v| (v["text"].as_str().unwrap().to_string(), ids(v))).collect()
}

/// Seen red: with white space removed at the end, 258 strings differ.
#[test]
fn odd_strings_are_cut_as_transformers_cuts_them() {
    let files = Model::open("demo").unwrap();
    let text = files.tokenizer().unwrap();
    let entries = entries("tokenizer_odd_strings.json");
    assert!(entries.len() >= 3000);
    let differ: Vec<_> = entries.iter().filter(|(string, ids)| text.encode(string).unwrap() != *ids).collect();
    assert!(differ.is_empty(), "{} of {} differ, the first: {:?}", differ.len(), entries.len(), differ[0]);
}

/// The bytes of all tokens, put together, are the text; partial characters turn into U+FFFD in both. Seen red: one byte
/// wrong in the table of characters.
#[test]
fn tokens_put_together_are_the_text() {
    let files = Model::open("demo").unwrap();
    for file in ["tokenizer_odd_strings.json", "tokenizer_odd_ids.json"] {
        for (text, ids) in entries(file) {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| files.token(*id).bytes.unwrap()).collect();
            assert_eq!(String::from_utf8_lossy(&bytes), text, "{file} {ids:?}");
        }
    }
}
