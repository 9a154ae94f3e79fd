//! `actscope weights`: lists weights under TransformerLens's names and in its shapes, or writes them to a file. Read
//! next: `../analysis/weights.rs`, which computes them.

use super::run::{ProcessArgs, refuse_to_overwrite};
use super::target::model_provenance;
use super::{Failure, ModelArgs, size};
use crate::analysis::weights::{self, NamedWeight};
use crate::output::arrays::{self, Named, Numbers};
use crate::output::{self, OutputError, Place};
use crate::text::nearest;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `actscope weights`.
#[derive(Args)]
pub(crate) struct Weights {
    /// Names such as blocks.3.attn.W_Q or W_U, or globs [default: all weights, listed]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Output file: .npz or .safetensors [default: a list of the weights]
    #[arg(short, long, value_name = "FILE", requires = "names")]
    out: Option<PathBuf>,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    model: ModelArgs,
}

impl Weights {
    pub(super) fn run(self) -> Result<(), Failure> {
        let place = match &self.out {
            Some(path) if ["npz", "safetensors"].contains(&output::extension(path).as_str()) => {
                Some(Place::create(path)?)
            }
            Some(path) => {
                return Err(OutputError::Format { path: path.clone(), known: ".npz or .safetensors" }.into());
            }
            None => None,
        };
        let files = self.process.apply(self.model.open()?)?;
        let config = files.config();
        let mut found: Vec<NamedWeight> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for name in &self.names {
            let of_name = weights::find(name, config);
            if of_name.is_empty() {
                let near = nearest(name, weights::all(config).into_iter().map(|weight| weight.name));
                let near: Vec<String> = near.into_iter().take(3).map(|(_, name)| name).collect();
                return Err(Failure::Usage(format!("no weight matches {name:?}; nearest: {}", near.join(", "))));
            }
            found.extend(of_name.into_iter().filter(|weight| !seen.contains(&weight.name)));
            seen.extend(found.iter().map(|weight| weight.name.clone()));
        }
        if self.names.is_empty() {
            found = weights::all(config);
        }
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        let Some(place) = place else {
            let listed = |weight: &NamedWeight| json!({"name": weight.name, "shape": weight.shape});
            if self.model.json {
                writeln!(stdout, "{}", json!(found.iter().map(listed).collect::<Vec<_>>()))?
            } else {
                found.iter().try_for_each(|weight| writeln!(stdout, "{:<24} {:?}", weight.name, weight.shape))?
            }
            return Ok(stdout.flush()?);
        };
        refuse_to_overwrite(place.path(), &files, std::iter::empty())?;
        let named = found.iter().map(|weight| {
            let values = weight.values(files.checkpoint()).map_err(crate::session::Error::from)?;
            let numbers = Numbers::F32(values.into_raw_vec_and_offset().0);
            Ok(Named { name: weight.name.clone(), shape: weight.shape.clone(), numbers })
        });
        let named = named.collect::<Result<Vec<_>, Failure>>()?;
        let metadata = model_provenance(&files);
        let (path, extension) = (place.path().display().to_string(), output::extension(place.path()));
        let bytes = place.fill(|part| {
            output::buffered(part, |out| match extension.as_str() {
                "npz" => arrays::write_npz(&named, &metadata, out),
                _ => arrays::write_safetensors(&named, &metadata, out),
            })
        })?;
        self.model.say(format_args!("wrote {path}: {} weights, {}", named.len(), size(bytes)));
        if self.model.json {
            let listed: Vec<_> = named.iter().map(|n| json!({"name": n.name, "shape": n.shape})).collect();
            writeln!(stdout, "{}", json!({"file": path, "bytes": bytes, "weights": listed}))?;
        }
        Ok(stdout.flush()?)
    }
}
