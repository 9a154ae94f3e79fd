//! The activations of a text after one layer, and the token of each row.
//!
//! cargo run --release --example notebook -- "The cat sat on the mat." -1

use actscope::Session;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let text = arguments.next().unwrap_or_else(|| "The cat sat on the mat.".into());
    let layer: i64 = arguments.next().map_or(Ok(-1), |n| n.parse())?;

    let session = Session::open("demo")?;
    let activations = session.get_activations(&text, layer)?; // [n_pos, n_embd]
    let tokens = session.model().tokens(&session.model().encode(&[&text])?).remove(0);
    println!("layer {layer} on {}: {:?}", session.device(), activations.shape());
    for (token, row) in tokens.iter().zip(activations.rows()) {
        println!("{:>12}  {:+.3?} …", token.label(), &row.to_vec()[..6.min(row.len())]);
    }
    Ok(())
}
