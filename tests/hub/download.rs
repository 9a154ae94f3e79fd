//! Downloads that succeed after any number of interruptions.

use crate::{World, common, finish, fixture, server};
use std::process::Command;
use std::time::Duration;

const WEIGHTS: &str = "model.safetensors";

fn weights(world: &World) -> Vec<u8> {
    world.hub.set().files[WEIGHTS].clone()
}

#[test]
fn the_first_run_downloads_and_the_second_asks_nobody() {
    let world = World::new();
    world.hub.set().files.insert("pytorch_model.bin".into(), vec![0; 100]);
    let first = world.tokens("gpt2", &[]).ok();
    assert!(first.stderr.contains(&format!("downloading openai-community/gpt2 from {}: 4.00 MB", world.hub.url)));
    assert!(first.stderr.contains("the Hugging Face cache"), "{}", first.stderr);
    assert_eq!(first.stdout, world.tokens("demo", &[]).ok().stdout);
    world.check_blobs(true);

    let log = world.hub.log();
    let asked: Vec<_> = log.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    let at = |file: &str| format!("/openai-community/gpt2/resolve/{}/{file}", server::COMMIT);
    let expected = [
        "GET /api/models/openai-community/gpt2/revision/main".to_string(),
        format!("HEAD {}", at("config.json")),
        format!("GET {}", at("config.json")),
        format!("HEAD {}", at("tokenizer.json")),
        format!("HEAD {}", at(WEIGHTS)),
        format!("GET {}", at("tokenizer.json")),
        format!("GET {}", at(WEIGHTS)),
        format!("GET /{WEIGHTS}"),
    ];
    assert_eq!(asked, expected, "what is needed and nothing else");

    for name in ["gpt2", "openai-community/gpt2", &format!("gpt2@{}", server::COMMIT)] {
        let second = world.tokens(name, &[]).ok();
        assert_eq!(second.stdout, first.stdout);
        assert!(!second.stderr.contains("downloading"), "{}", second.stderr);
    }
    world.tokens("gpt2", &[("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9")]).ok();
    assert_eq!(world.hub.log().len(), 0, "the second run asks nobody");
}

#[test]
fn the_cache_is_laid_out_as_huggingface_hub_does() {
    let world = World::new();
    world.tokens("gpt2", &[]).ok();
    let repo = world.repo();
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), server::COMMIT);
    let snapshot = repo.join("snapshots").join(server::COMMIT);
    let files = world.hub.set().files.clone();
    for file in ["config.json", "tokenizer.json", WEIGHTS] {
        let etag = server::etag(file, &files[file]);
        #[cfg(unix)]
        assert_eq!(std::fs::read_link(snapshot.join(file)).unwrap(), std::path::Path::new("../../blobs").join(&etag));
        assert!(std::fs::read(repo.join("blobs").join(etag)).unwrap() == files[file]);
    }
    assert!(!snapshot.join("README.md").exists());
}

#[test]
fn revisions_are_pinned_by_name() {
    let world = World::new();
    world.hub.set().revision = "refs%2Fpr%2F3".into();
    world.tokens("gpt2", &[]).failed(&["has no revision \"main\""]);
    world.tokens("gpt2@refs/pr/3", &[]).ok();
    assert_eq!(std::fs::read_to_string(world.repo().join("refs/refs/pr/3")).unwrap(), server::COMMIT);
    world.hub.log();
    world.tokens("openai-community/gpt2@refs/pr/3", &[]).ok();
    assert_eq!(world.hub.log().len(), 0);
}

#[test]
fn without_links_the_files_themselves_are_in_the_snapshot() {
    let world = World::new();
    let no_links = [("HF_HUB_DISABLE_SYMLINKS", "1")];
    world.tokens("gpt2", &no_links).ok();
    let file = world.repo().join("snapshots").join(server::COMMIT).join(WEIGHTS);
    assert!(!file.is_symlink() && std::fs::read(file).unwrap() == weights(&world));
    world.hub.log();
    world.tokens("gpt2", &no_links).ok();
    assert_eq!(world.hub.log().len(), 0);
}

/// Seen red with the Range header left out: six times from the start.
#[test]
fn a_connection_that_is_cut_is_gone_on_with() {
    let world = World::new();
    let size = weights(&world).len() as u64;
    let cuts = [0, 1, 16 << 10, 1_000_003, size - 1];
    world.hub.set().cuts = cuts.into();
    world.hub.set().cut_lists = 2;
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);
    let ranges: Vec<_> = world.hub.log().into_iter().filter(|seen| seen.store).map(|seen| seen.range).collect();
    let from = |at: u64| Some(format!("bytes={at}-"));
    assert_eq!(ranges, [None, None, from(1), from(16 << 10), from(1_000_003), from(size - 1)]);
}

#[test]
fn a_connection_that_hangs_is_given_up_and_gone_on_with() {
    let world = World::new();
    world.hub.set().cuts = [500_000].into();
    world.hub.set().hang = true;
    let start = std::time::Instant::now();
    world.tokens("gpt2", &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]).ok();
    assert!(start.elapsed().as_secs() < 15, "it waited for the server to give up");
    let ranges: Vec<_> = world.hub.log().into_iter().filter(|seen| seen.store).map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=500000-".into())]);
}

#[test]
fn a_connection_that_only_ever_breaks_is_an_error_that_keeps_what_came() {
    let world = World::new();
    world.hub.set().cuts = [1000; 20].into();
    world.tokens("gpt2", &[]).failed(&["was interrupted at 1000 of", "run the same command again"]);
    world.check_blobs(false);
    world.hub.set().cuts.clear();
    world.hub.log();
    world.tokens("gpt2", &[]).ok();
    let ranges: Vec<_> = world.hub.log().into_iter().filter(|seen| seen.store).map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some("bytes=1000-".into())], "the next run goes on where this one was");
    world.check_blobs(true);
}

/// Killed (SIGKILL: no destructor runs) ten times at random moments. Seen red with the final name from the start, and
/// with the Range header left out.
#[test]
fn a_run_that_is_killed_ten_times_ends_whole() {
    let world = World::new();
    world.hub.set().pace = Some(Duration::from_millis(2));
    let (mut state, mut broken) = (0x2545_f491_u64, 0);
    for _ in 0..10 {
        let mut child = world.command(&["tokens", "--model", "gpt2", "a"]).spawn().unwrap();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(30 + (state >> 33) % 120));
        child.kill().unwrap();
        broken += u32::from(!child.wait_with_output().unwrap().status.success());
        world.check_blobs(false);
        assert!(
            !world.repo().join("refs/main").exists()
                || world.tokens("gpt2", &[("HF_HUB_OFFLINE", "1")]).code == Some(0)
        );
    }
    assert!(broken >= 5, "only {broken} runs were broken off: the kills come too late to show anything");
    world.hub.set().pace = None;
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);
    // A kill loses only the bytes that were in transit.
    let size = weights(&world).len() as u64;
    let sent = world.hub.set().sent;
    assert!(2 * sent < 3 * size, "{sent} bytes sent of {size}");
}

/// Seen red without the lock: both wrote one partial file, and the slower one found it removed.
#[test]
fn two_processes_at_once_download_once() {
    let world = World::new();
    world.hub.set().pace = Some(Duration::from_millis(1));
    let start = || world.command(&["tokens", "--model", "gpt2", "The cat sat."]).spawn().unwrap();
    let both = [start(), start()].map(|child| finish(child.wait_with_output().unwrap()).ok());
    assert_eq!(both[0].stdout, both[1].stdout);
    world.check_blobs(true);
    let gets = world.hub.log().into_iter().filter(|seen| seen.store && seen.method == "GET").count();
    assert_eq!(gets, 1);
    assert!(both.iter().any(|ran| ran.stderr.contains("another process is downloading")), "{}", both[1].stderr);
}

#[test]
fn what_an_earlier_run_left_is_not_trusted() {
    for (what, leftover) in [("garbage", vec![7; 5000]), ("too long", vec![7; 9_000_000])] {
        let world = World::new();
        let etag = server::etag(WEIGHTS, &weights(&world));
        let blobs = world.repo().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{etag}.incomplete")), leftover).unwrap();
        world.tokens("gpt2", &[]).ok();
        world.check_blobs(true);
        println!("{what}");
    }
}

#[test]
fn a_whole_part_is_checked_and_not_asked_for_again() {
    let world = World::new();
    let (bytes, blobs) = (weights(&world), world.repo().join("blobs"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.incomplete", server::etag(WEIGHTS, &bytes))), bytes).unwrap();
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);
    assert!(world.hub.log().iter().all(|seen| !seen.store));
}

#[test]
fn a_server_without_ranges_begins_again() {
    let world = World::new();
    world.hub.set().cuts = [700_000].into();
    world.hub.set().ignore_range = true;
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);
}

/// Seen red with the result of the check ignored: the wrong file then had its final name.
#[test]
fn wrong_bytes_are_fetched_again_once_and_never_kept() {
    let world = World::new();
    world.hub.set().corrupt = 1;
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);

    let world = World::new();
    world.hub.set().corrupt = 5;
    world.tokens("gpt2", &[]).failed(&[WEIGHTS, "its content is not what", "announces"]);
    world.check_blobs(false);
    let sha256 = server::etag(WEIGHTS, &weights(&world));
    assert!(!world.repo().join("blobs").join(sha256).exists());
}

/// A cache that only the administrator who filled it may write to.
#[cfg(unix)]
#[test]
fn a_cache_that_may_only_be_read() {
    let world = World::new();
    let first = world.tokens("gpt2", &[]).ok();
    let as_reader = |world: &World| {
        let home = world.home.path();
        let mut command = crate::binary::as_nobody(home);
        let status = std::process::Command::new("chmod").args(["-R", "a-w,a+rX"]).arg(world.cache()).status();
        assert!(status.unwrap().success());
        command.env("HF_HOME", home).env("HF_ENDPOINT", &world.hub.url).args(["tokens", "-m", "gpt2", "The cat sat."]);
        let ran = crate::finish(command.output().unwrap());
        // So that a user other than root can delete the folder.
        std::process::Command::new("chmod").args(["-R", "u+w"]).arg(world.cache()).status().unwrap();
        ran
    };
    assert_eq!(as_reader(&world).ok().stdout, first.stdout);

    let empty = World::new();
    std::fs::create_dir(empty.cache()).unwrap();
    let ran = as_reader(&empty).failed(&["Permission denied", "hub"]);
    assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("actscope: ")).count(), 1, "{}", ran.stderr);
    assert_eq!(std::fs::read_dir(empty.cache()).unwrap().count(), 0);
}

#[test]
fn shards_and_a_missing_tokenizer() {
    let world = World::of("someone/sharded", &fixture("odd_bf16_sharded"));
    world.hub.set().files.remove("tokenizer.json");
    let args = ["tokens", "--model", "someone/sharded", "--ids", "1 2"];
    world.run(&args, &[]).ok();
    world.hub.log();
    world.run(&args, &[]).ok();
    assert_eq!(world.hub.log().len(), 0, "that there is no tokenizer is known by now");
    world.tokens("someone/sharded", &[]).failed(&["no tokenizer", "--ids"]);
}

#[test]
fn a_cache_without_weights_or_tokenizer_is_completed() {
    let world = World::new();
    world.tokens("gpt2", &[]).ok();
    let snapshot = world.repo().join("snapshots").join(server::COMMIT);
    for file in [WEIGHTS, "tokenizer.json"] {
        std::fs::remove_file(snapshot.join(file)).unwrap();
        world.tokens("gpt2", &[("HF_HUB_OFFLINE", "1")]).failed(&[]);
        world.tokens("gpt2", &[]).ok();
    }
    // A link whose blob is missing, and a blob that is too short, count as absent.
    let blob = std::fs::canonicalize(snapshot.join(WEIGHTS)).unwrap();
    std::fs::remove_file(&blob).unwrap();
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);
    std::fs::remove_file(snapshot.join(WEIGHTS)).unwrap();
    std::fs::write(&blob, "short").unwrap();
    world.tokens("gpt2", &[]).ok();
    world.check_blobs(true);
}

#[test]
fn quiet_says_nothing() {
    let world = World::new();
    let ran = world.run(&["tokens", "-q", "--model", "gpt2", "a"], &[("HF_TOKEN", crate::TOKEN)]).ok();
    assert_eq!(ran.stderr, "");
}

/// The proxy resolves the name: this machine does not know it.
#[test]
fn proxies_are_used_and_left_out_as_told() {
    let world = World::new();
    let (proxy, log) = tunnel(world.hub.url.trim_start_matches("http://"));
    let behind = [("HF_ENDPOINT", "http://hub.invalid"), ("HTTP_PROXY", proxy.as_str()), ("NO_PROXY", "127.0.0.1")];
    world.tokens("gpt2", &behind).ok();
    assert!(log.lock().unwrap().iter().all(|line| line == "CONNECT hub.invalid:80 HTTP/1.1"));
    log.lock().unwrap().clear();

    let world = World::new();
    let around = [("HF_ENDPOINT", "http://hub.invalid"), ("HTTP_PROXY", proxy.as_str()), ("NO_PROXY", ".invalid")];
    world.tokens("gpt2", &around).failed(&["cannot reach hub.invalid"]);
    assert_eq!(log.lock().unwrap().len(), 0, "NO_PROXY names the hub");
    let only_https = [("HF_ENDPOINT", "http://hub.invalid"), ("HTTPS_PROXY", proxy.as_str())];
    world.tokens("gpt2", &only_https).failed(&["cannot reach hub.invalid"]);
    assert_eq!(log.lock().unwrap().len(), 0, "HTTPS_PROXY is for https");
}

/// A proxy that connects every client to `to`, and the first lines of its requests.
fn tunnel(to: &str) -> (String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    use std::io::{BufRead, BufReader, Write, copy};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://user:SECRET@{}", listener.local_addr().unwrap());
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (to, seen) = (to.to_string(), log.clone());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (to, seen) = (to.clone(), seen.clone());
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut reader = BufReader::new(client.try_clone()?);
                let mut line = String::new();
                reader.read_line(&mut line)?;
                seen.lock().unwrap().push(line.trim().to_string());
                while line.trim() != "" {
                    line.clear();
                    reader.read_line(&mut line)?;
                }
                let mut client = client;
                let mut server = std::net::TcpStream::connect(to)?;
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
                let mut back = server.try_clone()?;
                std::thread::spawn(move || copy(&mut back, &mut client));
                copy(&mut reader, &mut server)?;
                Ok(())
            });
        }
    });
    (url, log)
}

/// Seen red without the companion files among the downloads, and without them among the files of a complete cache.
#[test]
fn what_stands_beside_a_tokenizer_is_fetched_too() {
    let world = World::new();
    let settings = br#"{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true, "pad_token": "<pad>"}"#;
    world.hub.set().files.insert("tokenizer_config.json".into(), settings.into());
    world.hub.set().files.insert("generation_config.json".into(), b"{}".into());
    let spaced = world.run(&["tokens", "-m", "demo", " The cat sat."], &[]).ok();
    let first = world.tokens("gpt2", &[]).ok();
    assert_eq!(first.stdout, spaced.stdout, "a space is put in front");
    world.check_blobs(true);
    world.hub.log();
    world.tokens("gpt2", &[]).ok();
    assert_eq!(world.hub.log().len(), 0, "the second run asks nobody");

    // Like a cache that was filled by hand, or before these files were downloaded.
    let snapshot = world.repo().join("snapshots").join(server::COMMIT);
    let file = snapshot.join("tokenizer_config.json");
    assert!(snapshot.join("generation_config.json").exists());
    std::fs::remove_file(&file).unwrap();
    let offline = world.tokens("gpt2", &[("HF_HUB_OFFLINE", "1")]).ok();
    assert!(
        offline.stderr.contains("the cache lacks what its tokenizer_config.json says, if it has one"),
        "{}",
        offline.stderr
    );
    assert_ne!(offline.stdout, spaced.stdout);
    assert_eq!(world.hub.log().len(), 0);
    assert_eq!(world.tokens("gpt2", &[]).ok().stdout, spaced.stdout);
    assert!(file.exists() && world.hub.log().iter().all(|seen| !seen.store), "the weights are not fetched again");
}

#[test]
fn an_address_of_the_hub_is_a_name() {
    let world = World::new();
    let expected = world.tokens("gpt2", &[]).ok().stdout;
    for path in ["openai-community/gpt2", "openai-community/gpt2/tree/main", "gpt2/blob/main/config.json?x=y"] {
        let address = format!("{}/{path}", world.hub.url);
        assert_eq!(world.tokens(&address, &[]).ok().stdout, expected, "{address}");
    }
    world.tokens("https://huggingface.co/openai-community/gpt2", &[("HF_HUB_OFFLINE", "1")]).ok();
    let revision = format!("{}/gpt2/tree/nope", world.hub.url);
    world.tokens(&revision, &[]).failed(&["has no revision \"nope\""]);
}

/// The reference implementation and actscope each read the cache that the other wrote.
#[cfg_attr(not(feature = "external-tests"), ignore = "needs Python with huggingface_hub; tools/check.sh runs it")]
#[test]
fn huggingface_hub_and_we_read_each_others_caches() {
    let python = common::python("huggingface_hub");
    let theirs = World::new();
    let fetch =
        "import huggingface_hub as h, sys; [h.hf_hub_download('openai-community/gpt2', f) for f in sys.argv[1:]]";
    let output = Command::new(&python)
        .args(["-c", fetch, "config.json", "tokenizer.json", WEIGHTS])
        .env("HF_HOME", theirs.home.path())
        .env("HF_ENDPOINT", &theirs.hub.url)
        .output()
        .unwrap();
    finish(output).ok();
    theirs.hub.log();
    theirs.tokens("gpt2", &[]).ok();
    theirs.check_blobs(true);
    // Whether there is a tokenizer_config.json is asked once, and nothing is fetched twice.
    let asked = theirs.hub.log();
    assert!(
        asked.iter().all(|seen| !seen.store && (seen.method == "HEAD" || seen.path.starts_with("/api/"))),
        "{asked:?}"
    );
    theirs.tokens("gpt2", &[]).ok();
    assert_eq!(theirs.hub.log().len(), 0);

    let world = World::new();
    world.tokens("gpt2", &[]).ok();
    let program = "import huggingface_hub as h, sys; \
                   print(h.snapshot_download('openai-community/gpt2', allow_patterns=['*.json', '*.safetensors'])); \
                   [print(h.hf_hub_download('openai-community/gpt2', f)) for f in sys.argv[1:]]";
    let output = Command::new(python)
        .args(["-c", program, "config.json", "tokenizer.json", WEIGHTS])
        .env("HF_HOME", world.home.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let ran = finish(output).ok();
    let snapshot = world.repo().join("snapshots").join(server::COMMIT);
    let mut expected = format!("{}\n", snapshot.display());
    ["config.json", "tokenizer.json", WEIGHTS]
        .iter()
        .for_each(|f| expected += &format!("{}\n", snapshot.join(f).display()));
    assert_eq!(ran.stdout, expected);
}
