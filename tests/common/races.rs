//! Finds accesses to workgroup memory without a barrier between them: a write and a read, or a read and a write, of
//! different elements. Either may belong to another invocation, so their order is not defined. Owns a walk over naga's
//! form of a kernel, in the order of execution, with calls carried out and every loop body run twice.
//!
//! Two accesses of the same element, by the same expression, belong to the same invocation. So do a read and the write
//! of the value that was computed from it (`a[i] += a[i + half]`).

use naga::{Block, Expression, Function, GlobalVariable, Handle, Module, Statement};
use std::collections::{BTreeSet, HashMap};

/// One element of an array in workgroup memory: the array, and its index in words.
type Element = (Handle<GlobalVariable>, String);

/// The accesses since the last barrier.
#[derive(Clone, Default)]
struct Phase {
    reads: BTreeSet<Element>,
    writes: BTreeSet<Element>,
}

impl Phase {
    fn join(&mut self, other: Phase) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
    }
}

/// True for the loops `i < CONSTANT`, which run at least once.
fn has_constant_bound(function: &Function, body: &Block) -> bool {
    let is_constant = |of| matches!(function.expressions[of], Expression::Constant(_) | Expression::Literal(_));
    let condition = body.iter().find_map(|statement| match statement {
        Statement::If { condition, .. } => Some(*condition),
        _ => None,
    });
    condition.is_some_and(|condition| match function.expressions[condition] {
        Expression::Binary { op: naga::BinaryOperator::Less, right, .. } => is_constant(right),
        _ => false,
    })
}

struct Walk<'a> {
    module: &'a Module,
    found: BTreeSet<String>,
    /// A number for everything that may differ each time it is evaluated.
    fresh: usize,
}

/// A function with the words of its arguments, and those of the results of its statements.
struct Frame<'a> {
    function: &'a Function,
    arguments: Vec<String>,
    words: HashMap<Handle<Expression>, String>,
}

/// The conflicting accesses of a module with one entry point, in words.
pub(crate) fn races(module: &Module) -> BTreeSet<String> {
    let function = &module.entry_points[0].function;
    let arguments = (0..function.arguments.len()).map(|i| format!("argument {i}")).collect();
    let mut walk = Walk { module, found: BTreeSet::new(), fresh: 0 };
    let mut frame = Frame { function, arguments, words: HashMap::new() };
    walk.block(&mut frame, &function.body, &mut Phase::default());
    walk.found
}

impl<'a> Walk<'a> {
    fn new_word(&mut self) -> String {
        self.fresh += 1;
        format!("value {}", self.fresh)
    }

    /// An expression in words. Equal words are equal values.
    fn words(&mut self, frame: &mut Frame<'a>, of: Handle<Expression>) -> String {
        if let Some(words) = frame.words.get(&of) {
            return words.clone();
        }
        let words = match &frame.function.expressions[of] {
            Expression::Literal(literal) => format!("{literal:?}"),
            Expression::Constant(constant) => format!("{constant:?}"),
            Expression::FunctionArgument(i) => frame.arguments[*i as usize].clone(),
            Expression::GlobalVariable(variable) => format!("{variable:?}"),
            Expression::LocalVariable(_) => format!("{of:?}"),
            Expression::AccessIndex { base, index } => format!("{}.{index}", self.words(frame, *base)),
            Expression::Access { base, index } => {
                format!("{}[{}]", self.words(frame, *base), self.words(frame, *index))
            }
            Expression::Binary { op, left, right } => {
                format!("({} {op:?} {})", self.words(frame, *left), self.words(frame, *right))
            }
            // Only the parameters, which are in a uniform binding, are the same whenever they are loaded.
            Expression::Load { pointer } if self.is_uniform(frame.function, *pointer) => {
                format!("load {}", self.words(frame, *pointer))
            }
            _ => self.new_word(),
        };
        frame.words.insert(of, words.clone());
        words
    }

    fn root(function: &Function, pointer: Handle<Expression>) -> Option<Handle<GlobalVariable>> {
        match &function.expressions[pointer] {
            Expression::GlobalVariable(variable) => Some(*variable),
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => Self::root(function, *base),
            _ => None,
        }
    }

    fn is_uniform(&self, function: &Function, pointer: Handle<Expression>) -> bool {
        let space = Self::root(function, pointer).map(|variable| self.module.global_variables[variable].space);
        matches!(space, Some(naga::AddressSpace::Uniform))
    }

    /// The element of workgroup memory that a pointer points to.
    fn element(&mut self, frame: &mut Frame<'a>, pointer: Handle<Expression>) -> Option<Element> {
        let variable = Self::root(frame.function, pointer)?;
        let is_shared = self.module.global_variables[variable].space == naga::AddressSpace::WorkGroup;
        is_shared.then(|| (variable, self.words(frame, pointer)))
    }

    fn note(&mut self, what: &str, (variable, words): &Element, (_, other): &Element) {
        let name = self.module.global_variables[*variable].name.clone().unwrap_or_default();
        self.found.insert(format!("{name}: {what}: {words}, after {other}"));
    }

    fn read(&mut self, element: &Element, phase: &mut Phase) {
        let before = phase.writes.iter().find(|(variable, words)| *variable == element.0 && *words != element.1);
        if let Some(before) = before.cloned() {
            self.note("read after a write", element, &before);
        }
        phase.reads.insert(element.clone());
    }

    fn write(&mut self, element: &Element, own: &BTreeSet<Element>, phase: &mut Phase) {
        let conflict = |read: &&Element| read.0 == element.0 && read.1 != element.1 && !own.contains(*read);
        if let Some(before) = phase.reads.iter().find(conflict).cloned() {
            self.note("written after a read", element, &before);
        }
        phase.writes.insert(element.clone());
    }

    /// The elements that a value is computed from.
    fn sources(&mut self, frame: &mut Frame<'a>, value: Handle<Expression>) -> BTreeSet<Element> {
        let operands: Vec<Handle<Expression>> = match &frame.function.expressions[value] {
            Expression::Load { pointer } => return self.element(frame, *pointer).into_iter().collect(),
            Expression::Binary { left, right, .. } => vec![*left, *right],
            Expression::Math { arg, arg1, .. } => std::iter::once(*arg).chain(*arg1).collect(),
            _ => Vec::new(),
        };
        operands.into_iter().flat_map(|operand| self.sources(frame, operand)).collect()
    }

    fn block(&mut self, frame: &mut Frame<'a>, block: &Block, phase: &mut Phase) {
        for statement in block.iter() {
            self.statement(frame, statement, phase);
        }
    }

    fn statement(&mut self, frame: &mut Frame<'a>, statement: &Statement, phase: &mut Phase) {
        match statement {
            Statement::Emit(range) => {
                for expression in range.clone() {
                    // What is evaluated again may be another value.
                    frame.words.remove(&expression);
                    let pointer = match &frame.function.expressions[expression] {
                        Expression::Load { pointer } => *pointer,
                        Expression::CooperativeLoad { data, .. } => data.pointer,
                        _ => continue,
                    };
                    if let Some(element) = self.element(frame, pointer) {
                        self.read(&element, phase);
                    }
                }
            }
            Statement::Block(block) => self.block(frame, block, phase),
            Statement::If { accept, reject, .. } => {
                let mut other = phase.clone();
                self.block(frame, accept, phase);
                self.block(frame, reject, &mut other);
                phase.join(other);
            }
            Statement::Switch { cases, .. } => {
                let before = phase.clone();
                for case in cases {
                    let mut of_case = before.clone();
                    self.block(frame, &case.body, &mut of_case);
                    phase.join(of_case);
                }
            }
            Statement::Loop { body, continuing, .. } => {
                let before = phase.clone();
                for _ in 0..2 {
                    self.block(frame, body, phase);
                    self.block(frame, continuing, phase);
                }
                if !has_constant_bound(frame.function, body) {
                    phase.join(before); // it may not run at all
                }
            }
            Statement::ControlBarrier(_) => *phase = Phase::default(),
            Statement::WorkGroupUniformLoad { .. } => *phase = Phase::default(),
            Statement::Store { pointer, value } => {
                if let Some(element) = self.element(frame, *pointer) {
                    let own = self.sources(frame, *value);
                    self.write(&element, &own, phase);
                }
            }
            Statement::CooperativeStore { data, .. } => {
                if let Some(element) = self.element(frame, data.pointer) {
                    self.write(&element, &BTreeSet::new(), phase);
                }
            }
            Statement::Call { function, arguments, .. } => {
                let arguments = arguments.iter().map(|argument| self.words(frame, *argument)).collect();
                let module: &'a Module = self.module;
                let function = &module.functions[*function];
                self.block(&mut Frame { function, arguments, words: HashMap::new() }, &function.body, phase);
            }
            _ => {}
        }
    }
}
