//! Compares folders of checkpoints as users save them with transformers: the ids of their tokenizers and the results of
//! their weights. tools/folders makes the folders and the expected values.

use actscope::model::tokenizer::Tokenizer;
use actscope::{Choice, Model, Select, Site};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn inputs(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs").join(kind)
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Every folder as AutoTokenizer reads it. Seen red with an added_tokens.json, a special_tokens_map.json, a class,
/// lstrip, add_prefix_space, do_lower_case and split_special_tokens taken out of a folder, in turn.
#[test]
fn tokens_are_those_of_transformers() {
    let expected = json(inputs("tokenizers/ids.json"));
    let strings: Vec<&str> = expected["strings"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    let folders = expected["folders"].as_object().unwrap();
    assert!(folders.len() >= 28 && strings.len() >= 30);
    let mut differ = Vec::new();
    for (name, of_folder) in folders {
        let tokenizer = Tokenizer::from_folder(&inputs("tokenizers").join(name)).unwrap().unwrap();
        for (i, string) in strings.iter().enumerate() {
            for (what, found) in [("ids", tokenizer.encode(string)), ("plain", tokenizer.encode_plain(string))] {
                let (found, wanted) = (found.unwrap(), ids(&of_folder[what][i]));
                if found != wanted {
                    differ.push(format!("{name} {what} {string:?}: {found:?}, transformers has {wanted:?}"));
                }
            }
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

/// A setting of a folder that is not followed exactly is reported.
#[test]
fn tokenizers_have_notes_where_files_disagree() {
    for (name, words) in [
        ("slow_gap", &["added_tokens.json", "\"<pad>\" the id 337", "it is 331"][..]),
        (
            "json_own_parts_class_gpt2",
            &["the normalizer and the pre_tokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"],
        ),
        ("json_unknown_class", &["used as it stands", "MyOwnTokenizer"]),
        ("v4_roberta", &["used as it stands", "RobertaTokenizer"]),
        ("v5_flags", &[]),
        ("v4_slow_pad", &[]),
        ("json_own_parts_class_fast", &[]),
    ] {
        let tokenizer = Tokenizer::from_folder(&inputs("tokenizers").join(name)).unwrap().unwrap();
        let notes = tokenizer.notes().join("\n");
        assert_eq!(notes.is_empty(), words.is_empty(), "{name}: {notes}");
        words.iter().for_each(|word| assert!(notes.contains(word), "{name}: {word:?} is not in {notes}"));
    }
}

/// The bytes of a token are those of its text, in vocabularies that are not byte-level too. Seen red: with `é` of a
/// WordPiece vocabulary taken for a byte of a byte-level one.
#[test]
fn tokens_of_every_vocabulary_have_their_text() {
    for (name, text, expected) in [
        ("v5_bert_flags", "naïve cathedral", "naïve cathedral"),
        ("v5_plain", " naïve", " n a\\xC3 \\xAFve"),
        ("fast_word_level", "The cat", "the cat"),
        ("v5_pad_chat", "<pad>", "<pad>"),
    ] {
        let tokenizer = Tokenizer::from_folder(&inputs("tokenizers").join(name)).unwrap().unwrap();
        let shown: Vec<String> = tokenizer.encode(text).unwrap().iter().map(|id| tokenizer.token(*id).text()).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).filter(|t| !t.starts_with('[')).collect();
        // Later pieces of a word begin with ##.
        assert_eq!(shown.join(" ").replace(" ##", ""), expected, "{name}");
    }
}

/// The residual stream after the last LayerNorm, against transformers in f64, and the notes about how the file was
/// read. Seen red with another epsilon, and with a head of another name.
#[test]
fn weights_are_read_as_they_are_saved() {
    let expected = json(inputs("weights/expected.json"));
    let ids = ids(&expected["ids"]);
    let notes: [(&str, &[&str]); 13] = [
        ("body", &[]),
        ("save_model_tied", &[]),
        ("sizes_under_other_names", &[]),
        ("sequence_classification", &["left out", "score.weight", "logits are those of the token embedding"]),
        ("token_classification", &["left out", "classifier.bias, classifier.weight"]),
        ("double_heads", &["left out", "multiple_choice_head.summary.bias"]),
        ("question_answering", &["left out", "qa_outputs.bias"]),
        ("value_head", &["left out", "v_head.summary.bias, v_head.summary.weight"]),
        ("value_head_wrapped", &["\"pretrained_model.\"", "v_head.summary.weight"]),
        ("compiled", &["\"_orig_mod.\""]),
        ("data_parallel_compiled", &["\"module._orig_mod.\""]),
        ("lightning", &["\"model.\""]),
        ("f64", &["16 of 16 tensors are stored as F64"]),
    ];
    let rows = expected["rows"].as_object().unwrap();
    assert_eq!(rows.len(), notes.len());
    let parameters =
        |name: &str| Model::open(inputs("weights").join(name).to_str().unwrap()).unwrap().checkpoint().parameters();
    assert_eq!(parameters("save_model_tied"), parameters("body"), "a tensor under two names counts once");
    for (name, words) in notes {
        let model = Model::open(inputs("weights").join(name).to_str().unwrap()).unwrap();
        let said = model.notes().collect::<Vec<_>>().join("\n");
        assert_eq!(said.is_empty(), words.is_empty(), "{name}: {said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{name}: {word:?} is not in {said}"));

        let session = model.on(Choice::Cpu).unwrap();
        let batch = session.model().batch(&[&ids]).unwrap();
        let site = Site::LnFinalOut;
        let mut hooks = session.model().hooks();
        hooks.tap_at(site, Select::all()).unwrap();
        let capture = session.run(&batch, &hooks).unwrap();
        let found: Vec<f32> = capture.get(site).unwrap().iter().copied().collect();
        let wanted: Vec<f64> = rows[name]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|x| x.as_f64().unwrap())
            .collect();
        assert_eq!(found.len(), wanted.len());
        let worst = found.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        let size = wanted.iter().map(|x| x.abs()).fold(0.0, f64::max);
        // The bound is a few f32 roundings in one block.
        assert!(worst <= 4e-6 * size, "{name}: {worst} of {size}");
    }
}
