//! Pictures: every cell, label and colour is compared with the output of `extract`, in SVG, in pixels and on a
//! terminal; and how requests that cannot be drawn are refused. Each check was seen to fail: see the comments beside
//! them.

#[path = "common/binary.rs"]
mod binary;

use base64::Engine;
use binary::*;
use resvg::tiny_skia::Pixmap;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const TEXT: &str = "The cat sat on the mat.";

/// A line break, a tabulator, two spaces, right-to-left, an emoji of several tokens, a character that the fonts lack,
/// an invisible one, and what XML has to escape.
const ODD: &str = "a\n\t  <b> & \"שלום\" 🙂 你好\u{200b} e\u{301}\\n";

/// A number as both commands print it: compared as text, so to the last digit.
fn numbers(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(Value::to_string).collect()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run_well(args.iter().chain(&["--json", "-q"]))).unwrap()
}

/// Draws an SVG; returns its text.
fn svg(args: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.svg");
    let out = run_well(args.iter().chain(&["-q", "-o", file.to_str().unwrap()]));
    assert_eq!(out, "", "a picture in a file says nothing on stdout");
    std::fs::read_to_string(file).unwrap()
}

fn png(args: &[&str]) -> Pixmap {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.png");
    run_well(args.iter().chain(&["-q", "-o", file.to_str().unwrap()]));
    Pixmap::load_png(file).unwrap()
}

/// A coloured cell of an SVG and its tooltip.
#[derive(Debug)]
struct Cell {
    x: f32,
    y: f32,
    width: f32,
    height: f32,
    fill: String,
    told: String,
}

#[derive(Debug)]
struct Label {
    x: f32,
    y: f32,
    upright: bool,
    text: String,
}

struct Drawing {
    cells: Vec<Cell>,
    labels: Vec<Label>,
}

impl Drawing {
    fn of(svg: &str) -> Drawing {
        let document = roxmltree::Document::parse(svg).unwrap();
        let number = |node: &roxmltree::Node<'_, '_>, name: &str| node.attribute(name).unwrap().parse().unwrap();
        let mut drawing = Drawing { cells: Vec::new(), labels: Vec::new() };
        for node in document.descendants() {
            match node.tag_name().name() {
                "rect" if node.has_children() => drawing.cells.push(Cell {
                    x: number(&node, "x"),
                    y: number(&node, "y"),
                    width: number(&node, "width"),
                    height: number(&node, "height"),
                    fill: node.attribute("fill").unwrap().into(),
                    told: node.first_element_child().unwrap().text().unwrap().into(),
                }),
                "text" => {
                    let text = node.text().unwrap_or_default().to_string();
                    let label = match node.attribute("transform") {
                        None => Label { x: number(&node, "x"), y: number(&node, "y"), upright: false, text },
                        Some(transform) => {
                            let place = transform.strip_prefix("translate(").unwrap().split(')').next().unwrap();
                            let (x, y) = place.split_once(' ').unwrap();
                            Label { x: x.parse().unwrap(), y: y.parse().unwrap(), upright: true, text }
                        }
                    };
                    drawing.labels.push(label);
                }
                _ => {}
            }
        }
        drawing
    }

    fn says(&self, text: &str) -> bool {
        self.labels.iter().any(|label| label.text.contains(text))
    }

    /// The label of the row that a cell is in: of those left of all cells the one at its height.
    fn row_label(&self, cell: &Cell) -> &str {
        let left = self.cells.iter().map(|cell| cell.x).fold(f32::INFINITY, f32::min);
        let middle = cell.y + cell.height / 2.0 + 4.0;
        let label = self.labels.iter().find(|l| !l.upright && l.x < left && (l.y - middle).abs() < 0.6);
        &label.unwrap_or_else(|| panic!("no label beside {cell:?}")).text
    }

    /// The label of the column that a cell is in: of those below all cells the one under its middle.
    fn column_label(&self, cell: &Cell) -> &str {
        let below = self.cells.iter().map(|cell| cell.y + cell.height).fold(0.0, f32::max);
        let middle = cell.x + cell.width / 2.0;
        let label = self.labels.iter().find(|l| l.y > below && (l.x - middle).abs() < 4.1 && l.y < below + 20.0);
        &label.unwrap_or_else(|| panic!("no label under {cell:?}")).text
    }
}

/// matplotlib's RdBu_r at `place` from -1 to 1, from its eleven colours, independently of the program.
fn rd_bu_r(place: f64) -> String {
    const STOPS: [[f64; 3]; 11] = [
        [5.0, 48.0, 97.0],
        [33.0, 102.0, 172.0],
        [67.0, 147.0, 195.0],
        [146.0, 197.0, 222.0],
        [209.0, 229.0, 240.0],
        [247.0, 247.0, 247.0],
        [253.0, 219.0, 199.0],
        [244.0, 165.0, 130.0],
        [214.0, 96.0, 77.0],
        [178.0, 24.0, 43.0],
        [103.0, 0.0, 31.0],
    ];
    let at = (place.clamp(-1.0, 1.0) + 1.0) * 5.0;
    let i = (at.floor() as usize).min(9);
    let mixed = [0, 1, 2].map(|c| (STOPS[i][c] + (STOPS[i + 1][c] - STOPS[i][c]) * (at - i as f64)).round() as u8);
    format!("#{:02x}{:02x}{:02x}", mixed[0], mixed[1], mixed[2])
}

/// Two colours that differ by rounding at most.
fn alike(a: &str, b: &str) -> bool {
    let channel = |text: &str, i: usize| i16::from_str_radix(&text[i..i + 2], 16).unwrap();
    [1, 3, 5].iter().all(|&i| (channel(a, i) - channel(b, i)).abs() <= 1)
}

/// The end of the colour range, by the rule in docs/guide.md.
fn limit(values: &[f64]) -> f64 {
    let mut sizes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let (max, most) = (sizes[sizes.len() - 1], sizes[(sizes.len() as f64 * 0.98).ceil() as usize - 1]);
    if max > 2.0 * most { most } else { max }
}

/// With the sign of colours flipped, labels one row down, rows and columns exchanged, or the clip at the 95th
/// percentile, this fails: at the first cell's colour, its row's label, its column's label, the last colour.
#[test]
fn each_cell_of_a_heatmap_is_a_number_of_extract() {
    let mut clips = BTreeSet::new();
    for hook in ["resid_post.1", "blocks.0.hook_resid_pre", "mlp_post.3"] {
        let args = ["heatmap", TEXT, "-k", hook];
        let drawing = Drawing::of(&svg(&args));
        let expected = json(&["extract", TEXT, "-k", hook]);
        let name = expected["hooks"].as_object().unwrap().keys().next().unwrap().clone();
        let rows: Vec<Vec<String>> = expected["hooks"][&name][0].as_array().unwrap().iter().map(numbers).collect();
        let width = rows[0].len();
        let dims: Vec<usize> = (0..100).map(|i| (i as f64 * ((width - 1) as f64 / 99.0)) as usize).collect();
        let shown: Vec<f64> =
            rows.iter().flat_map(|row| dims.iter().map(|d| row[*d].parse::<f64>().unwrap())).collect();
        let limit = limit(&shown);
        assert_eq!(drawing.cells.len(), 7 * 100, "{hook}");
        assert!(drawing.says("Activation Value") && drawing.says("\"The cat sat on the mat.\"") && drawing.says(&name));
        for (i, cell) in drawing.cells.iter().enumerate() {
            let (row, col) = (i / 100, i % 100);
            let token = expected["tokens"][0][row].as_str().unwrap().replace(' ', "␣");
            assert_eq!(drawing.row_label(cell), format!("{row} {token}"));
            assert_eq!(drawing.column_label(cell), dims[col].to_string());
            let value = &rows[row][dims[col]];
            // Numbers are the same text but for `1e-5` and `0.00001`.
            let told = cell.told.rsplit_once(": ").unwrap();
            assert_eq!(told.0, format!("{row} {token}, dimension {}", dims[col]));
            assert_eq!(told.1.parse::<f32>().unwrap(), value.parse::<f32>().unwrap());
            let wanted = rd_bu_r(value.parse::<f64>().unwrap() / limit);
            assert!(alike(&cell.fill, &wanted), "{value} of ±{limit} is {wanted} and not {cell:?}");
        }
        let clipped = shown.iter().any(|v| v.abs() > limit);
        assert_eq!(drawing.says("clipped at"), clipped, "{hook}");
        clips.insert(clipped);
        assert_eq!(json(&args)["hooks"][&name]["limit"].as_f64().unwrap() as f32, limit as f32);
    }
    assert_eq!(clips.len(), 2, "one of the hooks is clipped and one is not");
}

/// The PNG has the SVG's colours in the SVG's places, at twice the resolution.
#[test]
fn the_png_is_the_svg_in_pixels() {
    for args in [&["heatmap", TEXT, "-l", "1", "-l", "2"][..], &["attention", TEXT], &["lens", TEXT]] {
        let drawing = Drawing::of(&svg(args));
        let pixels = png(args);
        assert!(drawing.cells.len() >= 35);
        for cell in &drawing.cells {
            // Near the upper edge, where no text lies and no frame.
            let at = |x: f32, y: f32| pixels.pixel((2.0 * x) as u32, (2.0 * y) as u32).unwrap();
            let pixel = at(cell.x + cell.width * 0.6, cell.y + 4.0);
            let seen = format!("#{:02x}{:02x}{:02x}", pixel.red(), pixel.green(), pixel.blue());
            assert_eq!(seen, cell.fill, "{args:?}: {cell:?}");
        }
        // Text is drawn: above everything there is a heading.
        let ink = |x: u32, y: u32| pixels.pixel(x, y).unwrap().red() < 100;
        let inked = (20..400).flat_map(|x| (20..60).map(move |y| (x, y))).filter(|(x, y)| ink(*x, *y)).count();
        assert!(inked > 300, "{args:?}: {inked} dark pixels in the heading");
    }
}

/// With query and key exchanged, or heads counted from the right, this fails at the first cell below the diagonal.
#[test]
fn each_cell_of_attention_is_a_number_of_extract() {
    for (kind, hook) in [("pattern", "hook_pattern"), ("scores", "hook_attn_scores")] {
        let args = ["attention", TEXT, "--kind", kind];
        let expected = json(&["extract", TEXT, "-k", &format!("*{hook}")]);
        let numbers = json(&args);
        let heads = numbers["heads"].as_array().unwrap();
        assert_eq!(heads.len(), 4 * 5);
        for (i, head) in heads.iter().enumerate() {
            let (layer, n) = (i / 5, i % 5);
            assert_eq!((head["layer"].as_u64(), head["head"].as_u64()), (Some(layer as u64), Some(n as u64)));
            let name = head["hook"].as_str().unwrap();
            assert_eq!(name, format!("blocks.{layer}.attn.{hook}"));
            for query in 0..7 {
                let (mine, theirs) = (&head["values"][query], &expected["hooks"][name][0][n][query]);
                for key in 0..7 {
                    // Above the diagonal all keys are masked: a pattern's zeros are null here.
                    let wanted = if key > query { &Value::Null } else { &theirs[key] };
                    assert_eq!(&mine[key], wanted, "{name} head {n}: {query} looks at {key}");
                }
            }
        }
        let one = ["attention", TEXT, "--kind", kind, "--layer", "2", "--head", "3"];
        let alone = &json(&one)["heads"][0]["values"];
        let drawing = Drawing::of(&svg(&one));
        assert!(drawing.says("layer 2, head 3"));
        assert_eq!(drawing.cells.len(), 7 * 8 / 2, "cells that can be looked at tell their number");
        for cell in &drawing.cells {
            let told = cell.told.strip_prefix("layer 2, head 3, ").unwrap();
            let (pair, value) = told.rsplit_once(": ").unwrap();
            let (query, key) = pair.split_once(" looks at ").unwrap();
            assert_eq!((drawing.row_label(cell), drawing.column_label(cell)), (query, key));
            let place = |label: &str| label.split(' ').next().unwrap().parse::<usize>().unwrap();
            let wanted = &alone[place(query)][place(key)];
            assert_eq!(value.parse::<f32>().unwrap(), wanted.as_f64().unwrap() as f32, "{}", cell.told);
            if kind == "pattern" {
                let blue = i32::from_str_radix(&cell.fill[1..3], 16).unwrap();
                let wanted = 247.0 - 239.0 * wanted.as_f64().unwrap();
                assert!((f64::from(blue) - wanted).abs() < 40.0, "darker where more is looked: {cell:?}");
            }
        }
    }
}

/// The card of the demo model names its heads: on random tokens twice, 2.3 attends to the token before, 3.3 and 3.4 to
/// the one after the same token's first copy. With layers counted from 1 this fails.
#[test]
fn the_heads_that_the_card_names_are_plain_to_see() {
    const HALF: usize = 24;
    let once: Vec<String> = (1..=HALF as u64).map(|i| (i * 2_654_435_761 % 4000).to_string()).collect();
    let twice = [once.clone(), once].concat().join(" ");
    let picture = json(&["attention", "--ids", &twice]);
    // Mean attention over the second copy's rows, paid to so many tokens before.
    let paid = |layer: usize, head: usize, back: usize| {
        let of = |query: usize| picture["heads"][5 * layer + head]["values"][query][query - back].as_f64().unwrap();
        (HALF..2 * HALF).map(of).sum::<f64>() / HALF as f64
    };
    assert!(paid(2, 3, 1) > 0.45, "previous token: {}", paid(2, 3, 1));
    assert!(paid(3, 3, HALF - 1) > 0.85 && paid(3, 4, HALF - 1) > 0.85, "induction: {}", paid(3, 3, HALF - 1));
    for head in 0..5 {
        assert!(paid(1, head, 1) < 0.4 && paid(2, head, HALF - 1) < 0.2, "head {head} of layers 1 and 2 does neither");
    }
}

/// With the rows in run order (input on top), or readings of the position before, this fails at the first cell.
#[test]
fn each_cell_of_the_lens_is_a_reading() {
    let numbers = json(&["lens", TEXT]);
    let drawing = Drawing::of(&svg(&["lens", TEXT]));
    let rows = numbers["lens"].as_array().unwrap();
    assert_eq!((rows.len(), drawing.cells.len()), (5, 35));
    let logits = json(&["extract", TEXT, "-k", "logits"]);
    let mark = |token: &Value| token.as_str().unwrap().replace(' ', "␣").replace('\n', "\\n");
    for (i, cell) in drawing.cells.iter().enumerate() {
        let (row, p) = (4 - i / 7, i % 7);
        let reading = &rows[row]["positions"][p];
        let best = &reading["top"][0];
        let told = cell.told.rsplit_once(' ').unwrap();
        assert!(told.0.ends_with(&format!("position {p}: {}", mark(&best["token"]))), "{cell:?} {best}");
        assert_eq!(told.1.parse::<f32>().unwrap(), best["probability"].as_f64().unwrap() as f32);
        let inside =
            |l: &&Label| (cell.x..cell.x + cell.width).contains(&l.x) && (cell.y..cell.y + cell.height).contains(&l.y);
        let written = &drawing.labels.iter().find(inside).unwrap().text;
        assert_eq!(written, &mark(&best["token"]));
        let next = &reading["next"];
        match p {
            6 => assert!(next.is_null()),
            _ => assert_eq!(next["id"], numbers["input_ids"][p + 1]),
        }
        if row == 4 {
            let of_model: Vec<f64> = serde_json::from_value(logits["hooks"]["unembed.hook_out"][0][p].clone()).unwrap();
            let top = (0..of_model.len()).max_by(|a, b| of_model[*a].total_cmp(&of_model[*b])).unwrap();
            assert_eq!(best["id"], top, "the last row is the model's output");
            let z: f64 = of_model.iter().map(|x| (x - of_model[top]).exp()).sum();
            assert!((best["probability"].as_f64().unwrap() - 1.0 / z).abs() < 1e-6);
        }
    }
    for (row, name) in [(0, "layer 3: output"), (28, "input")] {
        assert_eq!(drawing.row_label(&drawing.cells[row]), name);
    }
}

/// The picture has the requested rows, dimensions and layers.
#[test]
fn what_was_chosen_is_what_is_shown() {
    let chosen = json(&["heatmap", TEXT, "-l", "all", "--token", " mat", "--token", "1", "--dims", "top:7"]);
    let expected = json(&["extract", TEXT, "-l", "all", "--token", " mat", "--token", "1"]);
    assert_eq!(chosen["positions"], serde_json::json!([1, 5]));
    let hooks = chosen["hooks"].as_object().unwrap();
    assert_eq!(hooks.len(), 5);
    let mut strongest: Vec<(f64, usize)> = (0..160).map(|d| (0.0, d)).collect();
    for (name, hook) in hooks {
        let dims: Vec<usize> = serde_json::from_value(hook["dims"].clone()).unwrap();
        for row in 0..2 {
            let theirs = &expected["hooks"][name][0][row];
            let wanted: Vec<String> = dims.iter().map(|d| theirs[*d].to_string()).collect();
            assert_eq!(numbers(&hook["values"][row]), wanted, "{name}");
            strongest.iter_mut().for_each(|(size, d)| *size = size.max(theirs[*d].as_f64().unwrap().abs()));
        }
    }
    strongest.sort_by(|a, b| b.0.total_cmp(&a.0));
    let top: Vec<usize> = strongest.iter().take(7).map(|(_, d)| *d).collect();
    assert!(
        hooks.values().all(|hook| hook["dims"] == serde_json::json!(top)),
        "strongest first, the same in every layer"
    );

    let small = json(&[
        "heatmap",
        "--ids",
        "1 2 3",
        "-m",
        CLASSIC,
        "--dims",
        "3..6",
        "-k",
        "mlp_post.*",
        "--scale",
        "per-layer",
    ]);
    let limits: BTreeSet<String> =
        small["hooks"].as_object().unwrap().values().map(|hook| hook["limit"].to_string()).collect();
    assert_eq!(limits.len(), 3, "each layer has its own scale");
    assert_eq!(small["hooks"]["blocks.0.mlp.hook_post"]["dims"], serde_json::json!([3, 4, 5]));
}

/// More cells than rectangles: then an image, whose pixels are the same colours. Labels thin out and never overlap.
#[test]
fn long_texts_are_images_with_fewer_labels() {
    let long = "Now is the winter of our discontent made glorious summer by this sun of York; ".repeat(9);
    let args = ["heatmap", &long, "--dims", "all", "-l", "2"];
    let drawing = svg(&args);
    let document = roxmltree::Document::parse(&drawing).unwrap();
    let images: Vec<_> = document.descendants().filter(|node| node.tag_name().name() == "image").collect();
    assert_eq!(images.len(), 1);
    let data = images[0].attribute("href").unwrap().strip_prefix("data:image/png;base64,").unwrap();
    let image = Pixmap::decode_png(&base64::prelude::BASE64_STANDARD.decode(data).unwrap()).unwrap();
    let expected = json(&["extract", &long, "-l", "2"]);
    let values = expected["hooks"]["blocks.2.hook_resid_post"][0].as_array().unwrap();
    let flat: Vec<f64> =
        values.iter().flat_map(|row| row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap())).collect();
    let limit = limit(&flat);
    let (wide, high) = (image.width() as usize / 160, image.height() as usize / values.len());
    assert_eq!((image.width() as usize, image.height() as usize), (160 * wide, values.len() * high));
    for (i, value) in flat.iter().enumerate() {
        let pixel = image.pixel((i % 160 * wide + wide / 2) as u32, (i / 160 * high + high / 2) as u32).unwrap();
        let seen = format!("#{:02x}{:02x}{:02x}", pixel.red(), pixel.green(), pixel.blue());
        assert!(alike(&seen, &rd_bu_r(value / limit)), "{i}: {value} is {seen}");
    }
    // On a terminal heads shrink instead; every one is there, in eight columns and more.
    let printed = run_well(["attention", long.as_str(), "-q"]);
    assert!(printed.contains("each cell is the strongest of up to ") && printed.contains("\n3.0 "), "{printed}");
    assert!(printed.lines().skip(2).all(|line| line.chars().count() <= 100));
    let large = Drawing::of(&svg(&["attention", &long, "--layer", "0", "--head", "0"]));
    let mut rows: Vec<f32> =
        large.labels.iter().filter(|l| !l.upright && l.x < 150.0 && l.y > 60.0).map(|l| l.y).collect();
    rows.sort_by(f32::total_cmp);
    assert!(rows.len() > 20 && rows.windows(2).all(|pair| pair[1] - pair[0] >= 11.0), "{rows:?}");
}

/// Hooks of one value per token: names longer than their panels are wide. Seen to fail where only the panels' own width
/// counted.
#[test]
fn panels_never_overlap() {
    let drawing = Drawing::of(&svg(&["heatmap", TEXT, "-k", "blocks.*.hook_scale"]));
    let written = |text: &str| drawing.labels.iter().filter(move |label| label.text.contains(text)).collect::<Vec<_>>();
    for labels in [written(".hook_scale"), written("one number per token")] {
        assert!(labels.len() >= 8, "{labels:?}");
        for (i, a) in labels.iter().enumerate() {
            let beside = labels[..i].iter().filter(|b| b.y == a.y);
            let room = 6.6 * a.text.len() as f32;
            assert!(beside.clone().all(|b| (a.x - b.x).abs() >= room), "{a:?} {labels:?}");
        }
    }
    // Heads of one token are wide enough for their names. Seen to fail with cells of 30 pixels at most: 44 for 46.2.
    let drawing = Drawing::of(&svg(&["attention", "a"]));
    let mut ends: Vec<f32> =
        drawing.labels.iter().filter(|label| label.text.starts_with("layer ")).map(|label| label.y).collect();
    ends.sort_by(f32::total_cmp);
    assert!(ends.len() == 4 && ends.windows(2).all(|pair| pair[1] - pair[0] >= 6.6 * 7.0 + 4.0), "{ends:?}");
}

/// A model's folder may have any name; the heading shows each of its characters, or an escape. Seen to fail with the
/// name unescaped.
#[test]
fn odd_names_of_models() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("你\u{202e}");
    std::fs::create_dir(&odd).unwrap();
    copy_of_classic(&odd);
    let args = ["heatmap", "--ids", "1 2", "-m", odd.to_str().unwrap()];
    let drawing = Drawing::of(&svg(&args));
    assert!(drawing.says("你\\u{202e}"), "{:?}", drawing.labels);
    let printed = run_well(args.iter().chain(&["-q"]));
    assert!(printed.contains("你\\u{202e}\n"), "{printed}");
}

/// Different tokens look different, and no character is invisible.
#[test]
fn odd_tokens_can_be_told_apart() {
    for command in ["heatmap", "attention", "lens"] {
        let drawn = svg(&[command, ODD]);
        let invisible = |c: char| c.is_control() || "\u{200b}\u{301}".contains(c);
        assert!(!Drawing::of(&drawn).labels.iter().any(|label| label.text.contains(invisible)), "{command}");
        assert!(
            drawn.contains("font-family:'DejaVu Sans Mono'") && drawn.contains("font-family:'DejaVu Sans'"),
            "{command}"
        );
        assert!(!drawn.contains("font-family:'Noto Sans JP';src"), "only the fonts that are needed go along");
        png(&[command, ODD]);
    }
    let drawing = Drawing::of(&svg(&["heatmap", ODD]));
    let expected = json(&["extract", ODD]);
    let ids: Vec<u64> = serde_json::from_value(expected["input_ids"][0].clone()).unwrap();
    let label = |p: usize| {
        let start = format!("{p} ");
        let found = drawing.labels.iter().find_map(|label| label.text.strip_prefix(&start));
        found.unwrap_or_else(|| panic!("position {p} has a label")).to_string()
    };
    let different: BTreeSet<u64> = ids.iter().copied().collect();
    let labels: BTreeSet<String> = (0..ids.len()).map(label).collect();
    assert_eq!(labels.len(), different.len(), "{labels:?}");
    assert!(labels.iter().any(|l| l.contains("\\n")) && labels.iter().any(|l| l.contains("\\x")), "{labels:?}");
    // The heading has whole characters where it can, and escapes where it must.
    assert!(drawing.says("\"שלום\" 🙂 你好\\u{200b}"), "{:?}", drawing.labels[0]);
}

/// A character that the embedded fonts lack, in a PNG: drawn with a font of the system where there is one, else
/// escaped. An SVG holds the character itself. Seen to fail with the system's fonts left out, and with the character
/// never escaped.
#[cfg(target_os = "linux")]
#[test]
fn fonts_of_the_system_draw_what_ours_lack() {
    let home = tempfile::tempdir().unwrap();
    let draw = |name: &str| {
        let file = home.path().join(name);
        let args = ["heatmap", "\u{13000}", "-q", "-o", file.to_str().unwrap()];
        actscope(args).env("HOME", home.path()).assert().success();
        file
    };
    // Of the heading's first line: black pixels with black to their left and above, many of which only a square has,
    // and where the text ends.
    let heading = |file: &Path| {
        let picture = Pixmap::load_png(file).unwrap();
        let black = |x: u32, y: u32| picture.pixel(x, y).is_some_and(|p| p.red() < 40 && p.blue() < 40);
        let is_inside = |(x, y): &(u32, u32)| (0..6).all(|i| black(x - i, *y) && black(*x, y - i));
        let pixels: Vec<_> = (6..60).flat_map(|y| (6..picture.width()).map(move |x| (x, y))).collect();
        let end = pixels.iter().filter(|(x, y)| black(*x, *y)).map(|(x, _)| *x).max().unwrap();
        (pixels.iter().filter(|p| is_inside(p)).count(), end)
    };
    let escaped = heading(&draw("escaped.png"));
    let fonts = home.path().join(".local/share/fonts");
    std::fs::create_dir_all(&fonts).unwrap();
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fonts/square.ttf"), fonts.join("square.ttf"))
        .unwrap();
    let drawn = heading(&draw("drawn.png"));
    // The square is 30 pixels wide. The escape has 9 characters of 18 pixels, and quotes.
    assert!(escaped.0 < 100 && drawn.0 > 500 && escaped.1 > 200 && drawn.1 < 150, "{escaped:?} {drawn:?}");
    assert!(std::fs::read_to_string(draw("x.svg")).unwrap().contains("&quot;\u{13000}&quot;"));
}

/// The output in a pipe has no escape sequences, and the sign and tenths of each value.
#[test]
fn plain_pictures_show_sign_and_size() {
    let printed = run_well(["heatmap", TEXT, "-q", "--dims", "0..20", "-l", "1"]);
    assert!(!printed.contains('\u{1b}'));
    let numbers = json(&["heatmap", TEXT, "--dims", "0..20", "-l", "1"]);
    let hook = &numbers["hooks"]["blocks.1.hook_resid_post"];
    let limit = hook["limit"].as_f64().unwrap();
    for (row, line) in printed.lines().skip(3).take(7).enumerate() {
        let label = numbers["tokens"][row].as_str().unwrap().replace(' ', "␣");
        let (lead, cells) = line.split_at(line.len() - 40);
        assert_eq!(lead.split_whitespace().collect::<Vec<_>>(), [row.to_string(), label]);
        for (d, cell) in cells.as_bytes().chunks(2).enumerate() {
            let value = hook["values"][row][d].as_f64().unwrap();
            let tenths = ((value.abs() / limit * 10.0) as u8).min(9);
            let wanted = match (tenths, value < 0.0) {
                (0, _) => *b" .",
                (_, true) => [b'-', b'0' + tenths],
                (_, false) => [b'+', b'0' + tenths],
            };
            assert_eq!(cell, wanted, "{row} {d}: {value} of {limit}");
        }
    }
    let attention = run_well(["attention", TEXT, "-q", "--layer", "2", "--head", "3"]);
    let rows: Vec<&str> = attention.lines().skip(3).take(7).collect();
    assert!(rows[0].ends_with(" 9"), "the first token can only look at itself: {rows:?}");
    let lens = run_well(["lens", TEXT, "-q"]);
    assert!(lens.contains("layer 3: output") && lens.contains("␣cat") && !lens.contains('\u{1b}'));
    assert!(lens.lines().all(|line| line.chars().count() <= 100), "as wide as a page where there is no window");
}

#[test]
fn colours_come_and_go_with_the_environment() {
    let args = ["attention", TEXT, "-q"];
    let coloured =
        actscope(args).env("CLICOLOR_FORCE", "1").env("COLORTERM", "truecolor").env("TERM", "xterm").output().unwrap();
    assert!(stdout(&coloured).contains("\u{1b}[38;2;"), "{}", stdout(&coloured));
    let few = actscope(args)
        .env("CLICOLOR_FORCE", "1")
        .env_remove("COLORTERM")
        .env("TERM", "xterm-256color")
        .output()
        .unwrap();
    assert!(stdout(&few).contains("\u{1b}[38;5;") && !stdout(&few).contains(";2;"));
    let none = actscope(args).env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1").output().unwrap();
    assert!(!stdout(&none).contains('\u{1b}') && stdout(&none).contains("3.4"));
    // Right-to-left text is isolated, so that it moves nothing but itself.
    let hebrew = run_well(["heatmap", "אב ab", "-q"]);
    assert!(
        hebrew.lines().next().is_some_and(|line| line.contains('\u{2068}') && line.contains('\u{2069}')),
        "{hebrew}"
    );
}

/// Everything that cannot be drawn is refused in one line, with a next step, before anything is written.
#[test]
fn refusals() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let texts = at("texts.svg");
    std::fs::write(&texts, "a text\n").unwrap();
    let (no_folder, gif, good) = (at("none/x.png"), at("x.gif"), at("x.png"));
    let cases: [(&[&str], i32, &str); 17] = [
        (&["heatmap", "a", "b"], 2, "one text and 2 were given"),
        (&["heatmap"], 2, "give a text"),
        (&["heatmap", "a", "-k", "pattern.0"], 2, "blocks.0.attn.hook_pattern is [H, P, P]"),
        (&["heatmap", "a", "-k", "q.0"], 2, "is [P, H, d]"),
        (&["heatmap", "a", "-k", "resid_pots.0"], 2, "nearest: blocks.0.hook_resid_post"),
        (&["heatmap", "a", "-l", "4"], 2, "layer 4 does not exist"),
        (&["heatmap", "a", "--dims", "0..161"], 2, "there are 0..160"),
        (&["heatmap", "a", "--dims", "most"], 2, "a list such as 5,6,7, a..b, top:N"),
        (&["heatmap", "a", "--token", "7"], 2, "matches no token"),
        (&["attention", "a", "--head", "5"], 2, "head 5 does not exist: this model has heads 0 to 4"),
        (&["attention", "a", "--layer", "4"], 2, "layers 0 to 3"),
        (
            &["attention", "a", "--layer", "-5"],
            2,
            "layer -5 does not exist: this model has layers 0 to 3, and -1 is the last",
        ),
        (&["heatmap", "a", "--dims", "5,160"], 2, "dimension 160 does not exist; there are 0..160"),
        (&["attention", "a", "--kind", "values"], 2, "possible values: pattern, scores"),
        (&["lens", "a", "-o", &gif], 2, "must end in .png, .svg or .pdf"),
        (&["lens", "a", "-o", &no_folder], 1, "cannot write"),
        (&["lens", "--file", &texts, "-o", &texts], 2, "a file that this run reads"),
    ];
    for (args, code, message) in cases {
        let output = run(args.iter().chain(&["-q"]));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(message), "{args:?}: {said}");
        assert_eq!(stdout(&output), "", "{args:?}");
    }
    assert_eq!(names_in(folder.path()), ["texts.svg"], "nothing is left behind");
    assert_eq!(std::fs::read_to_string(&texts).unwrap(), "a text\n");

    let output = run(["lens", "a", "-o", &good, "--json"]);
    assert!(stderr(&output).contains("wrote ") && stderr(&output).contains("device: "));
    let said: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(Path::new(said["file"].as_str().unwrap()).ends_with("x.png"), "numbers and file together");
    assert_eq!(stderr(&run(["lens", "a", "-o", &good, "-q"])), "");
}

/// A NaN weight ends the run. With --allow-nan its values are grey in the picture, `?` on a terminal and "NaN" in JSON,
/// and a message says so.
#[test]
fn what_is_no_number_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    copy_of_classic(folder.path());
    let file = folder.path().join("model.safetensors");
    let (header, mut data) = split_safetensors(&file);
    let (_, ln_f) = header.as_object().unwrap().iter().find(|(name, _)| name.ends_with("ln_f.bias")).unwrap();
    let start = ln_f["data_offsets"][0].as_u64().unwrap() as usize;
    data[start + 20..start + 24].copy_from_slice(&f32::NAN.to_le_bytes());
    join_safetensors(&file, &header.to_string(), &data);
    let model = folder.path().to_str().unwrap();
    let args = ["heatmap", "-m", model, "--ids", "1 2 3"];
    let refused = run([&args[..], &["-q"]].concat());
    assert_eq!((refused.status.code(), stdout(&refused).as_str()), (Some(1), ""));
    assert!(stderr(&refused).contains("ln_final.hook_out holds NaN in dimension 5 at text 0, position 0"));
    let args = [&args[..], &["--allow-nan"]].concat();
    let output = run(&args);
    assert!(stderr(&output).contains("ln_final.hook_out holds NaN"), "{}", stderr(&output));
    assert!(stdout(&output).contains(" ?"));
    let drawing = Drawing::of(&svg(&args));
    let grey: Vec<&Cell> = drawing.cells.iter().filter(|cell| cell.fill == "#969696").collect();
    assert_eq!(grey.len(), 3, "{grey:?}");
    assert!(grey.iter().all(|cell| drawing.column_label(cell) == "5"));
    assert!(json(&args)["hooks"]["ln_final.hook_out"]["values"][0][5] == "NaN");
}
