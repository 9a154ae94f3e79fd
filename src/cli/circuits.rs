//! `actscope circuits`: what a head's weights do, independent of any text. Read next: `../analysis/circuits.rs`, which
//! computes it.

use super::lists;
use super::run::{ProcessArgs, refuse_to_overwrite};
use super::target::{Findings, Target, deliver, model_provenance, number};
use super::{Failure, ModelArgs};
use crate::analysis::circuits::{Circuit, CircuitKind, Composition, Depth, Pair, SingularDirection, circuit};
use crate::analysis::lens::TokenLogits;
use crate::output::arrays::Named;
use crate::plot::Picture;
use crate::plot::terminal::Terminal;
use crate::session::Model;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

/// Arguments of `actscope circuits`.
#[derive(Args)]
pub(super) struct CircuitsCommand {
    /// The head: layer and head with a dot between them; negative numbers count from the end, such as -1.0
    #[arg(value_name = "L.H", allow_hyphen_values = true)]
    head: Place,
    /// ov: from the attended token to the tokens that it makes likelier; qk: from the query token to the key token
    #[arg(long, value_name = "KIND", default_value = "ov")]
    kind: CircuitKind,
    /// Show the N largest pairs of tokens, singular directions and compositions
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Output file: .json, .csv (pairs of tokens), .npz or .safetensors [default: the terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A head as the user wrote it; negative numbers count from the end.
#[derive(Clone, Copy)]
struct Place {
    layer: i64,
    head: i64,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(written: &str) -> Result<Place, String> {
        let place = written
            .split_once('.')
            .and_then(|(layer, head)| Some(Place { layer: layer.parse().ok()?, head: head.parse().ok()? }));
        place.ok_or_else(|| format!("{written:?} is not a head; write layer and head, such as 3.4"))
    }
}

/// Tokens shown at each end of a direction.
const TOKENS: usize = 5;

impl CircuitsCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let target = self.out.as_deref().map(Target::create_numbers).transpose()?;
        let files = self.model.open()?;
        if let Some(target) = &target {
            refuse_to_overwrite(target.path(), &files, std::iter::empty())?;
        }
        let config = files.config();
        let layer = lists::index("layer", self.head.layer, config.n_layer)?;
        let head = lists::index("head", self.head.head, config.n_head)?;
        let files = self.process.apply(files)?;
        let top = self.top as usize;
        let depth = Depth { pairs: top, directions: top, tokens: TOKENS };
        let found = circuit(files.checkpoint(), (layer, head), self.kind, depth)?;
        files.checkpoint().check_unchanged().map_err(crate::session::Error::from)?;
        let whole = Whole::new(&files, &found, self.kind, (layer, head), top);
        deliver(&whole, target, &self.model)
    }
}

/// The results, for every form of output.
struct Whole<'a> {
    files: &'a Model,
    found: &'a Circuit,
    kind: CircuitKind,
    place: (usize, usize),
    top: usize,
    json: Map<String, Value>,
}

/// The heads with the strongest composition.
fn strongest(list: &[Composition], top: usize) -> Vec<Composition> {
    let most = |c: &Composition| c.q.max(c.k).max(c.v);
    let mut list = list.to_vec();
    list.sort_by(|a, b| most(b).total_cmp(&most(a)));
    list.truncate(top);
    list
}

impl<'a> Whole<'a> {
    fn new(files: &'a Model, found: &'a Circuit, kind: CircuitKind, place: (usize, usize), top: usize) -> Whole<'a> {
        let token = |id: u32| json!({"id": id, "token": files.token(id).text()});
        let list = |tokens: &TokenLogits| -> Value {
            let named =
                |(id, value): &(u32, f64)| json!({"id": id, "token": files.token(*id).text(), "value": number(*value)});
            tokens.iter().map(named).collect()
        };
        let ends = |(top, bottom): &(TokenLogits, TokenLogits)| json!({"top": list(top), "bottom": list(bottom)});
        let pair =
            |Pair { from, to, value }: &Pair| json!({"from": token(*from), "to": token(*to), "value": number(*value)});
        let direction = |d: &SingularDirection| json!({"singular_value": number(d.value), "left": ends(&d.left_tokens), "right": ends(&d.right_tokens)});
        let composition = |c: &Composition| json!({"layer": c.layer, "head": c.head, "q": number(c.q), "k": number(c.k), "v": number(c.v)});
        let all = |list: &[Composition]| list.iter().map(composition).collect::<Value>();
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.into(), value);
        put("command", json!("circuits"));
        put("kind", json!(kind.name()));
        put("layer", json!(place.0));
        put("head", json!(place.1));
        put("pairs", found.pairs.iter().map(pair).collect());
        put("score", number(found.score));
        put("eigenvalues", found.eigenvalues.iter().map(|v| json!(v.map(number))).collect());
        put("singular_values", found.directions.iter().map(|d| number(d.value)).collect());
        put("directions", found.directions.iter().take(top).map(direction).collect());
        put("reads", all(&found.reads));
        put("writes", all(&found.writes));
        model_provenance(files).into_iter().for_each(|(key, value)| drop(put(&key, value)));
        Whole { files, found, kind, place, top, json }
    }
}

impl Findings for Whole<'_> {
    fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    fn array_keys(&self) -> &[&str] {
        &["eigenvalues", "singular_values"]
    }

    fn arrays(&self) -> Vec<Named> {
        let named = Named::f64;
        let (n, width) = (self.found.directions.len(), self.files.config().n_embd);
        let side =
            |of: fn(&SingularDirection) -> &Vec<f64>| self.found.directions.iter().flat_map(of).copied().collect();
        vec![
            named("singular_values", &[n], self.found.directions.iter().map(|d| d.value).collect()),
            named("left", &[n, width], side(|d| &d.left)),
            named("right", &[n, width], side(|d| &d.right)),
            named("eigenvalues", &[self.found.eigenvalues.len(), 2], self.found.eigenvalues.concat()),
        ]
    }

    fn table(&self, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        table.write_record(["from", "from_token", "to", "to_token", "value"])?;
        for Pair { from, to, value } in &self.found.pairs {
            let text = |id: u32| self.files.token(id).text();
            table.write_record([from.to_string(), text(*from), to.to_string(), text(*to), value.to_string()])?;
        }
        Ok(())
    }

    fn picture(&self) -> Option<Box<dyn Picture>> {
        None
    }

    fn print(&self, _: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        let Whole { files, found, kind, place: (layer, head), top, .. } = self;
        let label = |id: u32| format!("\"{}\"", files.token(id).label());
        let process = match files.checkpoint().process() {
            steps if steps.is_none() => String::new(),
            steps => format!(", weights processed ({steps})"),
        };
        let (what, score, sides) = match kind {
            CircuitKind::Ov => ("OV", "copying score", ["looks at", "raises"]),
            CircuitKind::Qk => ("QK", "matching score", ["from", "looks at"]),
        };
        writeln!(out, "{what} circuit of head {layer}.{head} of {}{process}", files.name())?;
        let positive = found.eigenvalues.iter().filter(|[re, _]| *re > 0.0).count();
        writeln!(
            out,
            "{score} {:+.4}: {positive} of {} eigenvalues have a positive real part",
            found.score,
            found.eigenvalues.len()
        )?;
        writeln!(out, "\n{:>12}  {} -> {}", "entry", sides[0], sides[1])?;
        for Pair { from, to, value } in &found.pairs {
            writeln!(out, "{value:>+12.4}  {} -> {}", label(*from), label(*to))?;
        }
        writeln!(out, "\nsingular directions, with the tokens at both ends")?;
        for (n, direction) in found.directions.iter().take(*top).enumerate() {
            let list = |tokens: &TokenLogits| tokens.iter().map(|(id, _)| label(*id)).collect::<Vec<_>>().join(" ");
            writeln!(out, "{n:>3} {:>10.4}", direction.value)?;
            let both = [(sides[0], &direction.left_tokens), (sides[1], &direction.right_tokens)];
            for (side, (high, low)) in both {
                writeln!(out, "    {side:>8}: {} | {}", list(high), list(low))?;
            }
        }
        let lists = [("reads earlier heads", &found.reads), ("is read by later heads", &found.writes)];
        for (name, list) in lists {
            if list.is_empty() {
                continue;
            }
            writeln!(out, "\n{name:<24} {:>8} {:>8} {:>8}", "queries", "keys", "values")?;
            for Composition { layer, head, q, k, v } in strongest(list, *top) {
                writeln!(out, "{:<24} {q:>8.4} {k:>8.4} {v:>8.4}", format!("{layer}.{head}"))?;
            }
        }
        Ok(())
    }
}
