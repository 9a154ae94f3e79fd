//! Unrolls loops before a kernel is compiled. Owns that step and nothing else.
//!
//! The files of `shaders/` have plain loops. A loop whose line ends in `// unrolled` is replaced by copies of its body,
//! one for each value of its counter, because many compilers do not unroll it and then put the arrays that it indexes
//! in memory. Line numbers do not change: the first copy stays where the body is, and all others follow on the line of
//! the closing brace.
//! Read next: `encoder.rs`, which compiles the result.

use std::iter::Peekable;

/// The text with its marked loops unrolled.
///
/// # Panics
/// When a marked loop does not have the form `for (var i = 0u; i < BOUND; i += 1u) { // unrolled`, or its bound has
/// anything but numbers and constants of the text with `+`, `-`, `*`, `/` and brackets. That is an error in the kernel, on
/// every device.
pub fn unrolled(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let consts = Consts(&lines);
    expand(&lines, &consts).join("\n") + "\n"
}

fn expand(lines: &[&str], consts: &Consts<'_>) -> Vec<String> {
    let mut out = Vec::with_capacity(lines.len());
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let Some(header) = line.trim_end().strip_suffix("{ // unrolled") else {
            out.push(line.to_string());
            at += 1;
            continue;
        };
        let (name, bound) = counter(header).unwrap_or_else(|| panic!("this loop cannot be unrolled: {line:?}"));
        let n = consts.value(bound).unwrap_or_else(|| panic!("the bound of {line:?} is no constant"));
        let end = at + closing(&lines[at..]);
        let body = expand(&lines[at + 1..end], consts);
        let flat: String = body.iter().map(|line| code(line).trim()).collect::<Vec<_>>().join(" ");
        if n == 0 {
            out.extend(std::iter::repeat_n(String::new(), end - at + 1));
        } else {
            out.push(format!("{{ const {name} = 0u;"));
            out.extend(body);
            let more: String = (1..n).map(|i| format!(" {{ const {name} = {i}u; {flat} }}")).collect();
            out.push(format!("}}{more}"));
        }
        at = end + 1;
    }
    out
}

/// Name and bound of `for (var NAME = 0u; NAME < BOUND; NAME += 1u) `.
fn counter(header: &str) -> Option<(&str, &str)> {
    let (name, rest) = header.trim().strip_prefix("for (var ")?.split_once(" = 0u; ")?;
    let bound = rest.strip_prefix(name)?.strip_prefix(" < ")?.strip_suffix(&format!("; {name} += 1u)"))?;
    Some((name, bound))
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The index of the line that closes the block that the first line opens.
fn closing(lines: &[&str]) -> usize {
    let mut depth = 0i32;
    for (i, line) in lines.iter().enumerate() {
        for c in code(line).chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
        }
        if depth == 0 {
            return i;
        }
    }
    panic!("the block of {:?} has no end", lines[0])
}

/// The module's `const NAME: u32 = EXPRESSION;` lines.
struct Consts<'a>(&'a [&'a str]);

impl Consts<'_> {
    /// The value of an expression of numbers and constants with `+`, `-`, `*`, `/` and brackets.
    fn value(&self, expression: &str) -> Option<u32> {
        let spaced = expression.replace('(', "( ").replace(')', " )");
        let mut words = spaced.split(' ').peekable();
        let value = self.sum(&mut words)?;
        words.next().is_none().then_some(value)
    }

    fn sum<'w>(&self, words: &mut Peekable<impl Iterator<Item = &'w str>>) -> Option<u32> {
        let mut value = self.product(words)?;
        while let Some(operator) = words.next_if(|word| ["+", "-"].contains(word)) {
            let next = self.product(words)?;
            value = if operator == "+" { value + next } else { value.checked_sub(next)? };
        }
        Some(value)
    }

    fn product<'w>(&self, words: &mut Peekable<impl Iterator<Item = &'w str>>) -> Option<u32> {
        let mut value = self.factor(words)?;
        while let Some(operator) = words.next_if(|word| ["*", "/"].contains(word)) {
            let next = self.factor(words)?;
            value = if operator == "*" { value * next } else { value / next };
        }
        Some(value)
    }

    fn factor<'w>(&self, words: &mut Peekable<impl Iterator<Item = &'w str>>) -> Option<u32> {
        match words.next()? {
            "(" => {
                let value = self.sum(words)?;
                words.next_if_eq(&")")?;
                Some(value)
            }
            word => self.word(word),
        }
    }

    fn word(&self, word: &str) -> Option<u32> {
        if let Some(number) = word.strip_suffix('u').and_then(|digits| digits.parse().ok()) {
            return Some(number);
        }
        let begin = format!("const {word}: u32 = ");
        let expression =
            self.0.iter().find_map(|line| code(line).trim_end().strip_prefix(&begin)?.strip_suffix(';'))?;
        self.value(expression)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_written_out_and_lines_stay() {
        let text = "const N: u32 = (M + 3u - 1u) / 4u + 1u;
fn f() {
    for (var i = 0u; i < N; i += 1u) { // unrolled
        a[i] += 1.0; // why
        for (var j = 0u; j < 2u; j += 1u) { // unrolled
            b[i * 2u + j] = 0.0;
        }
    }
    c();
}
const M: u32 = 2u;
";
        let out = unrolled(text);
        assert_eq!(out.lines().count(), text.lines().count());
        assert_eq!(out.lines().nth(8), Some("    c();"));
        assert_eq!(out.matches("a[i] += 1.0").count(), 2);
        assert_eq!(out.matches("b[i * 2u + j] = 0.0;").count(), 4);
        assert_eq!(out.matches("const i = 1u;").count(), 1);
        assert_eq!(out.matches("const j = 1u;").count(), 2);
        assert!(!out.contains("for ("));
        assert_eq!(unrolled("for (var i = 0u; i < 0u; i += 1u) { // unrolled\n}\nx();\n"), "\n\nx();\n");
    }

    #[test]
    #[should_panic(expected = "cannot be unrolled")]
    fn another_form_is_refused() {
        unrolled("for (var i = 1u; i < 4u; i += 1u) { // unrolled\n}\n");
    }
}
