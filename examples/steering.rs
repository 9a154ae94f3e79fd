//! Steering: the difference of two means is a direction. Adding it to the residual stream changes the model's
//! predictions.
//!
//! cargo run --release --example steering

use actscope::{Edit, Hooks, Select, Session, Site};
use ndarray::{Array1, Axis};

/// The direction is measured and added at the input of this block.
const LAYER: usize = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::open("demo")?;
    let model = session.model();
    // The mean over all tokens of some texts.
    let mean = |texts: &[&str]| -> Result<Array1<f32>, Box<dyn std::error::Error>> {
        let batch = model.encode(texts)?;
        let mut hooks = model.hooks();
        hooks.tap_at(Site::ResidPre(LAYER), Select::all())?;
        let capture = session.run(&batch, &hooks)?;
        let stream = capture.get(Site::ResidPre(LAYER)).ok_or("it was asked for")?;
        // Padding is zero, so it does not change the sums.
        let sum = stream.sum_axis(Axis(0)).sum_axis(Axis(0));
        let n = batch.ids().len() as f32;
        Ok(sum.into_dimensionality::<ndarray::Ix1>()?.mapv(|v| v / n))
    };
    let toward = mean(&["And the LORD said unto Moses", "Thou shalt not", "in the land of Egypt"])?;
    let away = mean(&["said the captain of the ship", "a cup of tea, please", "in the city of London"])?;
    let direction = (&toward - &away).to_vec();

    let batch = model.encode(&["And then he said to the"])?;
    let likeliest = |hooks: &mut Hooks| -> Result<String, Box<dyn std::error::Error>> {
        hooks.tap("logits")?;
        let logits = session.run(&batch, hooks)?.take(Site::Unembed).ok_or("they were asked for")?;
        let last = logits.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), batch.n_pos() - 1);
        let mut ids: Vec<u32> = (0..last.len() as u32).collect();
        ids.sort_by(|a, b| last[*b as usize].total_cmp(&last[*a as usize]));
        Ok(ids[..6].iter().map(|id| format!("{:?} ", model.token(*id).text())).collect())
    };
    for strength in [0.0f32, 2.0, 4.0] {
        let mut hooks = model.hooks();
        let added = direction.iter().map(|v| v * strength).collect();
        hooks.edit_at(Site::ResidPre(LAYER), Select::all(), Edit::Add(added))?;
        println!("strength {strength}: {}", likeliest(&mut hooks)?);
    }
    Ok(())
}
