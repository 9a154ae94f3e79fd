//! Which heads continue a repeated pattern? Runs a sentence said twice and prints, for every head, how much of its attention
//! goes from a token's second appearance to the token after its first one (Olsson et al. 2022, "In-context Learning and
//! Induction Heads").
//!
//! cargo run --release --example induction

use actscope::{Session, Site};
use ndarray::s;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::open("demo")?;
    let files = session.model();
    let once = files.tokenizer()?.encode(" the quick brown fox jumps over the lazy dog")?;
    let twice = [once.clone(), once.clone()].concat();

    let mut hooks = files.hooks();
    hooks.tap("blocks.*.attn.hook_pattern")?;
    let capture = session.run(&files.batch(&[twice])?, &hooks)?;

    println!("head:      {}", (0..files.config().n_head).map(|h| format!("{h:>6}")).collect::<String>());
    for layer in 0..files.config().n_layer {
        let pattern = capture.get(Site::Pattern(layer)).ok_or("every pattern was asked for")?;
        let score = |head: usize| -> f32 {
            let second = once.len()..2 * once.len() - 1;
            let looks = second.clone().map(|query| pattern[[0, head, query, query + 1 - once.len()]]);
            looks.sum::<f32>() / second.len() as f32
        };
        let heads = pattern.slice(s![0, .., 0, 0]).len();
        println!("layer {layer:>2}:  {}", (0..heads).map(|h| format!("{:>6.2}", score(h))).collect::<String>());
    }
    Ok(())
}
