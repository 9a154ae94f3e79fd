//! What an edit's SITE and SELECT mean in a model and its texts: sites, positions, heads, dimensions. Owns [`Where`].
//! Read next: `edits.rs`.

use crate::analysis::edit_error::EditError;
use crate::analysis::grammar::{EditSpec, GrammarError, Item, PosItem};
use crate::config::Config;
use crate::hooks::request::{HookError, Select};
use crate::hooks::site::{self, Axis, Site};
use crate::model::token_select::{self, SelectError};
use crate::model::tokenizer::Token;
use std::collections::BTreeSet;

/// A place that an edit changes in one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Where {
    /// The site.
    pub site: Site,
    /// The part of the site.
    pub select: Select,
}

/// The indices below `n` that the items mean, ascending, without duplicates. The error names an item that matches
/// nothing.
fn indices(items: &[Item], n: usize) -> Result<Vec<usize>, String> {
    let mut all = BTreeSet::new();
    for item in items {
        let found = item.existing(n);
        if found.is_empty() {
            return Err(format!("{item} of {n}"));
        }
        all.extend(found);
    }
    Ok(all.into_iter().collect())
}

/// The item without negative numbers, which count from the end of `n`.
fn counted_in(item: Item, n: usize) -> Result<Item, String> {
    item.non_negative(n).ok_or_else(|| format!("{item} of {n}"))
}

impl EditSpec {
    fn nothing(&self, what: String) -> GrammarError {
        GrammarError::Nothing { written: self.written().into(), what }
    }

    /// The places that this edit changes in texts of these tokens.
    ///
    /// # Errors
    /// [`EditError::Hook`] for a site that does not exist or lacks an axis; [`EditError::Grammar`] for a selection that
    /// matches nothing in a text that it is to match in.
    pub fn places(&self, config: &Config, tokens: &[Vec<Token>]) -> Result<Vec<Where>, EditError> {
        self.places_of_growing(config, tokens, &tokens.iter().map(Vec::len).collect::<Vec<_>>())
    }

    /// [`EditSpec::places`] for generated texts. `tokens` holds the tokens of each prompt followed by the new tokens;
    /// the first `prompts[i]` tokens of text i are its prompt. Negative positions count from the prompt's end, and
    /// quoted texts are searched for in the prompt.
    ///
    /// # Errors
    /// As [`EditSpec::places`].
    pub fn places_of_growing(
        &self,
        config: &Config,
        tokens: &[Vec<Token>],
        prompts: &[usize],
    ) -> Result<Vec<Where>, EditError> {
        let sites = site::resolve(self.site(), config.n_layer).map_err(HookError::from)?;
        let chosen = match &self.select().text {
            Some(items) => indices(items, tokens.len()).map_err(|what| self.nothing(format!("text {what} texts")))?,
            None => (0..tokens.len()).collect(),
        };
        let in_each = |of_text: &dyn Fn(usize) -> Result<Vec<usize>, GrammarError>| {
            let list = |text: usize| if chosen.contains(&text) { of_text(text) } else { Ok(Vec::new()) };
            (0..tokens.len()).map(list).collect::<Result<Vec<_>, _>>()
        };
        let positions = match &self.select().pos {
            Some(items) => Some(in_each(&|text| self.positions(items, &tokens[text], prompts[text], text))?),
            None if chosen.len() < tokens.len() => Some(in_each(&|text| Ok((0..tokens[text].len()).collect()))?),
            None => None,
        };
        let keys = match &self.select().key {
            Some(items) => Some(in_each(&|text| {
                let n = tokens[text].len();
                let items: Result<Vec<Item>, _> = items.iter().map(|item| counted_in(*item, prompts[text])).collect();
                let found = items.and_then(|items| indices(&items, n));
                found.map_err(|what| self.nothing(format!("key {what} tokens of text {text}")))
            })?),
            None => None,
        };
        let place = |site: Site| {
            let axis = |axes: &[Axis]| site.axes().iter().find(|axis| axes.contains(axis));
            let lacks = |name: &str| {
                let axes: Vec<&str> = site.axes().iter().map(|axis| axis.letter()).collect();
                self.nothing(format!("{site} is [{}] and has no axis for {name}=", axes.join(", ")))
            };
            let mut select = Select::all();
            if let Some(items) = &self.select().head {
                axis(&[Axis::Head]).ok_or_else(|| lacks("head"))?;
                let heads = indices(items, config.n_head).map_err(|what| self.nothing(format!("head {what} heads")))?;
                select = select.heads(heads);
            }
            if let Some(items) = &self.select().dim {
                let last = site.axes().last().filter(|_| !site.is_square()).ok_or_else(|| lacks("dim"))?;
                let n = last.len(config, 0);
                select = select.dims(indices(items, n).map_err(|what| self.nothing(format!("dim {what} of {site}")))?);
            }
            if let Some(keys) = &keys {
                axis(&[Axis::Key]).ok_or_else(|| lacks("key"))?;
                select = select.keys(keys.clone());
            }
            if let Some(positions) = &positions {
                select = select.positions(positions.clone());
            }
            if let (true, Some(keys)) = (site.is_square(), &keys) {
                // A key is visible to the query at its own position and to later ones.
                let seen = chosen.iter().any(|&text| {
                    let last =
                        positions.as_ref().map_or(tokens[text].len() - 1, |of| of[text].last().copied().unwrap_or(0));
                    keys[text].first().is_some_and(|key| *key <= last)
                });
                if !seen {
                    return Err(self.nothing("no chosen query can see a chosen key".into()).into());
                }
            }
            Ok(Where { site, select })
        };
        sites.into_iter().map(place).collect()
    }

    fn positions(
        &self,
        items: &[PosItem],
        tokens: &[Token],
        prompt: usize,
        text: usize,
    ) -> Result<Vec<usize>, GrammarError> {
        let mut all = BTreeSet::new();
        for item in items {
            match item {
                PosItem::At(item) => {
                    let found = counted_in(*item, prompt).and_then(|item| indices(&[item], tokens.len()));
                    all.extend(found.map_err(|what| self.nothing(format!("pos {what} tokens of text {text}")))?);
                }
                PosItem::Text(wanted) => {
                    let found = token_select::select(&[format!("\"{wanted}\"")], &tokens[..prompt], text);
                    all.extend(found.map_err(|e: SelectError| self.nothing(format!("pos {e}")))?.positions);
                }
                PosItem::New if prompt < tokens.len() => all.extend(prompt..tokens.len()),
                PosItem::New => {
                    return Err(
                        self.nothing(format!("pos=new is for tokens that are generated, and text {text} gets none"))
                    );
                }
            }
        }
        Ok(all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(written: &str) -> EditSpec {
        written.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn config() -> Config {
        Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 8, "vocab_size": 9}"#).unwrap()
    }

    fn tokens() -> Vec<Vec<Token>> {
        let text = |parts: &[&str]| -> Vec<Token> {
            parts.iter().map(|part| Token { id: 0, bytes: Some(part.as_bytes().to_vec()) }).collect()
        };
        vec![text(&["The", " cat", " sat"]), text(&["A", " cat", ":", " 3", " cat"])]
    }

    #[test]
    fn places_are_counted_in_each_text() {
        let of = |written: &str| read(written).places(&config(), &tokens()).unwrap().remove(0).select;
        let at = |per_text: [&[usize]; 2]| Select::all().positions(per_text.iter().map(|list| list.to_vec()).collect());
        assert_eq!(of("resid_pre.0@pos=-1+..1:zero"), at([&[0, 2], &[0, 4]]));
        assert_eq!(of("resid_pre.0@pos=-2..:zero"), at([&[1, 2], &[3, 4]]));
        assert_eq!(of("resid_pre.0@pos=\" cat\":zero"), at([&[1], &[1, 4]]));
        assert_eq!(of("resid_pre.0@pos=\":\",text=1:zero"), at([&[], &[2]]));
        assert_eq!(of("resid_pre.0@text=-1:zero"), at([&[], &[0, 1, 2, 3, 4]]));
        assert_eq!(of("z.0@head=3+0+-1,dim=1:zero"), Select::all().heads([0, 3]).dims([1]));
        assert_eq!(of("pattern.1@key=0,pos=-1:zero"), at([&[2], &[4]]).keys(vec![vec![0], vec![0]]));
        let sites = read("blocks.*.hook_resid_p*:zero").places(&config(), &tokens()).unwrap();
        assert_eq!(sites.len(), 4, "resid_pre and resid_post of two blocks");
    }

    #[test]
    fn a_selection_that_matches_nothing_is_an_error() {
        for (written, what) in [
            ("resid_pre.0@pos=4:zero", "4 of 3 tokens of text 0"),
            ("resid_pre.0@pos=\":\":zero", "text 0"),
            ("resid_pre.0@pos=3..:zero", "3.. of 3"),
            ("resid_pre.0@text=2:zero", "2 of 2 texts"),
            ("z.0@head=4:zero", "4 of 4 heads"),
            ("z.0@dim=2:zero", "2 of 2"),
            ("resid_pre.0@head=0:zero", "no axis for head="),
            ("pattern.0@dim=0:zero", "no axis for dim="),
            ("z.0@key=0:zero", "no axis for key="),
            ("pattern.0@pos=0,key=1:zero", "can see"),
            ("resid_pre.7:zero", "7"),
            ("reside_pre.0:zero", "nearest"),
            ("resid_pre.0@pos=new:zero", "generated"),
        ] {
            let message = read(written).places(&config(), &tokens()).unwrap_err().to_string();
            assert!(message.contains(what), "{written}: {message}");
        }
    }
}
