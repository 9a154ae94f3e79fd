//! The text form of edits, `SITE[@SELECT]:OP`, as used on the command line, in experiment files and from Python. Owns
//! the grammar. It knows no model, reads no file and runs nothing.
//!
//! ```text
//! SITE    a hook's name, a glob or another tool's name; a glob edits every match
//! SELECT  pos= head= dim= key= text= , each an index, a range a..b or several joined by +
//! OP      zero | scale=F | add=V | set=V | mean | patch | freeze
//! V       a number, or [F*]FILE[#ARRAY]
//! ```
//!
//! SITE ends at the first `@` or `:`, SELECT at the first `:` outside double quotes. Read next: `places.rs`,
//! for what they mean in a model and its texts.

use crate::hooks::site::Site;
pub use crate::indices::Item;
use std::str::FromStr;
use thiserror::Error;

/// An edit that cannot be parsed, or that matches nothing in this model or batch.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GrammarError {
    /// Not of the form `SITE[@SELECT]:OP`.
    #[error("the edit \"{written}\" cannot be read: {what}")]
    Syntax {
        /// The edit as given.
        written: String,
        /// What is wrong.
        what: String,
    },
    /// A part of SELECT that matches nothing.
    #[error("the edit \"{written}\" matches nothing: {what}")]
    Nothing {
        /// The edit as given.
        written: String,
        /// What was asked for and what exists.
        what: String,
    },
}

/// One position or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PosItem {
    /// By number.
    At(Item),
    /// Every occurrence of a text, without its quotes.
    Text(String),
    /// Every token that is generated.
    New,
}

/// SELECT: the part of a site. `None` means everything along that axis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelectSpec {
    /// Token positions.
    pub pos: Option<Vec<PosItem>>,
    /// Heads.
    pub head: Option<Vec<Item>>,
    /// Entries of the last axis.
    pub dim: Option<Vec<Item>>,
    /// Key positions of scores and patterns.
    pub key: Option<Vec<Item>>,
    /// Texts of the batch.
    pub text: Option<Vec<Item>>,
}

/// V: the values of an edit.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueSpec {
    /// One number.
    Number(f32),
    /// An array in a file.
    File {
        /// The factor for every value.
        factor: f32,
        /// The file.
        path: String,
        /// The array's name. `None` means the file's only array, or the one with the site's name.
        array: Option<String>,
    },
}

impl FromStr for ValueSpec {
    type Err = String;

    fn from_str(written: &str) -> Result<ValueSpec, String> {
        if let Ok(number) = written.parse::<f32>() {
            return Ok(ValueSpec::Number(number));
        }
        let (factor, rest) = match written.split_once('*') {
            Some((factor, rest)) if factor.parse::<f32>().is_ok() => (factor.parse().unwrap_or(1.0), rest),
            _ => (1.0f32, written),
        };
        let (path, array) = match rest.rsplit_once('#') {
            Some((path, array)) => (path, Some(array.to_string())),
            None => (rest, None),
        };
        if !factor.is_finite() || path.is_empty() || array.as_deref() == Some("") {
            return Err(format!("\"{written}\" is neither a number nor [F*]FILE[#ARRAY]"));
        }
        Ok(ValueSpec::File { factor, path: path.into(), array })
    }
}

/// OP: the operation.
#[derive(Clone, Debug, PartialEq)]
pub enum OpSpec {
    /// Set to zero.
    Zero,
    /// Multiply.
    Scale(f32),
    /// Add values.
    Add(ValueSpec),
    /// Replace by values.
    Set(ValueSpec),
    /// Replace by the mean over all positions of all texts of the unedited run, per head and dimension.
    Mean,
    /// Replace by the source run's value at the same place.
    Patch,
    /// Replace by the unedited run's value.
    Freeze,
}

/// A parsed edit.
#[derive(Clone, Debug, PartialEq)]
pub struct EditSpec {
    written: String,
    site: String,
    select: SelectSpec,
    op: OpSpec,
}

impl FromStr for EditSpec {
    type Err = GrammarError;

    /// Parses `SITE[@SELECT]:OP`.
    fn from_str(written: &str) -> Result<EditSpec, GrammarError> {
        let fail = |what: String| GrammarError::Syntax { written: written.into(), what };
        let end = written
            .find(['@', ':'])
            .ok_or_else(|| fail("it has no `:OP`; write SITE[@SELECT]:OP, such as z.2@head=3:zero".into()))?;
        let (site, rest) = written.split_at(end);
        if site.trim().is_empty() {
            return Err(fail("it names no site in front of its `@` or `:`".into()));
        }
        let (select, op) = match rest.strip_prefix('@') {
            Some(rest) => {
                let end =
                    unquoted(rest, ':').next().ok_or_else(|| fail("it has no `:OP` after its selection".into()))?;
                (select(&rest[..end]).map_err(&fail)?, &rest[end + 1..])
            }
            None => (SelectSpec::default(), &rest[1..]),
        };
        Ok(EditSpec { written: written.into(), site: site.trim().into(), select, op: op_spec(op).map_err(&fail)? })
    }
}

/// The byte offsets of `c` outside double quotes. Within quotes, a backslash escapes the next character.
fn unquoted(text: &str, c: char) -> impl Iterator<Item = usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().filter_map(move |(at, here)| {
        if escaped {
            escaped = false;
        } else if quoted && here == '\\' {
            escaped = true;
        } else if here == '"' {
            quoted = !quoted;
        } else if here == c && !quoted {
            return Some(at);
        }
        None
    })
}

/// Splits a text at every `c` outside double quotes.
fn cut(text: &str, c: char) -> Vec<&str> {
    let mut start = 0;
    let mut parts: Vec<&str> = Vec::new();
    for at in unquoted(text, c) {
        parts.push(&text[start..at]);
        start = at + c.len_utf8();
    }
    parts.push(&text[start..]);
    parts
}

fn select(written: &str) -> Result<SelectSpec, String> {
    let mut spec = SelectSpec::default();
    for part in cut(written, ',') {
        let form = "a selection is a list such as pos=-1,head=2+3,dim=0..5,key=1,text=0";
        let (name, list) = part.split_once('=').ok_or_else(|| format!("{part:?} has no `=`; {form}"))?;
        let twice = |has: bool| if has { Err(format!("{name}= occurs twice; join several with +")) } else { Ok(()) };
        let numbers = || list.split('+').map(item).collect::<Result<Vec<Item>, String>>();
        match name.trim() {
            "pos" => {
                twice(spec.pos.is_some())?;
                spec.pos = Some(cut(list, '+').into_iter().map(pos_item).collect::<Result<_, _>>()?);
            }
            "head" => (twice(spec.head.is_some())?, spec.head = Some(numbers()?)).0,
            "dim" => (twice(spec.dim.is_some())?, spec.dim = Some(numbers()?)).0,
            "key" => (twice(spec.key.is_some())?, spec.key = Some(numbers()?)).0,
            "text" => (twice(spec.text.is_some())?, spec.text = Some(numbers()?)).0,
            _ => return Err(format!("{name:?} is none of pos, head, dim, key, text; {form}")),
        }
    }
    Ok(spec)
}

fn item(written: &str) -> Result<Item, String> {
    Item::parse(written).ok_or_else(|| format!("{written:?} is neither an index nor a range a..b"))
}

fn pos_item(written: &str) -> Result<PosItem, String> {
    match written.trim() {
        "new" => Ok(PosItem::New),
        quoted if quoted.starts_with('"') => {
            let text = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).filter(|text| !text.is_empty());
            text.map(|text| PosItem::Text(text.into()))
                .ok_or_else(|| format!("{quoted} is not a text in double quotes"))
        }
        other => item(other).map(PosItem::At).map_err(|e| format!("{e}, nor a token's text in double quotes")),
    }
}

fn op_spec(written: &str) -> Result<OpSpec, String> {
    let (name, value) = match written.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value)),
        None => (written.trim(), None),
    };
    let needs = |example: &str| value.ok_or_else(|| format!("{name} needs a value, such as {name}={example}"));
    let op = match name {
        "zero" => OpSpec::Zero,
        "mean" => OpSpec::Mean,
        "patch" => OpSpec::Patch,
        "freeze" => OpSpec::Freeze,
        "scale" => {
            let factor = needs("0.5")?;
            let number = factor.trim().parse::<f32>().ok().filter(|f| f.is_finite());
            OpSpec::Scale(number.ok_or_else(|| format!("scale={factor} is not a finite number"))?)
        }
        "add" => OpSpec::Add(needs("2*direction.npy")?.parse()?),
        "set" => OpSpec::Set(needs("1.5")?.parse()?),
        _ => return Err(format!("{name:?} is none of zero, scale=F, add=V, set=V, mean, patch, freeze")),
    };
    match (&op, value) {
        (OpSpec::Zero | OpSpec::Mean | OpSpec::Patch | OpSpec::Freeze, Some(_)) => {
            Err(format!("{name} takes no value"))
        }
        _ => Ok(op),
    }
}

impl EditSpec {
    /// The edit as given.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// The edit as given, with the full name of `site` in place of SITE.
    pub fn at(&self, site: Site) -> String {
        let rest = &self.written[self.written.find(['@', ':']).unwrap_or(self.written.len())..];
        format!("{site}{rest}")
    }

    /// The operation.
    pub fn op(&self) -> &OpSpec {
        &self.op
    }

    /// SITE as given.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// SELECT.
    pub fn select(&self) -> &SelectSpec {
        &self.select
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(written: &str) -> EditSpec {
        written.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_parts_of_an_edit() {
        let edit = read("blocks.2.attn.hook_z@head=1+5,pos=2..5+-1,dim=..3:scale=-0.5");
        assert_eq!(edit.site, "blocks.2.attn.hook_z");
        assert_eq!(edit.op, OpSpec::Scale(-0.5));
        assert_eq!(edit.select.head, Some(vec![Item::Index(1), Item::Index(5)]));
        assert_eq!(edit.select.dim, Some(vec![Item::Span(None, Some(3))]));
        assert_eq!(
            edit.select.pos,
            Some(vec![PosItem::At(Item::Span(Some(2), Some(5))), PosItem::At(Item::Index(-1))])
        );
        assert_eq!(edit.at(Site::Z(2)), "blocks.2.attn.hook_z@head=1+5,pos=2..5+-1,dim=..3:scale=-0.5");
        assert_eq!(read("resid_pre.0:zero").select, SelectSpec::default());
    }

    #[test]
    fn quotes_hold_what_separates() {
        let edit = read(r#"resid_pre.1@pos=" a:b,c+d@e"+"\"",text=0:set=C:\dir\x*y.npz#blocks.1.hook_resid_pre"#);
        let texts = [" a:b,c+d@e", r#"\""#].map(|text| PosItem::Text(text.into()));
        assert_eq!(edit.select.pos, Some(texts.to_vec()));
        let path = r"C:\dir\x*y.npz".to_string();
        let array = Some("blocks.1.hook_resid_pre".to_string());
        assert_eq!(edit.op, OpSpec::Set(ValueSpec::File { factor: 1.0, path, array }));
    }

    #[test]
    fn values() {
        let file = |factor, path: &str, array: Option<&str>| {
            Ok(ValueSpec::File { factor, path: path.into(), array: array.map(String::from) })
        };
        assert_eq!("-2e3".parse(), Ok(ValueSpec::Number(-2e3)));
        assert_eq!("-1.5*v.npy".parse::<ValueSpec>(), file(-1.5, "v.npy", None));
        assert_eq!("v.npz#a".parse::<ValueSpec>(), file(1.0, "v.npz", Some("a")));
        for wrong in ["", "#a", "2*", "v.npz#", "inf*v.npy"] {
            assert!(wrong.parse::<ValueSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (written, what) in [
            ("z.2", "no `:OP`"),
            ("@pos=1:zero", "names no site"),
            ("z.2@pos=1", "no `:OP` after"),
            ("z.2@pos=\"a:zero", "no `:OP` after"),
            ("z.2@head:zero", "has no `=`"),
            ("z.2@heads=1:zero", "none of pos, head"),
            ("z.2@head=1,head=2:zero", "twice"),
            ("z.2@head=1+:zero", "neither an index"),
            ("z.2@pos=cat:zero", "double quotes"),
            ("z.2@pos=\"\":zero", "not a text"),
            ("z.2:zeros", "none of zero"),
            ("z.2:scale", "needs a value"),
            ("z.2:scale=nan", "not a finite number"),
            ("z.2:zero=1", "takes no value"),
            ("z.2:add=", "neither a number nor"),
        ] {
            let message = written.parse::<EditSpec>().unwrap_err().to_string();
            assert!(message.contains(what), "{written}: {message}");
        }
    }
}
