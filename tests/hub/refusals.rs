//! Refused tokens, unknown names, rate limits: each has a message with the next step.

use crate::{TOKEN, World, demo, server};
use std::path::Path;

/// No request to the store had a token.
#[track_caller]
fn store_saw_no_token(world: &World) {
    let log = world.hub.log();
    assert!(log.iter().any(|seen| seen.store), "the store was never asked");
    assert!(log.iter().all(|seen| !seen.store || seen.authorization.is_none()), "the store was shown the token");
}

/// Seen red without the retry: the public model was then "not there".
#[test]
fn a_stale_token_costs_one_line() {
    let file = Path::new("token");
    for (name, where_from, remedy) in [
        ("HF_TOKEN", "the environment variable HF_TOKEN", "unset HF_TOKEN"),
        ("HUGGING_FACE_HUB_TOKEN", "the environment variable HUGGING_FACE_HUB_TOKEN", "unset HUGGING_FACE_HUB_TOKEN"),
        ("HF_TOKEN_PATH", "elsewhere", "hf auth logout"),
        ("", "token", "hf auth logout"),
    ] {
        let world = World::new();
        let elsewhere = world.home.path().join("elsewhere");
        std::fs::write(&elsewhere, format!("{TOKEN}\n")).unwrap();
        let value = if name == "HF_TOKEN_PATH" { elsewhere.to_str().unwrap() } else { TOKEN };
        if name.is_empty() {
            std::fs::write(world.home.path().join(file), format!("{TOKEN}\n")).unwrap();
        }
        let variables = [(name, value)];
        let ran = world.tokens("gpt2", if name.is_empty() { &[] } else { &variables }).ok();
        let lines: Vec<_> = ran.stderr.lines().filter(|line| line.contains("refused")).collect();
        assert_eq!(lines.len(), 1, "{name}: {}", ran.stderr);
        assert!(lines[0].contains(where_from) && lines[0].contains(remedy) && lines[0].contains("401"), "{}", lines[0]);
        let log = world.hub.log();
        assert_eq!(log.iter().filter(|seen| seen.authorization.is_some()).count(), 1, "asked with it once");
    }
}

/// Seen red with the token on every hop.
#[test]
fn a_good_token_is_shown_to_the_hub_and_to_nobody_else() {
    let world = World::new();
    world.hub.set().private = true;
    world.hub.set().good_token = Some(TOKEN.into());
    let ran = world.tokens("gpt2", &[("HF_TOKEN", TOKEN)]).ok();
    assert!(!ran.stderr.contains("token"), "{}", ran.stderr);
    store_saw_no_token(&world);
}

#[test]
fn the_variable_comes_before_the_file_and_can_be_switched_off() {
    let world = World::new();
    world.hub.set().private = true;
    world.hub.set().good_token = Some(TOKEN.into());
    std::fs::write(world.home.path().join("token"), "hf_other").unwrap();
    let off = [("HF_TOKEN", TOKEN), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
    world.tokens("gpt2", &off).failed(&["no public model openai-community/gpt2"]);
    assert!(world.hub.log().iter().all(|seen| seen.authorization.is_none()));
    world.tokens("gpt2", &[("HF_TOKEN", TOKEN)]).ok();
}

#[test]
fn a_token_that_no_header_can_hold_is_not_sent() {
    let world = World::new();
    let ran = world.tokens("gpt2", &[("HF_TOKEN", "SECRET with spaces")]).ok();
    assert!(ran.stderr.contains("the environment variable HF_TOKEN is not a token"), "{}", ran.stderr);
    assert!(world.hub.log().iter().all(|seen| seen.authorization.is_none()));
}

#[test]
fn gated_and_private_models_say_how_to_get_in() {
    let world = World::new();
    world.hub.set().gated = true;
    world.tokens("gpt2", &[]).failed(&["is gated", "ask for access on", "hf auth login"]);
    let with = world.tokens("gpt2", &[("HF_TOKEN", TOKEN)]).failed(&["is gated", "HF_TOKEN"]);
    assert!(with.stderr.contains("token from the environment variable HF_TOKEN"), "{}", with.stderr);
    world.hub.set().good_token = Some(TOKEN.into());
    world.tokens("gpt2", &[("HF_TOKEN", TOKEN)]).ok();

    let world = World::new();
    world.hub.set().private = true;
    let ran = world.tokens("gpt2", &[("HF_TOKEN", TOKEN)]).failed(&["no public model", "if it is private"]);
    assert!(ran.stderr.contains("was refused too"), "{}", ran.stderr);
}

#[test]
fn an_unknown_name_has_near_ones() {
    let world = World::new();
    world.tokens("gpt2-meduim", &[]).failed(&["no public model gpt2-meduim", "did you mean gpt2-medium"]);
    world.tokens("openai-community/gpt3", &[]).failed(&["no public model", "did you mean gpt2"]);
    world.tokens("gpt2@nope", &[]).failed(&["has no revision \"nope\"", "/openai-community/gpt2/tree/main"]);
    let none = world.tokens("meta-llama/Llama-3.1-8B", &[]).failed(&["no public model meta-llama/Llama-3.1-8B"]);
    assert!(!none.stderr.contains("did you mean"), "{}", none.stderr);
    assert!(!world.cache().join("models--gpt2-meduim").exists(), "nothing is left behind");
}

#[test]
fn a_model_that_cannot_be_run_is_refused_before_its_weights_are_fetched() {
    let world = World::new();
    world.hub.set().files.insert("config.json".into(), br#"{"model_type": "llama"}"#.into());
    world.tokens("gpt2", &[]).failed(&["openai-community/gpt2", "\"llama\"", "nothing else of it was downloaded"]);
    assert!(world.hub.log().iter().all(|seen| !seen.store));

    let world = World::new();
    let weights = world.hub.set().files.remove("model.safetensors").unwrap();
    world.tokens("gpt2", &[]).failed(&["has no model.safetensors", "actscope models"]);
    world.hub.set().files.insert("pytorch_model.bin".into(), weights);
    world.tokens("gpt2@refs/x", &[]).failed(&["has no revision"]);
    let command = "python -c \"from transformers import AutoTokenizer as T, GPT2LMHeadModel as M; \
                   M.from_pretrained('openai-community/gpt2').save_pretrained('gpt2'); \
                   T.from_pretrained('openai-community/gpt2').save_pretrained('gpt2')\"";
    world.tokens("gpt2", &[]).failed(&["pytorch_model.bin", command, "open the folder gpt2", "refs/pr/NUMBER"]);
    assert!(!world.repo().exists(), "nothing is left behind");

    let pickle = world.hub.set().files.remove("pytorch_model.bin").unwrap();
    for (file, words) in [
        (
            "pytorch_model-00001-of-00002.bin",
            &["only as pytorch_model-00001-of-00002.bin", command, "refs/pr/NUMBER"][..],
        ),
        ("gpt2.Q4_K.gguf", &["gpt2.Q4_K.gguf is a GGUF file", "M.from_pretrained('openai-community/gpt2', gguf_file="]),
        ("model.onnx", &["model.onnx is an ONNX graph"]),
        ("tf_model.h5", &["tf_model.h5 is a TensorFlow checkpoint", "from_tf=True"]),
        ("adapter_config.json", &["a LoRA adapter", "merge_and_unload()"]),
    ] {
        world.hub.set().files.insert(file.into(), pickle.clone());
        world.tokens("gpt2", &[]).failed(words);
        world.hub.set().files.remove(file);
    }
    assert!(!world.repo().exists(), "nothing is left behind");
}

/// The message says "not whole" only of a model that is partly there.
#[test]
fn offline_says_how_much_is_here() {
    let offline = [("HF_HUB_OFFLINE", "1")];
    let world = World::new();
    world
        .tokens("gpt2", &offline)
        .failed(&["openai-community/gpt2 (main) is not in the Hugging Face cache", "unset it"]);
    world.hub.set().cuts = [1000; 20].into();
    world.tokens("gpt2", &[]).failed(&["was interrupted"]);
    world.tokens("gpt2", &offline).failed(&["openai-community/gpt2 (main) is incomplete in the Hugging Face cache"]);
    world.hub.set().cuts.clear();
    world.tokens("gpt2", &[]).ok();
    world
        .tokens("gpt2@v1", &offline)
        .failed(&["openai-community/gpt2 (v1) (but main) is not in the Hugging Face cache"]);
    world.tokens("gpt2-lrage", &offline).failed(&["gpt2-lrage (main) is not in", "did you mean gpt2-large"]);
}

#[test]
fn a_429_is_waited_for_within_reason() {
    let world = World::new();
    world.hub.set().statuses = [(429, Some(1)), (429, Some(1))].into();
    let start = std::time::Instant::now();
    let ran = world.tokens("gpt2", &[]).ok();
    assert!(start.elapsed().as_secs_f64() >= 2.0 && ran.stderr.contains("waiting 1 s"), "{}", ran.stderr);

    let world = World::new();
    world.hub.set().statuses = [(429, Some(3600))].into();
    let start = std::time::Instant::now();
    world.tokens("gpt2", &[]).failed(&["allows no more requests", "3600 s", "hf auth login"]);
    assert!(start.elapsed().as_secs() < 5);
}

#[test]
fn a_fault_of_the_server_is_asked_about_again() {
    let world = World::new();
    world.hub.set().statuses = [(503, None), (500, None)].into();
    world.tokens("gpt2", &[]).ok();

    let world = World::new();
    world.hub.set().statuses = [(502, Some(0)); 50].into();
    world.tokens("gpt2", &[]).failed(&["HTTP 502", "5 times", "later"]);
    assert_eq!(world.hub.log().len(), 5);
}

#[test]
fn answers_that_no_hub_gives() {
    let world = World::new();
    world.hub.set().statuses = [(200, None)].into();
    world.tokens("gpt2", &[]).failed(&["not JSON", "HF_ENDPOINT", "log-in page"]);
    world.hub.set().statuses = [(403, None)].into();
    world.tokens("gpt2", &[]).failed(&["refuses access to", "403"]);
    world
        .tokens("gpt2", &[("HF_ENDPOINT", "huggingface.co")])
        .failed(&["HF_ENDPOINT is \"huggingface.co\"", "https://"]);
}

#[test]
fn no_network_and_offline_say_what_is_left() {
    let world = World::new();
    let nobody = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    world.tokens("gpt2", &nobody).failed(&["cannot reach 127.0.0.1:9", "HTTPS_PROXY", "actscope models"]);
    for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        world.tokens("gpt2", &[(name, "1")]).failed(&["openai-community/gpt2 (main)", name, "forbids downloads"]);
    }
    assert_eq!(world.hub.log().len(), 0);
    assert!(!world.cache().exists(), "nothing is left behind");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let world = World::new();
    let file = world.home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let place = [("HF_HUB_CACHE", file.to_str().unwrap())];
    world.tokens("gpt2", &place).failed(&["cannot write to the Hugging Face cache", "file", "set HF_HUB_CACHE"]);
}

#[test]
fn models_lists_what_is_here_and_what_is_wrong_with_it() {
    let world = World::new();
    world.hub.set().cuts = [1000; 20].into();
    world.tokens("gpt2", &[]).failed(&[]);
    let list = |args: &[&str]| world.run(args, &[("HF_HUB_OFFLINE", "1")]).ok().stdout;
    let text = list(&["models"]);
    assert!(text.contains("interrupted; opening openai-community/gpt2 resumes it"), "{text}");
    world.hub.set().cuts.clear();
    world.tokens("gpt2", &[]).ok();

    let folders = tempfile::tempdir().unwrap();
    let pickle = folders.path().join("pickle");
    std::fs::create_dir(&pickle).unwrap();
    std::fs::copy(demo().join("config.json"), pickle.join("config.json")).unwrap();
    std::fs::write(pickle.join("pytorch_model.bin"), "").unwrap();
    let bert = folders.path().join("bert");
    std::fs::create_dir(&bert).unwrap();
    std::fs::write(bert.join("config.json"), r#"{"model_type": "bert"}"#).unwrap();

    let text = list(&["models", folders.path().to_str().unwrap()]);
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {text}"));
    assert!(line("openai-community/gpt2 ").contains("4 blocks, 160 wide, 5 heads, 256 positions, 4096 tokens"));
    line("/bert ");
    line("architecture \"bert\"");
    assert!(line("save_pretrained").contains("/pickle"));
    assert!(line("gpt2-xl").contains("6.43 GB") && line("gpt2-xl").contains("1557.6 M"));

    let json: serde_json::Value = serde_json::from_str(&list(&["models", "--json", bert.to_str().unwrap()])).unwrap();
    let here = json["here"].as_array().unwrap();
    assert_eq!(here[0]["name"], "demo");
    assert_eq!(here[1]["shape"]["n_embd"], 160);
    assert!(here[1]["folder"].as_str().unwrap().ends_with(server::COMMIT) && here[1]["problem"].is_null());
    assert!(here[2]["problem"].as_str().unwrap().contains("bert") && here[2]["shape"].is_null());
    assert_eq!(json["known"][0]["parameters"], 124_439_808);
    // A wrong input, as it is for `extract --model`.
    assert_eq!(world.run(&["models", "/no/such/folder"], &[]).code, Some(1));
}
