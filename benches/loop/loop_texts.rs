//! The Rust side of benches/peers/get_activations.py: for each line `BEGIN END` on stdin, those of 1,000 short texts one by one through the model
//! that is named, their last layer's values kept in turn; prints the seconds.

use actscope::{Choice, Model};
use std::io::BufRead;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).ok_or("loop_texts MODEL")?;
    let session = Model::open(&name)?.on(Choice::Cpu)?;
    let texts: Vec<String> = (0..1000).map(|i| format!("The cat number {i} sat on the mat.")).collect();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (begin, end) = line.split_once(' ').ok_or("a line is BEGIN END")?;
        let texts = texts.get(begin.parse::<usize>()?..end.parse()?).ok_or("there are 1,000 texts")?;
        let begin = Instant::now();
        for text in texts {
            let batch = session.model().encode(&[text])?;
            let mut hooks = session.model().hooks();
            hooks.tap("ln_final.hook_out")?;
            let capture = session.run(&batch, &hooks)?;
            std::hint::black_box(&capture["ln_final.hook_out"]);
        }
        println!("{}", begin.elapsed().as_secs_f64());
    }
    Ok(())
}
