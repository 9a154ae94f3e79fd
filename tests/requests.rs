//! Less common requests: words, windows, documents, lists, names of other tools, NaN values. Each case has the message
//! and the exit code.

#[path = "common/binary.rs"]
mod binary;
#[path = "common/checkpoint.rs"]
mod checkpoint;

use binary::*;
use serde_json::{Value, json};
use std::path::Path;

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&run_well([args, &["--json", "-q"]].concat())).unwrap()
}

fn demo(args: &[&str]) -> Value {
    json_of(&[&["extract"], args].concat())
}

fn classic(args: &[&str]) -> Value {
    demo(&[args, &["-m", CLASSIC, "--device", "cpu"]].concat())
}

/// The rows of one hook of one text.
fn rows<'a>(record: &'a Value, hook: &str, text: usize) -> &'a Vec<Value> {
    record["hooks"][hook][text].as_array().unwrap()
}

/// Arguments (`FOLDER` stands for a folder with the files below, `CLASSIC` for a checkpoint without a tokenizer),
/// stdin, exit code, and the words that stderr must contain.
type Case = (&'static [&'static str], &'static str, i32, &'static [&'static str]);

const CASES: &[Case] = &[
    // Tokens.
    (&["extract", "a cat", "-t", "dog"], "", 2, &["--token \"dog\" matches no token of text 0", "\" cat\""]),
    (&["extract", "The cathedral", "-t", "thed"], "", 2, &["is a part of", "selects them"]),
    (&["extract", "a 5 b", "-t", "5"], "", 2, &["matches no token", "'\"5\"' selects it"]),
    (&["extract", "5 5", "-t", "0"], "", 0, &["model: demo"]),
    (
        &["extract", "1 0", "-t", "1"],
        "",
        0,
        &["note: --token 1 is the position; token 0 is \"1\", and '\"1\"' selects it"],
    ),
    (&["extract", "cat cat", "-t", "cat"], "", 0, &["note: --token \"cat\" is taken without a leading space"]),
    // Texts.
    (&["extract"], "", 2, &["give a text, a file with --file or --document, or token ids with --ids"]),
    (&["tokens"], "hi\n", 0, &[]),
    (&["heatmap"], "hi there\n", 0, &[]),
    (&["tokens", "--file", "FOLDER/gaps.txt"], "", 0, &["note: 2 blank lines of FOLDER/gaps.txt skipped"]),
    (&["tokens", "--file", "FOLDER/blank.txt"], "", 1, &["blank.txt holds no text"]),
    (&["tokens", "--file", "FOLDER/gaps.txt", "--file", "FOLDER/lines.jsonl"], "", 2, &["--field text"]),
    (&["tokens", "--file", "FOLDER/lines.jsonl", "--field", "text"], "", 0, &[]),
    (
        &["tokens", "--file", "FOLDER/lines.jsonl", "--field", "body"],
        "",
        1,
        &["line 1", "no field \"body\"; name one that it has with --field: id, text"],
    ),
    (&["tokens", "--file", "FOLDER/lines.jsonl", "--field", "id"], "", 1, &["line 1", "no text in its field \"id\""]),
    (&["tokens", "--file", "FOLDER/gaps.txt", "--field", "text"], "", 1, &["line 1 of FOLDER/gaps.txt is not JSON"]),
    (&["tokens", "--document", "FOLDER/gaps.txt"], "", 0, &[]),
    (&["tokens", "--document", "FOLDER/none.txt"], "", 1, &["cannot read FOLDER/none.txt"]),
    (&["tokens", "--document", "FOLDER/empty.txt"], "", 1, &["empty.txt holds no text"]),
    (&["tokens", "--document", "FOLDER/latin1.txt"], "", 1, &["bytes from 3 on are not UTF-8"]),
    (&["tokens", "a", "--document", "FOLDER/gaps.txt"], "", 2, &["--document"]),
    (&["tokens", "<|endoftext|> a"], "", 0, &["note: text 0 holds <|endoftext|>, which was taken as one token, 4095"]),
    // Ids.
    (&["tokens", "--ids", "[1, 2"], "", 2, &["--ids: a bracket is not closed"]),
    (&["tokens", "--ids", "tensor([[1, x]])"], "", 2, &["\"x\" is not a token id"]),
    (&["tokens", "--ids", "@FOLDER/gaps.txt"], "", 1, &["line 1 of FOLDER/gaps.txt", "is not a token id"]),
    (&["tokens", "--ids", "@FOLDER/blank.txt"], "", 1, &["holds no token ids"]),
    (&["tokens", "--ids", "@FOLDER/none.txt"], "", 1, &["cannot read"]),
    (&["tokens", "--ids", "99999"], "", 1, &["99999", "vocabulary ends at 4095"]),
    // Gradients.
    (&["extract", "a cat", "--grad", "logit-dif"], "", 2, &["--grad: \"logit-dif\" is none of logit-diff", "dot:SITE"]),
    (&["extract", "a cat", "--grad", "logit"], "", 2, &["--grad logit needs an answer token: give --answer"]),
    (&["extract", "a cat", "--grad", "logit-diff", "--answer", " cat"], "", 2, &["give --wrong"]),
    (&["extract", "a cat", "--answer", " cat"], "", 2, &["give --grad METRIC"]),
    (&["extract", "a cat", "--grad", "kl"], "", 2, &["is 0 without --edit"]),
    (&["extract", "a", "--grad", "loss"], "", 2, &["text 0: it has one token"]),
    (&["extract", "a cat", "--grad", "loss", "--words"], "", 2, &["leave out --window, --words, --mean and --check"]),
    (&["extract", "a cat", "--grad", "loss", "--mean"], "", 2, &["leave out --window, --words, --mean and --check"]),
    (&["extract", "a cat", "--grad", "dot:resid_pre.1"], "", 2, &["is not a linear function of a hook"]),
    (&["extract", "a cat", "--grad", "dot:resid_pre.*=1"], "", 2, &["names several hooks"]),
    (&["extract", "a cat", "--grad", "dot:resid_pre.1=FOLDER/none.npy"], "", 1, &["cannot read FOLDER/none.npy"]),
    (&["extract", "a cat", "--grad", "dot:z.1=1", "--answer", " cat"], "", 2, &["are about logits"]),
    (&["extract", "a cat", "--grad", "loss", "-o", "FOLDER/x.npy"], "", 2, &["can hold one array, and 2"]),
    (&["extract", "a cat", "--grad", "loss", "--device", "cpu"], "", 0, &["text 0: the metric is"]),
    // Windows.
    (&["extract", "a", "--window", "257"], "", 2, &["--window 257 is more than the 256 positions of this model"]),
    (&["extract", "a", "--window", "8:9"], "", 2, &["leaves tokens out"]),
    (&["extract", "a", "--window", "x"], "", 2, &["neither N nor N:STRIDE"]),
    (&["extract", "a", "--window", "8", "--truncate"], "", 2, &["--truncate"]),
    (&["extract", "", "--window", "8"], "", 1, &["text 0 has no tokens"]),
    (&["extract", "--ids", "1", "--ids", "7 4096", "--window", "8"], "", 1, &["text 1 holds the token id 4096"]),
    (
        &["tokens", "--ids", "@FOLDER/long.txt"],
        "",
        0,
        &["text 0 has 300 tokens, 44 more than the context of 256", "--window"],
    ),
    // Words.
    (&["extract", "a", "--words", "-k", "pattern.0"], "", 2, &["blocks.0.attn.hook_pattern is about pairs of tokens"]),
    (&["extract", "a", "--pool", "last"], "", 2, &["--words"]),
    (&["extract", " ", "--words"], "", 1, &["text 0 holds no word"]),
    (&["extract", "--ids", "1 2", "--words", "-m", "CLASSIC"], "", 1, &["tokenizer"]),
    // Layers, heads, dimensions.
    (&["extract", "a", "-l", "0,9"], "", 2, &["layer 9 does not exist"]),
    (&["extract", "a", "-l", "2..9"], "", 2, &["the range 2..9", "0 to 3"]),
    (&["extract", "a", "-l", "1-3"], "", 2, &["\"1-3\" is neither a whole number, a range a..b, nor `all`"]),
    (
        &["attention", "a", "-l", "-5"],
        "",
        2,
        &["layer -5 does not exist: this model has layers 0 to 3, and -1 is the last"],
    ),
    (&["attention", "a", "--head", "0..6"], "", 2, &["--head: the range 0..6"]),
    (&["heatmap", "a", "--dims", "5,x"], "", 2, &["a list such as 5,6,7"]),
    (&["heatmap", "a", "--dims", "5,160"], "", 2, &["dimension 160 does not exist"]),
    // Names of other tools.
    (&["extract", "a", "-k", "hidden_states[-1]"], "", 0, &["note: hidden_states[-1] is after the final LayerNorm"]),
    (&["extract", "a", "-k", "transformer.h[0].attn.c_attn"], "", 0, &["here it is the three hooks q, k and v"]),
    (&["extract", "a", "-k", "hidden_states.5"], "", 2, &["no hook matches \"hidden_states.5\"; nearest: "]),
    (&["extract", "a", "-k", "blocks.9.attn.hook_z"], "", 2, &["this model has 4 blocks, the last of which is 3"]),
    (&["extract", "a", "-k", "z.0@head=1"], "", 2, &["give the hook's name alone"]),
    (&["extract", "a", "-k", "embed.hook_in"], "", 2, &["is not an activation: it holds token ids"]),
    (&["hooks", "hidden_states.2"], "", 0, &["note: hidden_states.2 is what leaves block 1"]),
    // Attribution, heads, circuits, processed weights.
    (&["attribute", "a b"], "", 2, &["attribute needs the token whose logit", "--answer"]),
    (&["attribute", "a b", "--wrong", " c"], "", 2, &["--answer"]),
    (&["attribute", "a", "b", "--answer", " c"], "", 2, &["attribute takes one text and 2 were given"]),
    (
        &["attribute", "a b", "--answer", "id:4096"],
        "",
        2,
        &["--answer id:4096 is beyond the vocabulary, which ends at 4095"],
    ),
    (&["attribute", "a b", "--answer", " cathedral"], "", 2, &["tokens", "give one token"]),
    (
        &["attribute", "a b", "--answer", " c", "--by", "heads"],
        "",
        2,
        &["none of component, layer, head, neuron, position"],
    ),
    (&["attribute", "a b", "--answer", " c", "--top", "0"], "", 2, &["--top"]),
    (&["attribute", "a b", "--answer", " c", "--metric-token", "9"], "", 2, &["--metric-token"]),
    (
        &["attribute", "a b", "--answer", " c", "-o", "FOLDER/x.pdf"],
        "",
        2,
        &[".json, .csv, .npz, .safetensors, .png or .svg"],
    ),
    (&["attribute", "a b", "--answer", " c", "--process", "fold"], "", 2, &["none of fold-ln, center-writing"]),
    (&["attribute", "--ids", "1 2", "--answer", "c", "-m", "CLASSIC"], "", 1, &["tokenizer"]),
    (&["attribute", "--ids", "1 2", "--answer", "id:3", "-m", "CLASSIC"], "", 0, &[]),
    (&["extract", "a", "--process", ""], "", 2, &["none of fold-ln"]),
    (&["lens", "a", "--of", "block"], "", 2, &["accumulated, component"]),
    (&["heads", "a"], "", 2, &["text 0 has one token"]),
    (&["heads", "--length", "128"], "", 2, &["--length 128 makes texts of 257 tokens", "127 is the most"]),
    (&["heads", "a b", "--measure", "max"], "", 2, &["none of mul, abs"]),
    (&["heads", "a b", "--exclude-bos", "--exclude-current"], "", 1, &["the exclusions leave none of a text"]),
    (&["heads", "a b", "--edit", "z.9:zero"], "", 2, &["z.9"]),
    (&["circuits"], "", 2, &["L.H"]),
    (&["circuits", "3"], "", 2, &["\"3\" is not a head; write layer and head, such as 3.4"]),
    (&["circuits", "4.0"], "", 2, &["layer 4 does not exist: this model has layers 0 to 3"]),
    (&["circuits", "0.5"], "", 2, &["head 5 does not exist: this model has heads 0 to 4"]),
    (&["circuits", "0.0", "--kind", "mlp"], "", 2, &["none of ov, qk"]),
    (&["circuits", "0.0", "-o", "FOLDER/x.png"], "", 2, &[".json, .csv, .npz or .safetensors"]),
    (&["circuits", "-1.-1", "-m", "CLASSIC"], "", 0, &[]),
    // By gradients.
    (&["attribute", "a b", "--answer", " c", "--method", "shapley"], "", 2, &["none of direct, gradient, integrated"]),
    (&["attribute", "a b", "--answer", " c", "--method", "integrated=0"], "", 2, &["\"0\" is not a number of steps"]),
    (&["attribute", "a b", "--answer", " c", "--baseline", "c"], "", 2, &["--baseline", "--method integrated"]),
    (
        &["attribute", "a b", "--answer", " c", "--method", "integrated", "--baseline", "a b c d"],
        "",
        2,
        &["the baseline has 4 tokens and the text 2"],
    ),
    (
        &["attribute", "a b", "--answer", " c", "--method", "integrated", "--edit", "embed:scale=2"],
        "",
        2,
        &["an edit changes hook_embed"],
    ),
    (&["attribute", "a b", "--answer", " c", "--method", "integrated=2", "--by", "head"], "", 0, &[]),
    (&["extract", "a", "--checkpoint"], "", 2, &["--grad"]),
    (&["patch", "--clean", "a b", "--corrupt", "a c", "--answer", " d", "--compare"], "", 2, &["--fast"]),
    (
        &["patch", "--clean", "a b", "--corrupt", "a c", "--answer", " d", "--fast", "--path", "mlp...logits"],
        "",
        2,
        &["--path", "--fast"],
    ),
    (
        &["patch", "--clean", "a b", "--corrupt", "a c", "--metric", "kl", "--noise", "--fast"],
        "",
        2,
        &["a fast sweep is estimated from gradients", "gradient 0"],
    ),
    (&["edges", "a b"], "", 2, &["edges takes its texts as --clean and --corrupt, or as --pairs"]),
    (&["edges", "--clean", "a b"], "", 2, &["give --corrupt"]),
    (
        &["edges", "--clean", "a b", "--corrupt", "a", "--answer", " c"],
        "",
        2,
        &["do not line up", "reword one of them"],
    ),
    (&["edges", "--clean", "a b", "--corrupt", "a c"], "", 2, &["--metric logit needs an answer token: give --answer"]),
    (
        &["edges", "--clean", "a b", "--corrupt", "a c", "--answer", " c", "--method", "ig"],
        "",
        2,
        &["none of eap, eap-ig"],
    ),
    (&["edges", "--clean", "a b", "--corrupt", "a c", "--answer", " c", "--top", "0"], "", 2, &["--top"]),
    (
        &["edges", "--clean-ids", "1 2", "--corrupt-ids", "1 3", "--answer", "id:3", "-m", "CLASSIC", "--faithfulness"],
        "",
        0,
        &[],
    ),
    // Options of other commands, and none.
    (
        &["tokens", "a", "--hook", "x"],
        "",
        2,
        &["tokens has no option --hook, which is an option of extract, heatmap and generate"],
    ),
    (&["lens", "a", "-k", "x"], "", 2, &["lens has no option -k, which is an option of extract, heatmap and generate"]),
    (&["extract", "a", "--hok", "x"], "", 2, &["extract has no option --hok; nearest: --hook"]),
    (&["extract", "a", "--zzzzzz"], "", 2, &["put a text that begins with `-` after `--`"]),
    (&["hooks", "a", "b"], "", 2, &["takes no more arguments", "\"b\""]),
    // Files.
    (
        &["extract", "a", "-o", "FOLDER/none/x.npz"],
        "",
        1,
        &["cannot write FOLDER/none/x.npz: the folder FOLDER/none does not exist"],
    ),
    (&["extract", "a", "-o", "FOLDER/gaps.txt/x.npz"], "", 1, &["the folder FOLDER/gaps.txt is not a folder"]),
    (
        &["extract", "a", "-l", "0,1", "-o", "FOLDER/x.npy"],
        "",
        2,
        &["x.npy can hold one array, and 2 hooks were asked for"],
    ),
    (&["extract", "a", "-o", "FOLDER/x.pt"], "", 2, &[".safetensors, .npz, .npy, .json, .jsonl, .csv or .parquet"]),
    (&["extract", "--ids", "@FOLDER/ids.json", "-o", "FOLDER/ids.json"], "", 2, &["is a file that this run reads"]),
    // Paths, pages, and edits in windows.
    (&["patch", "--clean", "a", "--corrupt", "b", "--answer", "c", "--path", "z.1"], "", 2, &["FROM...TO"]),
    (
        &["patch", "--clean", "a", "--corrupt", "b", "--answer", "c", "--path", "head...q.0.1"],
        "",
        2,
        &["no layer comes before what receives"],
    ),
    (
        &["patch", "--clean", "a", "--corrupt", "b", "--answer", "c", "--path", "head...logits", "--by", "layer"],
        "",
        2,
        &["leaves head open, which must be an axis"],
    ),
    (&["patch", "--clean", "a", "--corrupt", "b", "--answer", "c", "--frozen"], "", 2, &["--path"]),
    (
        &["patch", "--clean", "a", "--corrupt", "b", "--answer", "c", "--path", "mlp...logits", "--at", "z"],
        "",
        2,
        &["cannot be used with"],
    ),
    (&["generate", "a", "-k", "z.1", "-o", "FOLDER/page.html"], "", 2, &["a page shows what `report` shows"]),
    (&["generate", "a", "b", "-o", "FOLDER/page.html"], "", 2, &["a page shows one text, and 2 are generated"]),
    (&["extract", "a b c d", "--window", "2", "--edit", "pattern.0:mean"], "", 2, &["which windows do not have"]),
    (
        &["extract", "--ids", "1 2 3 4", "--window", "2", "--edit", "z.0@pos=1:patch", "--source-ids", "1 2"],
        "",
        2,
        &["text 0 has 4 tokens and its source 2"],
    ),
    (
        &["extract", "--ids", "1 2 3", "--window", "2", "--edit", "z.0@pos=3:zero"],
        "",
        2,
        &["pos 3 of 3 tokens of text 0"],
    ),
    // Files of steps.
    (&["run", "FOLDER/none.toml"], "", 1, &["cannot read FOLDER/none.toml"]),
    (&["run", "FOLDER/gaps.txt"], "", 1, &["FOLDER/gaps.txt is not a file of steps"]),
    (&["run", "FOLDER/loop.toml"], "", 1, &["step \"again\"", "has no command in args, or has `run`"]),
];

#[test]
fn input_message_and_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("gaps.txt"), "one\n\ntwo\n \n").unwrap();
    std::fs::write(at("blank.txt"), "\n \n").unwrap();
    std::fs::write(at("empty.txt"), "").unwrap();
    std::fs::write(at("latin1.txt"), b"caf\xe9").unwrap();
    std::fs::write(at("lines.jsonl"), "{\"id\": 1, \"text\": \"one\"}\n\n{\"id\": 2, \"text\": \"two\\nlines\"}\n")
        .unwrap();
    std::fs::write(at("long.txt"), vec!["7"; 300].join(" ")).unwrap();
    std::fs::write(at("ids.json"), "[1, 2]").unwrap();
    std::fs::write(at("loop.toml"), "[[step]]\nname = \"again\"\nargs = [\"run\", \"loop.toml\"]\n").unwrap();
    let before = names_in(folder.path());
    let path = folder.path().display().to_string();
    let mut wrong = Vec::new();
    for (args, stdin, code, parts) in CASES {
        let args: Vec<String> =
            args.iter().map(|arg| arg.replace("FOLDER", &path).replace("CLASSIC", CLASSIC)).collect();
        let output = actscope(&args).write_stdin(*stdin).output().unwrap();
        let said = stderr(&output);
        let missing: Vec<&&str> = parts.iter().filter(|part| !said.contains(&part.replace("FOLDER", &path))).collect();
        if output.status.code() != Some(*code) || !missing.is_empty() || said.contains(".actscope-") {
            wrong.push(format!(
                "{args:?}: {:?}, expected {code}; lacks {missing:?}; said: {said}",
                output.status.code()
            ));
        }
        if *code != 0 && !output.stdout.is_empty() {
            wrong.push(format!("{args:?}: stdout is not empty"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(names_in(folder.path()), before, "a failed run leaves nothing behind");
}

#[test]
fn tokens_by_word_and_phrase() {
    let text = "The cathedral and the cathedral";
    let all = demo(&[text, "-k", "resid_mid.1"]);
    let tokens: Vec<&str> = all["tokens"][0].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    let church = tokens.iter().position(|token| token.starts_with(" c")).unwrap();
    let n = tokens.iter().position(|token| *token == " and").unwrap() - church;
    assert!(n > 1, "one token: {tokens:?}");
    let second = tokens.len() - n;
    let both: Vec<usize> = (church..church + n).chain(second..second + n).collect();
    for (selector, positions) in [
        ("cathedral", both.clone()),
        (" cathedral", both.clone()),
        ("␣cathedral", both.clone()),
        ("Ġcathedral", both),
        ("first:cathedral", vec![church, second]),
        ("last:cathedral", vec![church + n - 1, second + n - 1]),
        ("cathedral and", (church..church + n + 1).collect()),
    ] {
        let some = demo(&[text, "-k", "resid_mid.1", "-t", selector]);
        assert_eq!(some["positions"], json!([positions]), "{selector}");
        let want: Vec<&Value> = positions.iter().map(|p| &rows(&all, "blocks.1.hook_resid_mid", 0)[*p]).collect();
        assert_eq!(rows(&some, "blocks.1.hook_resid_mid", 0).iter().collect::<Vec<_>>(), want, "{selector}");
    }
    assert_eq!(demo(&["a\nb", "-t", "\\n"])["positions"], json!([[1]]));
}

#[test]
fn offsets_in_bytes_and_characters() {
    let text = "né 🙂 cat\n<|endoftext|>";
    let tokens = json_of(&["tokens", text, "--prepend-bos"]);
    let tokens = tokens[0].as_array().unwrap();
    assert_eq!((&tokens[0]["bytes"], &tokens[0]["chars"]), (&json!([0, 0]), &json!([0, 0])));
    let mut at = 0;
    let chars: Vec<char> = text.chars().collect();
    for token in &tokens[1..] {
        let span = |key: &str| [0, 1].map(|i| token[key][i].as_u64().unwrap() as usize);
        let ([from, to], [first, end]) = (span("bytes"), span("chars"));
        assert_eq!(from, at);
        at = to;
        let around: String = chars[first..end].iter().collect();
        let shown = token["token"].as_str().unwrap();
        if text.is_char_boundary(from) && text.is_char_boundary(to) {
            assert_eq!((&text[from..to], around.as_str()), (shown, shown));
        } else {
            assert!(shown.starts_with("\\x") && around.chars().count() == 1 && !around.is_ascii(), "{token}");
        }
    }
    assert_eq!(at, text.len());
}

/// Seen red with the token put in front a second time, and with the tokens that the tokenizer adds taken for the text's.
#[test]
fn a_token_that_the_tokenizer_adds_is_not_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs/tokenizers/slow_bos_eos");
    for file in ["merges.txt", "tokenizer_config.json", "vocab.json"] {
        std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    let model = checkpoint::config(8, 2, 1, &[("vocab_size", json!(400)), ("bos_token_id", json!(0))]);
    checkpoint::write(folder.path(), &model, 1);
    let model = folder.path().to_str().unwrap();
    let ids = |args: &[&str]| {
        let output = run([&["tokens", "-m", model, "--json"], args].concat());
        let tokens: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids: Vec<Value> = tokens[0].as_array().unwrap().iter().map(|token| token["id"].clone()).collect();
        (ids, stderr(&output))
    };
    let (plain, said) = ids(&["the cat"]);
    assert_eq!((&plain[0], plain.last().unwrap()), (&json!(0), &json!(0)), "the tokenizer frames a text");
    assert!(!said.contains("taken as one token"), "{said}");
    let (begun, said) = ids(&["the cat", "--prepend-bos"]);
    assert_eq!(begun, plain);
    assert!(said.contains("this tokenizer itself puts") && said.contains("adds no second one"), "{said}");
    let (_, said) = ids(&["the <|endoftext|> cat"]);
    assert!(said.contains("holds <|endoftext|>, which was taken as one token"), "{said}");
    assert_eq!(ids(&["--ids", "5 6", "--prepend-bos"]).0, [0, 5, 6].map(|id| json!(id)));
}

#[test]
fn words_in_place_of_tokens() {
    let text = "The cathedral isn't big.\n\nYes";
    let all = demo(&[text, "-k", "resid_mid.1", "-k", "z.0"]);
    let mean = demo(&[text, "-k", "resid_mid.1", "-k", "z.0", "--words"]);
    let last = demo(&[text, "-k", "resid_mid.1", "--words", "--pool", "last"]);
    let words = ["The", "cathedral", "isn't", "big", ".", "Yes"];
    assert_eq!((&mean["words"], &mean["pool"]), (&json!([words]), &json!("mean")));
    assert_eq!((&last["words"], &last["pool"]), (&json!([words]), &json!("last")));
    let of = |record: &Value, row: usize, dim: usize| {
        record["hooks"]["blocks.1.hook_resid_mid"][0][row][dim].as_f64().unwrap()
    };
    let heads = |record: &Value, row: usize| record["hooks"]["blocks.0.attn.hook_z"][0][row][3][1].as_f64().unwrap();
    for (n, word) in words.iter().enumerate() {
        let place = |key: &str| mean[key][0][n].as_u64().unwrap() as usize;
        let (first, end) = (place("word_first"), place("word_last"));
        let spelled: String = (first..=end).map(|p| all["tokens"][0][p].as_str().unwrap()).collect();
        assert_eq!(spelled.trim(), *word);
        for dim in [0, 159] {
            let want = (first..=end).map(|p| of(&all, p, dim)).sum::<f64>() / (end + 1 - first) as f64;
            assert!((of(&mean, n, dim) - want).abs() < 1e-6, "{word}: {} is not {want}", of(&mean, n, dim));
            assert_eq!(of(&last, n, dim), of(&all, end, dim), "{word}");
        }
        let want = (first..=end).map(|p| heads(&all, p)).sum::<f64>() / (end + 1 - first) as f64;
        assert!((heads(&mean, n) - want).abs() < 1e-6, "{word}");
    }
    let one = demo(&[text, "-k", "resid_mid.1", "--words", "-t", "first:cathedral"]);
    assert_eq!(
        (&one["words"], one["hooks"]["blocks.1.hook_resid_mid"][0].as_array().unwrap().len()),
        (&json!([["cathedral"]]), 1)
    );
    assert_eq!(one["hooks"]["blocks.1.hook_resid_mid"][0][0], mean["hooks"]["blocks.1.hook_resid_mid"][0][1]);
    let table = run_well(["extract", text, "--words", "-q"]);
    assert!(
        table.contains("\"cathedral\"") && table.contains("\"isn't\"") && table.lines().count() == 2 + 6 + 1,
        "{table}"
    );
}

/// Each token from the window in which it has most context, bit for bit. The first window equals a run without windows.
#[test]
fn windows_of_a_long_text() {
    let ids: Vec<String> = (0..41).map(|i| ((i * 37 + i * i) % 101).to_string()).collect();
    let all = ids.join(" ");
    let hooks = ["-k", "*"];
    let long = classic(&[&["--ids", &all, "--window", "12:5"], &hooks[..]].concat());
    for (start, own) in [(0, 0..12), (5, 12..17), (10, 17..22), (15, 22..27), (20, 27..32), (25, 32..37), (30, 37..41)]
    {
        let end = 41.min(start + 12);
        let alone = classic(&[&["--ids", &ids[start..end].join(" ")], &hooks[..]].concat());
        for (name, of_texts) in long["hooks"].as_object().unwrap() {
            let square = name.ends_with("hook_pattern") || name.ends_with("hook_attn_scores");
            if !square {
                let want = &rows(&alone, name, 0)[own.start - start..own.end - start];
                assert_eq!(&of_texts[0].as_array().unwrap()[own.clone()], want, "{name}, tokens {own:?}");
                continue;
            }
            let unseen = if name.ends_with("scores") { json!("-Infinity") } else { json!(0.0) };
            for (head, of_head) in of_texts[0].as_array().unwrap().iter().enumerate() {
                for query in own.clone() {
                    let row = of_head[query].as_array().unwrap();
                    assert_eq!(row.len(), 41);
                    assert_eq!(json!(row[start..end]), alone["hooks"][name][0][head][query - start], "{name} {query}");
                    assert!(row[..start].iter().chain(&row[end..]).all(|v| *v == unseen), "{name} {query}: {row:?}");
                }
            }
        }
    }
}

#[test]
fn windows_with_chosen_tokens_several_texts_and_every_format() {
    let ids: Vec<String> = (0..30).map(|i| (i * 3).to_string()).collect();
    let all = ids.join(" ");
    let texts = ["--ids", &all, "--ids", "5 6 7", "--window", "8:4", "-k", "resid_post.1", "-k", "pattern.2"];
    let whole = classic(&texts);
    assert_eq!(whole["input_ids"][0].as_array().unwrap().len(), 30);
    assert_eq!(whole["attention_mask"][1].as_array().unwrap().iter().filter(|v| **v == 1).count(), 3);
    let some = classic(&[&texts[..], &["-t", "0", "-t", "-1"]].concat());
    assert_eq!(some["positions"], json!([[0, 29], [0, 2]]));
    for (text, last) in [(0, 29), (1, 2)] {
        let (of_whole, of_some) =
            (rows(&whole, "blocks.1.hook_resid_post", text), rows(&some, "blocks.1.hook_resid_post", text));
        assert_eq!((&of_some[0], &of_some[1], of_some.len()), (&of_whole[0], &of_whole[last], 2));
    }
    // The formats that are filled in place, and those that are written from front to back.
    let folder = tempfile::tempdir().unwrap();
    for extension in ["json", "npz", "safetensors", "csv", "jsonl"] {
        let out = folder.path().join(format!("x.{extension}")).display().to_string();
        run_well([&["extract", "-q", "-m", CLASSIC, "--device", "cpu", "-o", &out], &texts[..]].concat());
    }
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let from_file: Value = serde_json::from_slice(&read("x.json")).unwrap();
    assert_eq!(from_file["hooks"], whole["hooks"]);
    assert_eq!(from_file["window"], "8:4");
    let lines: Vec<Value> =
        String::from_utf8(read("x.jsonl")).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 33 * (1 + 4), "one row a token and head");
    let line =
        lines.iter().find(|l| l["hook"] == "blocks.2.attn.hook_pattern" && l["position"] == 20 && l["head"] == 3);
    assert_eq!(line.unwrap()["values"], whole["hooks"]["blocks.2.attn.hook_pattern"][0][3][20]);
    assert_eq!(line.unwrap()["token_id"], 60);
    assert_eq!(String::from_utf8(read("x.csv")).unwrap().lines().count(), 1 + lines.len());
}

/// An archive whose scores came piece by piece, out of the file's order, still has right checksums. A zip reader that
/// checks them is in Python's standard library.
#[test]
fn checksums_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npz");
    let ids = vec!["7"; 40].join(" ");
    let args =
        ["extract", "-q", "-m", CLASSIC, "--ids", &ids, "--window", "8:4", "-k", "*", "-o", out.to_str().unwrap()];
    run_well(args);
    let script = "import sys, zipfile; print(zipfile.ZipFile(sys.argv[1]).testzip())";
    let output = std::process::Command::new("python3").args(["-c", script]).arg(&out).output().unwrap();
    assert_eq!(stdout(&output), "None\n", "{}", stderr(&output));
}

#[test]
fn documents_and_lists_of_texts() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("a.txt"), "\u{feff}one\n\ntwo\n").unwrap();
    std::fs::write(at("b.jsonl"), "{\"text\": \"three\\nlines\"}\n{\"text\": \"x\"}\n").unwrap();
    std::fs::write(at("ids.txt"), "1 2 3\n[4, 5]\ntensor([[6, 7]])\n").unwrap();
    assert_eq!(demo(&["--document", &at("a.txt")])["text"], json!(["one\n\ntwo\n"]));
    assert_eq!(demo(&["--file", &at("a.txt"), "--file", &at("a.txt")])["text"], json!(["one", "two", "one", "two"]));
    assert_eq!(demo(&["--file", &at("b.jsonl"), "--field", "text"])["text"], json!(["three\nlines", "x"]));
    let ids = demo(&["--ids", &format!("@{}", at("ids.txt")), "--ids", "[[8], [9]]"]);
    assert_eq!(ids["input_ids"], json!([[1, 2, 3], [4, 5, 0], [6, 7, 0], [8, 0, 0], [9, 0, 0]]));
    let piped = |args: &[&str], stdin: &str| {
        let output = actscope([args, &["--json", "-q"]].concat()).write_stdin(stdin).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(piped(&["extract"], "one\ntwo\n")["text"], json!(["one", "two"]));
    assert_eq!(piped(&["extract", "--document", "-"], "one\ntwo\n")["text"], json!(["one\ntwo\n"]));
    assert_eq!(piped(&["extract", "--field", "text"], "{\"text\": \"one\"}\n")["text"], json!(["one"]));
}

/// A text that is tokenized in pieces has the tokens of the whole, and `tokens` counts it.
#[test]
fn a_long_text_is_cut_as_a_whole() {
    let sentences = [
        "The cat's mat, 12 of them;  two spaces\nand a line. ",
        "<|endoftext|> é🙂 don't ",
        "a b c d e f ",
        "So\t\t it goes ",
    ];
    let text: String = (0..24_000).map(|i| sentences[(i * i + i / 7) % 4]).collect();
    let model = actscope::Model::open("demo").unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert!(tokenizer.encode_in_pieces(&text).unwrap() == tokenizer.encode(&text).unwrap());

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.txt");
    let part: String = text.chars().take(30_000).collect();
    std::fs::write(&file, &part).unwrap();
    let list = json_of(&["tokens", "--document", file.to_str().unwrap()]);
    let list = list[0].as_array().unwrap();
    assert_eq!(list.last().unwrap()["bytes"][1], json!(part.len()));
    assert_eq!(list.iter().filter(|token| token["beyond_context"] == true).count(), list.len() - 256);
    let table = run_well(["tokens", "--document", file.to_str().unwrap(), "-q"]);
    assert_eq!(table.lines().nth(1 + 256).unwrap().trim(), "---- the context of 256 tokens ends here ----");
}

#[test]
fn lists_of_layers_and_dimensions() {
    let names = |args: &[&str]| demo(args)["hooks"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let post = |layers: &[usize]| layers.iter().map(|l| format!("blocks.{l}.hook_resid_post")).collect::<Vec<_>>();
    assert_eq!(names(&["a", "-l", "1,3"]), post(&[1, 3]));
    assert_eq!(names(&["a", "-l", "1..3"]), post(&[1, 2]));
    assert_eq!(names(&["a", "-l", "..-1"]), post(&[0, 1, 2]));
    assert_eq!(
        names(&["a", "-l", "-2.."]),
        [post(&[2]), vec!["ln_final.hook_out".into()]].concat(),
        "as Python's h[-2:]"
    );
    assert_eq!(names(&["a", "-l", "-3,-1"]), [post(&[1]), vec!["ln_final.hook_out".into()]].concat());
    let heads = |args: &[&str]| -> Vec<(u64, u64)> {
        let numbers = json_of(&[&["attention", "a b"], args].concat());
        let heads = numbers["heads"].as_array().unwrap();
        heads.iter().map(|head| (head["layer"].as_u64().unwrap(), head["head"].as_u64().unwrap())).collect()
    };
    assert_eq!(heads(&["-l", "-1", "--head", "1,3"]), [(3, 1), (3, 3)]);
    assert_eq!(heads(&["-l", "0..2", "--head", "-1"]), [(0, 4), (1, 4)]);
    let dims = json_of(&["heatmap", "a b", "-l", "1", "--dims", "7,5,6"]);
    assert_eq!(dims["hooks"]["blocks.1.hook_resid_post"]["dims"], json!([7, 5, 6]));
}

#[test]
fn logits_are_tokens_by_rank() {
    let record = demo(&["The cat sat on the", "-k", "logits", "-t", "-1"]);
    let logits: Vec<f64> =
        rows(&record, "unembed.hook_out", 0)[0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    let token = json_of(&["tokens", "--ids", &best.to_string()])[0][0]["token"].as_str().unwrap().to_string();
    let table = run_well(["extract", "The cat sat on the", "-k", "logits", "-t", "-1", "-q"]);
    let line = table.lines().find(|line| line.contains("\" the\"")).unwrap();
    let named = format!("\"{token}\" {:+.3}", logits[best]);
    assert!(table.contains("likeliest") && line.contains(&named), "{line}: not {named}");
    assert!(line.find(&named) < line.rfind(" \""), "the likeliest comes first: {line}");
}

#[test]
fn names_of_other_tools() {
    for (name, hooks) in [
        ("hidden_states.0", &["blocks.0.hook_resid_pre"][..]),
        ("hidden_states.3", &["blocks.2.hook_resid_post"]),
        ("hidden_states[-1]", &["ln_final.hook_out"]),
        ("attentions.3", &["blocks.3.attn.hook_pattern"]),
        ("transformer.h[3].output", &["blocks.3.hook_resid_post"]),
        (
            "model.transformer.h.3.attn.c_attn",
            &["blocks.3.attn.hook_q", "blocks.3.attn.hook_k", "blocks.3.attn.hook_v"],
        ),
        ("blocks.3.mlp.hook_in", &["blocks.3.ln2.hook_out"]),
        ("blocks.3.attn.hook_hidden_states", &["blocks.3.hook_attn_out"]),
        ("hook_unembed", &["unembed.hook_out"]),
        ("layers_output[2]", &["blocks.2.hook_resid_post"]),
        ("attn_probs.1", &["blocks.1.attn.hook_pattern"]),
    ] {
        assert_eq!(demo(&["a", "-k", name])["hooks"].as_object().unwrap().keys().collect::<Vec<_>>(), hooks, "{name}");
    }
    let table = run_well(["hooks", "resid_post.2", "-q"]);
    for part in [
        "TransformerLens:",
        "blocks.2.hook_out",
        "transformer.h.2",
        "hidden_states.3",
        "transformer.h[2].output",
        "layers_output[2]",
    ] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
}

/// A copy of the classic checkpoint with one weight that is NaN or infinite.
fn broken(folder: &Path, tensor: &str, value: f32) {
    copy_of_classic(folder);
    let file = folder.join("model.safetensors");
    let (header, mut data) = split_safetensors(&file);
    let entry = header.as_object().unwrap().iter().find(|(name, _)| name.ends_with(tensor)).unwrap().1;
    let start = entry["data_offsets"][0].as_u64().unwrap() as usize;
    data[start + 20..start + 24].copy_from_slice(&value.to_le_bytes());
    join_safetensors(&file, &header.to_string(), &data);
}

#[test]
fn what_is_no_number_ends_the_run() {
    let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    broken(model.path(), "h.1.mlp.c_fc.bias", f32::NAN);
    let model = model.path().display().to_string();
    let at = |name: &str| out.path().join(name).display().to_string();
    let place = "blocks.1.mlp.hook_pre holds NaN in neuron 5 at text 0, position 1";
    for (args, place) in [
        (vec!["extract", "--ids", "1 2 3", "-t", "1", "-k", "*"], place),
        (vec!["extract", "--ids", "1 2 3", "-t", "1", "-k", "mlp_pre.1", "--json"], place),
        (vec!["extract", "--ids", "1 2 3", "-t", "1", "-k", "*", "-o", "x.npz"], place),
        (vec!["extract", "--ids", "1 2 3", "-t", "1", "-k", "*", "-o", "x.csv"], place),
        (
            vec!["extract", "--ids", "1 2 3 4 5 6 7", "--window", "4:2", "-t", "5", "-k", "mlp_pre.1"],
            "at text 0, position 5",
        ),
        (
            vec!["heatmap", "--ids", "1 2", "-k", "mlp_pre.1", "-o", "x.svg"],
            "hook_pre holds NaN in neuron 5 at text 0, position 0",
        ),
        (vec!["lens", "--ids", "1 2", "-o", "x.png"], "blocks.1.hook_resid_post holds NaN"),
        (vec!["attention", "--ids", "1 2", "-l", "2"], "blocks.2.attn.hook_pattern holds NaN"),
        (vec!["report", "--ids", "1 2", "-o", "x.html"], "blocks.1.mlp.hook_post holds NaN in neuron 5"),
    ] {
        let args: Vec<String> =
            args.iter().map(|arg| if arg.starts_with("x.") { at(arg) } else { arg.to_string() }).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["-m", &model, "--device", "cpu", "-q"]).collect();
        let refused = run(&args);
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(place) && said.contains("--allow-nan"), "{args:?}: {said}");
        assert_eq!((stdout(&refused).as_str(), names_in(out.path())), ("", vec![]), "{args:?}");
        let allowed = run([&args[..], &["--allow-nan"]].concat());
        assert_eq!(allowed.status.code(), Some(0), "{args:?}: {}", stderr(&allowed));
        for name in names_in(out.path()) {
            std::fs::remove_file(out.path().join(name)).unwrap();
        }
    }
    let record: Value = serde_json::from_str(&run_well([
        "extract",
        "--ids",
        "1 2",
        "-k",
        "mlp_pre.1",
        "-k",
        "scores.0",
        "-m",
        &model,
        "--device",
        "cpu",
        "--json",
        "-q",
        "--allow-nan",
    ]))
    .unwrap();
    assert_eq!(record["hooks"]["blocks.1.mlp.hook_pre"][0][1][5], "NaN");
    assert_eq!(record["hooks"]["blocks.0.attn.hook_attn_scores"][0][0][0][1], "-Infinity");

    // Gradients: no hook is named, but no number is given either.
    for of in [
        &["edges", "--clean-ids", "1 2", "--corrupt-ids", "1 3", "--answer", "id:4", "--wrong=id:5"][..],
        &["attribute", "--ids", "1 2", "--answer", "id:4", "--method", "gradient"],
    ] {
        let refused = run([of, &["-m", &model, "--device", "cpu", "--json", "-q"]].concat());
        assert_eq!((refused.status.code(), stdout(&refused).as_str()), (Some(1), ""), "{of:?}");
        assert!(stderr(&refused).contains("holds a NaN or an infinity"), "{of:?}: {}", stderr(&refused));
    }

    // An infinity, and a model that holds one but is not asked for what follows.
    let model = tempfile::tempdir().unwrap();
    broken(model.path(), "h.1.mlp.c_fc.bias", f32::INFINITY);
    let model = model.path().display().to_string();
    let of = |hook: &str, allow: &[&str]| {
        run([&["extract", "--ids", "1", "-k", hook, "-m", &model, "--device", "cpu", "--json", "-q"], allow].concat())
    };
    assert!(stderr(&of("mlp_pre.1", &[])).contains("holds an infinity in neuron 5"));
    assert_eq!(of("resid_mid.1", &[]).status.code(), Some(0));
    let record: Value = serde_json::from_slice(&of("mlp_pre.1", &["--allow-nan"]).stdout).unwrap();
    assert_eq!(record["hooks"]["blocks.1.mlp.hook_pre"][0][0][5], "Infinity");
}

#[test]
fn one_array_as_numpy_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npy");
    run_well(["extract", "The cat", "-l", "1", "-q", "-o", out.to_str().unwrap()]);
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let head = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(
        head.contains("'descr': '<f4'") && head.contains("'shape': (1, 2, 160)") && (10 + length).is_multiple_of(64),
        "{head}"
    );
    let record = demo(&["The cat", "-l", "1"]);
    let want: Vec<f32> = rows(&record, "blocks.1.hook_resid_post", 0)
        .iter()
        .flat_map(|row| row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32))
        .collect();
    let got: Vec<f32> = bytes[10 + length..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(got, want);
}

/// The table of `.jsonl`, as another reader than our writer's sees it.
#[cfg(feature = "parquet")]
#[test]
fn parquet_holds_the_same_rows() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["x.jsonl", "x.parquet"] {
        run_well([
            "extract",
            "The cat",
            "A",
            "-k",
            "resid_mid.1",
            "-k",
            "pattern.2",
            "-q",
            "-o",
            at(name).to_str().unwrap(),
        ]);
    }
    let lines = std::fs::read_to_string(at("x.jsonl")).unwrap();
    let reader = SerializedFileReader::new(std::fs::File::open(at("x.parquet")).unwrap()).unwrap();
    let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
    assert!(metadata.iter().any(|pair| pair.key == "model" && pair.value.as_deref() == Some("demo")));
    fn json(field: &Field) -> Value {
        match field {
            Field::Null => Value::Null,
            Field::Int(v) => (*v).into(),
            Field::UInt(v) => (*v).into(),
            Field::Long(v) => (*v).into(),
            Field::ULong(v) => (*v).into(),
            Field::Float(v) => (*v).into(),
            Field::Str(v) => v.as_str().into(),
            Field::ListInternal(list) => list.elements().iter().map(json).collect(),
            other => panic!("{other:?}"),
        }
    }
    let rows: Vec<Value> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().get_column_iter().map(|(name, field)| (name.clone(), json(field))).collect())
        .collect();
    let want: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), want.len());
    let floats = |row: &Value| -> Vec<f32> {
        row["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    for (got, want) in rows.iter().zip(&want) {
        assert_eq!(floats(got), floats(want));
        for key in ["hook", "text", "position", "token_id", "token", "head"] {
            assert_eq!(got[key], want[key], "{key}");
        }
    }
}

#[cfg(feature = "pdf")]
#[test]
fn a_picture_on_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.pdf");
    run_well(["lens", "The cat sat", "-q", "-o", out.to_str().unwrap()]);
    let bytes = std::fs::read(&out).unwrap();
    assert!(bytes.starts_with(b"%PDF-") && bytes.trim_ascii_end().ends_with(b"%%EOF") && bytes.len() > 10_000);
    run_well(["lens", "The cat sat", "-q", "-o", out.to_str().unwrap()]);
    assert!(std::fs::read(&out).unwrap() == bytes, "the same picture, the same bytes");
}
