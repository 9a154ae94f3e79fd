//! Edges between the parts of a model as a graph: the embedding is at the bottom, the blocks follow upwards, the logits are at
//! the top. Owns the layout; the caller computes the scores. On a terminal, edges are printed as bars. Read next: `scene.rs`.

use super::bars::Bars;
use super::colour::{Rgb, number};
use super::scene::{Anchor, Scene, TEXT};
use super::terminal::Terminal;
use super::{BLACK, HEADING, Heading, Picture, Shows, draw_heading};
use crate::analysis::edges::{Edge, Writer};
use crate::analysis::path::Receiver;
use std::collections::BTreeSet;
use std::io::Write;

/// The picture.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The heading.
    pub heading: Heading,
    /// The edges that are drawn, strongest first.
    pub edges: Vec<Edge>,
    /// Lines of text below the graph.
    pub notes: Vec<String>,
}

/// The place of a box in the graph: its row from the bottom, and its column. Each head has a column, and all MLPs share one.
type Node = (usize, usize);

/// The column of MLPs, right of all heads, and of the embedding and the logits.
const LAST: usize = usize::MAX;

/// Size of a box, and the room between boxes and between rows.
const BOX: (f32, f32) = (58.0, 28.0);
const GAP: (f32, f32) = (16.0, 44.0);
/// Width of the strongest edge.
const WIDEST: f32 = 7.0;
/// The colours of edges that raise the metric, and of those that lower it.
const RAISES: Rgb = Rgb(178, 24, 43);
const LOWERS: Rgb = Rgb(33, 102, 172);

fn of_writer(writer: Writer) -> Node {
    match writer {
        Writer::Embed => (0, LAST),
        Writer::Head { layer, head } => (1 + 2 * layer, head),
        Writer::Mlp { layer } => (2 + 2 * layer, LAST),
    }
}

/// The logits are above all blocks.
fn of_reader(reader: Receiver) -> Node {
    match reader {
        Receiver::Query { layer, head } | Receiver::Key { layer, head } | Receiver::Value { layer, head } => {
            (1 + 2 * layer, head)
        }
        Receiver::Mlp { layer } => (2 + 2 * layer, LAST),
        Receiver::Logits => (usize::MAX, LAST),
    }
}

/// How far from its left an edge enters a box, as a share of its width.
fn entry(reader: Receiver) -> f32 {
    match reader {
        Receiver::Query { .. } => 0.2,
        Receiver::Value { .. } => 0.8,
        _ => 0.5,
    }
}

/// The text in a box.
fn name((row, place): Node) -> String {
    match row {
        0 => "embed".into(),
        usize::MAX => "logits".into(),
        _ if row % 2 == 1 => format!("{}.{place}", row / 2),
        _ => format!("mlp {}", row / 2 - 1),
    }
}

/// An edge in the notation of `patch --path`.
fn words(edge: &Edge) -> String {
    format!("{}...{}", edge.from, edge.to)
}

impl Graph {
    fn bars(&self) -> Bars {
        let bars = self.edges.iter().map(|edge| (words(edge), edge.score)).collect();
        Bars { heading: self.heading.clone(), bars, notes: self.notes.clone() }
    }
}

impl Picture for Graph {
    fn scene(&self, shows: Shows) -> Scene {
        let ends = self.edges.iter().flat_map(|edge| [of_writer(edge.from), of_reader(edge.to)]);
        let boxes: BTreeSet<Node> = ends.collect();
        // Rows and columns without edges are left out.
        let rows: Vec<usize> = boxes.iter().map(|node| node.0).collect::<BTreeSet<_>>().into_iter().collect();
        let columns: Vec<usize> = boxes.iter().map(|node| node.1).collect::<BTreeSet<_>>().into_iter().collect();
        let across = columns.len() as f32 * (BOX.0 + GAP.0);
        let width = (across + 2.0 * BOX.0 + 64.0).max(560.0);
        let below = HEADING + rows.len() as f32 * (BOX.1 + GAP.1);
        let height = below + 16.0 * (self.notes.len() + 1) as f32 + 12.0;
        let mut scene = Scene::new(width, height, 0, &self.heading.title());
        draw_heading(&mut scene, &self.heading, "", width, shows);
        let row = |node: Node| rows.iter().position(|row| *row == node.0).unwrap_or(0);
        let corner = |node: Node| {
            let column = columns.iter().position(|column| *column == node.1).unwrap_or(0);
            let x = (width - across) / 2.0 + column as f32 * (BOX.0 + GAP.0);
            (x, below - GAP.1 - row(node) as f32 * (BOX.1 + GAP.1) - BOX.1)
        };
        let most = self.edges.iter().map(|edge| edge.score.abs()).fold(f64::MIN_POSITIVE, f64::max);
        // The strongest edge is drawn last, so that it is above the others.
        for edge in self.edges.iter().rev() {
            let nodes = (of_writer(edge.from), of_reader(edge.to));
            let (from, to) = (corner(nodes.0), corner(nodes.1));
            // The curve passes around the boxes between, which are in the same column.
            let is_between = |node: &&Node| node.1 == nodes.0.1 && (nodes.0.0 + 1..nodes.1.0).contains(&node.0);
            let between = if nodes.0.1 == nodes.1.1 { boxes.iter().filter(is_between).count() } else { 0 };
            let aside = if between > 0 { BOX.0 + 8.0 * between as f32 } else { 0.0 };
            let wide = (f64::from(WIDEST) * edge.score.abs() / most).max(0.6) as f32;
            let colour = if edge.score < 0.0 { LOWERS } else { RAISES };
            let told = format!("{}: {}", words(edge), edge.score);
            let ends = ((from.0 + BOX.0 / 2.0, from.1), (to.0 + BOX.0 * entry(edge.to), to.1 + BOX.1));
            scene.curve(ends, aside, (wide, colour), &told);
        }
        for node in &boxes {
            let (x, y) = corner(*node);
            scene.label((x, y), BOX, &name(*node));
            let heads = self.edges.iter().filter(|edge| of_reader(edge.to) == *node);
            for reader in heads.map(|edge| edge.to).collect::<BTreeSet<_>>() {
                let letter = match reader {
                    Receiver::Query { .. } => "q",
                    Receiver::Key { .. } => "k",
                    Receiver::Value { .. } => "v",
                    Receiver::Mlp { .. } | Receiver::Logits => continue,
                };
                scene.text(x + BOX.0 * entry(reader), y + BOX.1 - 2.0, 9.0, Anchor::Middle, BLACK, letter);
            }
        }
        let widths = format!("red: raises the metric, blue: lowers it; the widest edge is {}", number(most as f32));
        for (i, note) in [widths].iter().chain(&self.notes).enumerate() {
            scene.text(16.0, below + 12.0 + 16.0 * i as f32, TEXT, Anchor::Start, BLACK, note);
        }
        scene
    }

    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        self.bars().print(terminal, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::terminal::Colours;

    /// Every edge has a tooltip and the colour of its sign, and boxes without edges are left out. Seen red with the colours
    /// exchanged.
    #[test]
    fn edges_with_their_signs() {
        let edge = |from, to, score| Edge { from, to, score };
        let edges = vec![
            edge(Writer::Embed, Receiver::Mlp { layer: 1 }, 2.0),
            edge(Writer::Head { layer: 0, head: 3 }, Receiver::Value { layer: 2, head: 1 }, -1.0),
            edge(Writer::Mlp { layer: 1 }, Receiver::Logits, 0.5),
        ];
        let graph =
            Graph { heading: Heading { text: Vec::new(), what: "x".into() }, edges, notes: vec!["note".into()] };
        let svg = graph.scene(|_| true).svg().unwrap();
        for (told, colour) in
            [("embed...mlp.1: 2", RAISES), ("head.0.3...v.2.1: -1", LOWERS), ("mlp.1...logits: 0.5", RAISES)]
        {
            let line = svg.lines().find(|line| line.contains(&format!("<title>{told}</title>"))).unwrap();
            assert!(line.contains(&format!("stroke=\"{}\"", colour.css())), "{line}");
        }
        for (shown, times) in
            [(">embed<", 1), (">0.3<", 1), (">2.1<", 1), (">mlp 1<", 1), (">logits<", 1), (">mlp 0<", 0), (">v<", 1)]
        {
            assert_eq!(svg.matches(shown).count(), times, "{shown}");
        }
        let mut out = Vec::new();
        graph.print(&Terminal { width: 60, colours: Colours::None }, &mut out).unwrap();
        let printed = String::from_utf8(out).unwrap();
        assert!(printed.contains("head.0.3...v.2.1") && printed.ends_with("note\n"), "{printed}");
    }
}
