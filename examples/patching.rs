//! Activation patching: which head of the demo model carries the answer of a repeated pattern? This program puts each
//! head's output of a clean run into a corrupt run. It prints the share of the answer's log-probability that each head
//! restores.
//!
//! cargo run --release --example patching

use actscope::Session;
use actscope::analysis::cases::Case;
use actscope::analysis::metric::{Metric, Question};
use actscope::analysis::sweep::{Replacement, Sweep, SweepAxis, SweepSite};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::open("demo")?;
    let model = session.model();
    let tokenizer = model.tokenizer()?;
    // " dog" followed " lazy" earlier in the clean text, but not in the corrupt one.
    let clean = tokenizer.encode(" the quick brown fox met the lazy dog, and the quick brown fox met the lazy")?;
    let corrupt = tokenizer.encode(" the quick brown fox met the great man, and the quick brown fox met the lazy")?;
    let [answer] = tokenizer.encode(" dog")?[..] else { return Err("the answer is one token".into()) };

    let question = |ids: &[u32]| Question { position: ids.len() - 1, answer, wrong: answer };
    let aligned = clean.len().min(corrupt.len());
    let case = Case {
        question: question(&corrupt),
        ids: corrupt,
        source: Some((clean.clone(), question(&clean))),
        aligned,
        from_source: true,
    };
    let sweep = Sweep {
        sites: vec![SweepSite::find("z", model.config())?],
        axes: vec![SweepAxis::Layer, SweepAxis::Head],
        replacement: Replacement::Patch,
        metric: Metric::Logprob,
    };
    let swept = session.sweep(&sweep, &[case])?;

    let (clean, corrupt) = (swept.source[0], swept.unchanged[0]);
    println!("log-probability of \" dog\": {clean:.3} clean, {corrupt:.3} corrupt; share that each head restores:");
    for (layer, heads) in swept.values[0].chunks(swept.shape[1]).enumerate() {
        let share = |value: &f64| format!("{:>7.2}", (value - corrupt) / (clean - corrupt));
        println!("layer {layer}: {}", heads.iter().map(share).collect::<String>());
    }
    Ok(())
}
