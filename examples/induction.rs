//! Which heads continue a repeated pattern? This program runs a sentence twice in a row. It prints, for every head, the
//! attention from a token's second occurrence to the token after its first one (Olsson et al. 2022, "In-context
//! Learning and Induction Heads").
//!
//! cargo run --release --example induction

use actscope::{Session, Site};
use ndarray::s;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::open("demo")?;
    let model = session.model();
    let once = model.tokenizer()?.encode(" the quick brown fox jumps over the lazy dog")?;
    let twice = [once.clone(), once.clone()].concat();

    let mut hooks = model.hooks();
    hooks.tap("blocks.*.attn.hook_pattern")?;
    let capture = session.run(&model.batch(&[twice])?, &hooks)?;

    println!("head:      {}", (0..model.config().n_head).map(|h| format!("{h:>6}")).collect::<String>());
    for layer in 0..model.config().n_layer {
        let pattern = capture.get(Site::Pattern(layer)).ok_or("every pattern was asked for")?;
        let score = |head: usize| -> f32 {
            let second = once.len()..2 * once.len() - 1;
            let attention = second.clone().map(|query| pattern[[0, head, query, query + 1 - once.len()]]);
            attention.sum::<f32>() / second.len() as f32
        };
        let heads = pattern.slice(s![0, .., 0, 0]).len();
        println!("layer {layer:>2}:  {}", (0..heads).map(|h| format!("{:>6.2}", score(h))).collect::<String>());
    }
    Ok(())
}
