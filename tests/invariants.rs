//! What must hold whatever the numbers are: a batch is its texts one by one, looking changes nothing, patching a value with
//! itself changes nothing and patching it with another does, and nothing is computed that was not asked for.

mod common;

#[cfg(feature = "demo")]
use actscope::device::buffer_pool;
use actscope::device::reference::{Reference, Tensor};
use actscope::device::{
    Activation, Choice, Device, DeviceError, DeviceInfo, Edit, Heads, Limits, StoredWeight, Window,
};
use actscope::hooks::request::HookError;
use actscope::model::batch::Batch;
use actscope::model::checkpoint::Checkpoint;
use actscope::model::forward;
use actscope::model::params::Params;
use actscope::{Capture, Hooks, Model, Select, Session, Site};
use common::{DEVICES, fixtures};
use ndarray::{ArrayD, ArrayViewD, Axis, Slice, s};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

fn session(choice: Choice) -> Session {
    Model::open(&fixtures().join("classic").to_string_lossy()).unwrap().on(choice, None).unwrap()
}

/// Lengths on both sides of what the kernels for few rows take.
fn texts() -> Vec<Vec<u32>> {
    let ids = |seed: u32, n: u32| (0..n).map(|i| (seed + 37 * i * i) % 101).collect();
    vec![ids(1, 12), ids(2, 1), ids(3, 9), ids(4, 5)]
}

fn run(session: &Session, ids: &[Vec<u32>], ask: impl Fn(&mut Hooks)) -> Capture {
    let mut hooks = session.model().hooks();
    ask(&mut hooks);
    session.run(&session.model().batch(ids).unwrap(), &hooks).unwrap()
}

fn everything(hooks: &mut Hooks) {
    hooks.tap("*").unwrap();
}

/// The part of a padded array [P, ...] that belongs to a text of `n` tokens.
fn unpadded(mut array: ArrayViewD<'_, f32>, site: Site, n: usize) -> ArrayD<f32> {
    let axes = if site.is_square() { vec![1, 2] } else { vec![0] };
    axes.into_iter().for_each(|axis| array.slice_axis_inplace(Axis(axis), Slice::from(..n)));
    array.to_owned()
}

/// Bit for bit, but for few rows on the GPU, where other kernels sum in another order and the numeric policy's 4e-6 of the
/// largest value holds.
/// Seen red: positions counted through the whole batch, first at hook_pos_embed of the second text.
#[test]
fn a_batch_is_its_texts_one_by_one() {
    for choice in DEVICES {
        let session = session(choice);
        let together = run(&session, &texts(), everything);
        for (i, ids) in texts().into_iter().enumerate() {
            let n = ids.len();
            let alone = run(&session, &[ids], everything);
            for (site, array) in alone.iter() {
                let alone = array.index_axis(Axis(0), 0);
                let batched = unpadded(together.get(site).unwrap().index_axis(Axis(0), i), site, n);
                if choice != Choice::Gpu || n > 8 {
                    assert_eq!(alone, batched.view(), "{choice:?} text {i} {site}");
                }
                let largest = alone.iter().filter(|v| v.is_finite()).fold(0.0f32, |m, v| m.max(v.abs()));
                for (a, b) in alone.iter().zip(&batched) {
                    assert!(
                        a == b || (a - b).abs() <= 4e-6 * largest,
                        "{choice:?} text {i} {site}: {a} alone, {b} in the batch"
                    );
                }
            }
        }
    }
}

/// Padding is zero in every hook, masked scores are -inf and nothing else is.
#[test]
fn padding_is_zero() {
    for choice in DEVICES {
        let capture = run(&session(choice), &texts(), everything);
        for (site, array) in capture.iter() {
            let of_short = array.index_axis(Axis(0), 1); // one token
            let whole: f32 = of_short.iter().map(|v| v.abs()).sum();
            let own: f32 = unpadded(of_short, site, 1).iter().map(|v| v.abs()).sum();
            assert_eq!(whole, own, "{choice:?} {site}");
            let masked = array.iter().filter(|v| **v == f32::NEG_INFINITY).count();
            let pairs: usize = texts().iter().map(|t| t.len() * (t.len() - 1) / 2).sum();
            assert_eq!(masked, if matches!(site, Site::AttnScores(_)) { 4 * pairs } else { 0 }, "{choice:?} {site}");
        }
    }
}

/// Taps that split no kernel change no bit of the logits; those that make a kernel run in steps stay within rounding.
#[test]
fn looking_changes_nothing() {
    for choice in DEVICES {
        let session = session(choice);
        let logits = |ask: &str| {
            let mut capture = run(&session, &texts(), |hooks| {
                hooks.tap(ask).unwrap().tap("unembed.hook_out").unwrap();
            });
            capture.take(Site::Unembed).unwrap()
        };
        let unseen = logits("unembed.hook_out");
        for ask in ["*resid*", "*hook_z", "*attn.hook_k", "*mlp*", "*ln?.hook_out", "*_out", "*embed"] {
            assert_eq!(logits(ask), unseen, "{choice:?} {ask}");
        }
        if choice == Choice::Cpu {
            // Its steps are the fused kernels' own, one after the other.
            for ask in ["*pattern", "*attn_scores", "*hook_scale", "*normalized"] {
                assert_eq!(logits(ask), unseen, "{choice:?} {ask}");
            }
        }
        let largest = unseen.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let apart = (logits("*") - &unseen).iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(apart <= 4e-6 * largest, "{choice:?}: {apart}");
    }
}

/// The memory of captures is used again: what it held never shows. Seen red with a copy that leaves out a row.
#[cfg(feature = "demo")]
#[test]
fn captures_know_nothing_of_those_before() {
    let ids = |seed: u32| (0..150).map(|i| (seed + 37 * i * i) % 2000).collect::<Vec<u32>>();
    let session = Model::open("demo").unwrap().on(Choice::Cpu, None).unwrap();
    let first = run(&session, &[ids(1)], everything);
    for other in [vec![ids(2)], vec![ids(3)[..90].to_vec(), ids(4)]] {
        drop(run(&session, &other, everything));
        let lengths = first.iter().map(|(_, array)| array.len());
        lengths.for_each(|n| buffer_pool::give_back(vec![f32::NAN; n]));
        assert_eq!(run(&session, &[ids(1)], everything), first);
    }
    // Texts of unequal length are padded with zeros, whatever the memory held.
    let two = run(&session, &[ids(1), ids(2)[..3].to_vec()], everything);
    for (site, array) in two.iter() {
        let padding = array
            .index_axis(Axis(0), 1)
            .slice_axis(Axis(if site.is_square() { 1 } else { 0 }), Slice::from(3..))
            .to_owned();
        assert!(padding.iter().all(|v| *v == 0.0), "{site}");
    }
}

/// For every site: its own values put in its place change no bit of the logits, and other values do.
#[test]
fn patching() {
    for choice in DEVICES {
        let session = session(choice);
        let ids = vec![texts()[0].clone()];
        for site in Site::all(3) {
            let ask = |hooks: &mut Hooks| {
                hooks.tap_at(site, Select::all()).unwrap().tap("unembed.hook_out").unwrap();
            };
            let before = run(&session, &ids, ask);
            let own: Vec<f32> = before.get(site).unwrap().iter().copied().collect();
            let patched = |edit: Edit| {
                run(&session, &ids, |hooks| {
                    ask(hooks);
                    hooks.edit_at(site, Select::all(), edit.clone()).unwrap();
                })
            };
            let itself = patched(Edit::Replace(own));
            if choice == Choice::Reference {
                // A capture is f32 and the reference computes in f64: the patch rounds.
                let apart = itself.get(Site::Unembed).unwrap().to_owned() - before.get(Site::Unembed).unwrap();
                assert!(apart.iter().all(|v| v.abs() < 1e-6), "{site}: a self-patch");
            } else {
                assert_eq!(itself, before, "{choice:?} {site}: a self-patch");
            }

            // A scale of zero divides by zero; doubling it changes things as well.
            let is_scale = site.name().ends_with("hook_scale");
            let after = patched(if is_scale { Edit::Scale(2.0) } else { Edit::Zero });
            let (logits, changed) = (before.get(Site::Unembed).unwrap(), after.get(Site::Unembed).unwrap());
            assert_ne!(logits, changed, "{choice:?} {site}: an edit that changed nothing");
            if !is_scale {
                assert!(
                    after.get(site).unwrap().iter().all(|v| *v == 0.0),
                    "{choice:?} {site}: what is tapped is what flows on"
                );
            }
        }
    }
}

/// Windows of taps are slices of the whole, per text.
#[test]
fn windows_are_slices() {
    for choice in DEVICES {
        let session = session(choice);
        let positions = vec![vec![0, 3, 4, 11], vec![0], vec![7, 8], vec![1, 4]];
        for site in Site::all(3) {
            let square = site.is_square();
            // Asked for alone in both runs: a tap that splits a kernel may change the last bit of what comes after it.
            let whole = run(&session, &texts(), |hooks| {
                hooks.tap_at(site, Select::all()).unwrap();
            });
            let has_heads = whole.get(site).unwrap().ndim() == 4;
            let mut select = Select::all().positions(positions.clone());
            if has_heads {
                select = select.heads(1..3);
            }
            let part = run(&session, &texts(), |hooks| {
                hooks.tap_at(site, select.clone()).unwrap();
            });
            let (part, whole) = (part.get(site).unwrap(), whole.get(site).unwrap());
            assert_eq!(part.shape()[if square { 2 } else { 1 }], 4);
            for (i, of_text) in positions.iter().enumerate() {
                for (slot, p) in of_text.iter().enumerate() {
                    let (got, want) = match (square, has_heads) {
                        (true, _) => {
                            (part.slice(s![i, .., slot, ..]).into_dyn(), whole.slice(s![i, 1..3, *p, ..]).into_dyn())
                        }
                        (_, true) => {
                            (part.slice(s![i, slot, .., ..]).into_dyn(), whole.slice(s![i, *p, 1..3, ..]).into_dyn())
                        }
                        _ => (part.slice(s![i, slot, ..]).into_dyn(), whole.slice(s![i, *p, ..]).into_dyn()),
                    };
                    assert_eq!(got, want, "{choice:?} {site} text {i} position {p}");
                }
            }
        }
    }
}

/// More windows than one submit has room for dispatches: one token each of many texts. Seen red:
/// the submit that makes room in between mapped the staging buffer that was still being filled.
#[test]
fn windows_may_be_many() {
    let ids: Vec<Vec<u32>> = (0..1100).map(|i| vec![i % 101, (7 * i) % 101, 3]).collect();
    for choice in DEVICES {
        let session = session(choice);
        let whole = run(&session, &ids, |hooks| {
            hooks.tap_at(Site::V(0), Select::all()).unwrap();
        });
        let firsts = run(&session, &ids, |hooks| {
            hooks.tap_at(Site::V(0), Select::all().positions(vec![vec![1]; 1100])).unwrap();
        });
        let (whole, firsts) = (whole.get(Site::V(0)).unwrap(), firsts.get(Site::V(0)).unwrap());
        assert_eq!(firsts.index_axis(Axis(1), 0), whole.index_axis(Axis(1), 1), "{choice:?}");
    }
}

/// An edit of one head of z at one position is an edit of nothing else.
#[test]
fn an_edit_touches_its_window_only() {
    for choice in DEVICES {
        let session = session(choice);
        let positions = vec![vec![11], vec![], vec![2, 3], vec![0]];
        let select = Select::all().positions(positions.clone()).heads(2..3).columns(1..4);
        let before = run(&session, &texts(), everything);
        let after = run(&session, &texts(), |hooks| {
            everything(hooks);
            hooks.edit_at(Site::Z(1), select.clone(), Edit::Replace(vec![1.0, 2.0, 3.0])).unwrap();
        });
        let mut want = before.get(Site::Z(1)).unwrap().to_owned();
        for (i, of_text) in positions.iter().enumerate() {
            for p in of_text {
                want.slice_mut(s![i, *p, 2, 1..4]).assign(&ndarray::arr1(&[1.0, 2.0, 3.0]));
            }
        }
        assert_eq!(after.get(Site::Z(1)).unwrap(), want.view(), "{choice:?}");
        // Nothing before the edit may move, and text 1 was not touched at all.
        for (site, array) in before.iter().filter(|(site, _)| *site < Site::Z(1)) {
            assert_eq!(after.get(site).unwrap(), array.view(), "{choice:?} {site}");
        }
        let text_1 = |capture: &Capture| capture.get(Site::Unembed).unwrap().index_axis(Axis(0), 1).to_owned();
        assert_eq!(text_1(&before), text_1(&after), "{choice:?}");
    }
}

/// What was tapped stays what it was when the same tensor is changed at the next site.
#[test]
fn an_edit_leaves_earlier_taps_alone() {
    for choice in DEVICES {
        let session = session(choice);
        let before = run(&session, &texts(), everything);
        let after = run(&session, &texts(), |hooks| {
            everything(hooks);
            hooks.edit_at(Site::ResidPre(1), Select::all(), Edit::Zero).unwrap();
        });
        assert_eq!(after.get(Site::ResidPost(0)), before.get(Site::ResidPost(0)), "{choice:?}");
        assert!(after.get(Site::ResidPre(1)).unwrap().iter().all(|v| *v == 0.0), "{choice:?}");
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let session = session(Choice::Reference);
    let batch = session.model().batch(&texts()).unwrap();
    let mut hooks = session.model().hooks();
    assert!(matches!(hooks.tap("blocks.3.hook_resid_post"), Err(HookError::Site(_))));
    assert!(matches!(hooks.tap_at(Site::ResidPost(9), Select::all()), Err(HookError::Site(_))));
    assert!(matches!(hooks.tap_at(Site::Z(0), Select::all().heads(2..5)), Err(HookError::Window { .. })));
    assert!(matches!(hooks.tap_at(Site::MlpPre(0), Select::all().heads(0..1)), Err(HookError::Window { .. })));
    assert!(matches!(hooks.tap_at(Site::MlpPre(0), Select::all().columns(0..129)), Err(HookError::Window { .. })));
    hooks.tap_at(Site::MlpPre(0), Select::all().columns(0..1)).unwrap();
    assert!(matches!(hooks.tap("*"), Err(HookError::Twice { .. })));

    let refused = |select: Select, edit: Edit| {
        let mut hooks = session.model().hooks();
        hooks.edit_at(Site::ResidPost(0), select, edit).unwrap();
        session.run(&batch, &hooks).unwrap_err().to_string()
    };
    assert!(refused(Select::all(), Edit::Add(vec![1.0; 31])).contains("31 values"));
    assert!(refused(Select::all().positions(vec![vec![0]]), Edit::Zero).contains("1 texts"));
    assert!(
        refused(Select::all().positions(vec![vec![0], vec![1], vec![0], vec![0]]), Edit::Zero).contains("positions")
    );
    assert!(refused(Select::all().positions(vec![vec![]; 4]), Edit::Zero).contains("nothing"));

    // Rows of patterns are as long as their text: one row cannot serve texts of different length.
    let mut hooks = session.model().hooks();
    hooks.edit_at(Site::Pattern(0), Select::all(), Edit::Replace(vec![0.5; 12])).unwrap();
    assert!(session.run(&batch, &hooks).unwrap_err().to_string().contains("12 values"));

    // What was made for another model is not run on this one.
    let other = Model::open(&fixtures().join("odd_bf16_sharded").to_string_lossy()).unwrap();
    let mut hooks = other.hooks();
    hooks.tap("resid_post.0").unwrap();
    assert!(session.run(&batch, &hooks).unwrap_err().to_string().contains("another shape"));
    let other = other.on(Choice::Cpu, None).unwrap();
    assert!(matches!(other.run(&batch, &hooks), Err(actscope::Error::Batch(_))));
}

/// The reference, writing down what is asked of it.
struct Counting {
    log: RefCell<Vec<&'static str>>,
}

macro_rules! count {
    ($self:ident, $op:ident ( $($arg:expr),* )) => {{
        $self.log.borrow_mut().push(stringify!($op));
        Reference.$op($($arg),*)
    }};
}

#[rustfmt::skip]
impl Device for Counting {
    type Tensor = Tensor;
    type Weight = Tensor;
    type Staged = Vec<f32>;
    fn info(&self) -> DeviceInfo { Reference.info() }
    fn limits(&self) -> Limits { Reference.limits() }
    fn load(&self, weight: &StoredWeight) -> Result<Tensor, DeviceError> { count!(self, load(weight)) }
    fn shape(&self, x: &Tensor) -> [usize; 2] { Reference.shape(x) }
    fn empty(&self, rows: usize, cols: usize) -> Tensor { Reference.empty(rows, cols) }
    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor { count!(self, embed(table, ids)) }
    fn layer_norm(&self, x: &Tensor, g: &Tensor, b: &Tensor, eps: f64) -> Tensor { count!(self, layer_norm(x, g, b, eps)) }
    fn layer_norm_scale(&self, x: &Tensor, eps: f64) -> Tensor { count!(self, layer_norm_scale(x, eps)) }
    fn layer_norm_normalize(&self, x: &Tensor, s: &Tensor) -> Tensor { count!(self, layer_norm_normalize(x, s)) }
    fn gain_bias(&self, x: &Tensor, g: &Tensor, b: &Tensor) -> Tensor { count!(self, gain_bias(x, g, b)) }
    fn linear(&self, x: &Tensor, w: &Tensor, b: &Tensor) -> Tensor { count!(self, linear(x, w, b)) }
    fn linear_by_head(&self, z: &Tensor, w: &Tensor, n: usize) -> Tensor { count!(self, linear_by_head(z, w, n)) }
    fn sum_heads(&self, p: &Tensor, b: &Tensor, n: usize) -> Tensor { count!(self, sum_heads(p, b, n)) }
    fn attention(&self, qkv: &Tensor, t: &[Range<usize>], h: Heads) -> Tensor { count!(self, attention(qkv, t, h)) }
    fn attention_scores(&self, qkv: &Tensor, t: Range<usize>, h: Heads) -> Tensor { count!(self, attention_scores(qkv, t, h)) }
    fn attention_pattern(&self, s: &Tensor) -> Tensor { count!(self, attention_pattern(s)) }
    fn attention_mix(&self, p: &Tensor, qkv: &Tensor, t: Range<usize>, h: Heads, z: &mut Tensor) { count!(self, attention_mix(p, qkv, t, h, z)) }
    fn activation(&self, x: &Tensor, f: Activation) -> Tensor { count!(self, activation(x, f)) }
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor { count!(self, add(a, b)) }
    fn unembed(&self, x: &Tensor, r: Range<usize>, t: &Tensor) -> Tensor { count!(self, unembed(x, r, t)) }
    fn edit(&self, x: &mut Tensor, w: &Window, e: &Edit) { count!(self, edit(x, w, e)) }
    fn copy_out(&self, x: &Tensor, w: &Window) -> Vec<f32> { count!(self, copy_out(x, w)) }
    fn submit(&self) {}
    async fn settle(&self, _running: usize) -> Result<(), DeviceError> { Ok(()) }
    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> { Ok(staged) }
}

/// What a run with these hooks asks of a device, and what it gives; the batch run in groups of texts.
fn counted(patterns: &[&str], groups: &[Range<usize>], edit: Option<(Site, Edit)>) -> (Vec<&'static str>, Capture) {
    let checkpoint = Rc::new(Checkpoint::open(&fixtures().join("classic")).unwrap());
    let batch = Batch::new(&texts(), checkpoint.config()).unwrap();
    let mut hooks = Hooks::new(checkpoint.config());
    patterns.iter().for_each(|pattern| {
        hooks.tap(pattern).unwrap();
    });
    if let Some((site, edit)) = edit {
        hooks.edit_at(site, Select::all(), edit).unwrap();
    }
    let dev = Counting { log: RefCell::default() };
    let params = Params::new(checkpoint, None);
    let mut capture = Capture::empty(&hooks, &batch).unwrap();
    for group in groups {
        pollster::block_on(forward::forward(&dev, &params, &batch, group.clone(), &hooks, &mut capture, None)).unwrap();
    }
    (dev.log.into_inner(), capture)
}

#[test]
fn nothing_is_computed_that_was_not_asked_for() {
    let count = |log: &[&str], op: &str| log.iter().filter(|o| **o == op).count();
    let ops = |patterns: &[&str]| counted(patterns, &[0..4], None).0;

    assert!(ops(&[]).iter().all(|op| *op != "copy_out" && *op != "linear"), "nothing asked, nothing done");
    let embed = ops(&["hook_embed"]);
    assert_eq!(embed, ["load", "embed", "copy_out"], "the embedding alone");

    let first = ops(&["resid_post.0"]);
    assert_eq!((count(&first, "linear"), count(&first, "copy_out"), count(&first, "unembed")), (4, 1, 0));
    assert_eq!(count(&first, "load"), 2 + 12, "embeddings and one block");
    assert_eq!(*first.last().unwrap(), "copy_out", "the run stops at the last request");

    let pattern = ops(&["pattern.1"]);
    // Scores, patterns and their copies text by text, in this layer only.
    assert_eq!(
        (count(&pattern, "attention"), count(&pattern, "attention_pattern"), count(&pattern, "copy_out")),
        (1, 4, 4)
    );
    assert_eq!(count(&pattern, "linear"), 4 + 1);

    let norm = ops(&["ln2.scale.2"]);
    assert_eq!(
        (count(&norm, "layer_norm_scale"), count(&norm, "layer_norm"), count(&norm, "layer_norm_normalize")),
        (1, 5, 0)
    );

    let result = ops(&["result.0", "resid_mid.0"]);
    assert_eq!((count(&result, "linear_by_head"), count(&result, "sum_heads"), count(&result, "linear")), (1, 1, 1));
}

/// Texts run in groups give what they give together, whole-window edits included.
#[test]
fn groups_of_texts_are_the_batch() {
    let n: usize = texts().iter().map(Vec::len).sum();
    let every: Vec<f32> = (0..n * 32).map(|i| (i % 17) as f32 / 17.0).collect();
    let pairs: usize = texts().iter().map(|t| 4 * t.len() * t.len()).sum();
    let every_pair: Vec<f32> = (0..pairs).map(|i| (i % 13) as f32 / 13.0).collect();
    for edit in [None, Some((Site::ResidMid(1), Edit::Add(every))), Some((Site::Pattern(0), Edit::Replace(every_pair)))]
    {
        let whole = counted(&["*"], &[0..4], edit.clone()).1;
        assert_eq!(counted(&["*"], &[0..1, 1..3, 3..4], edit).1, whole);
    }
    let checkpoint = Checkpoint::open(&fixtures().join("classic")).unwrap();
    let batch = Batch::new(&texts(), checkpoint.config()).unwrap();
    let tokens = |text: usize| batch.texts()[text].len();
    assert_eq!(batch.groups(13, tokens), [0..2, 2..3, 3..4]);
    assert_eq!(batch.groups(1, tokens), [0..1, 1..2, 2..3, 3..4]);
    assert_eq!(batch.groups(1000, tokens), [0..4]);
}
