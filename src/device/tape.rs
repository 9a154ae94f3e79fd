//! A device that wraps another device and records the operations whose derivatives a gradient needs. Owns the choice of what
//! is recorded: an operation only if one of its tensors depends on a watched value, and of its tensors only those that its
//! derivative reads. [`Tape::backward`] then goes from the last operation to the first, computes the gradients, and frees
//! each operation after its gradients. The wrapped device computes all values and gradients.
//! Read next: `derivative.rs`, then `../model/backward.rs`, which drives it.

use super::derivative::{Done, Gradient, Reads};
use super::host_pool::HostPool;
use super::{
    Device, DeviceError, DeviceInfo, Heads, Op, Operands, Operations, Queries, StoredWeight, TensorLimits, Window,
};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The device. It has no cache of keys and values, so it runs whole texts only.
#[derive(Debug)]
pub(crate) struct Tape<'a, D: Device> {
    device: &'a D,
    nodes: Mutex<Vec<Node<D>>>,
}

/// A value, and the index of the node that made it. `None` if the value depends on no watched value.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<T> {
    value: T,
    node: Option<usize>,
}

/// A node of the tape: a watched value, or the result of an operation.
struct Node<D: Device> {
    shape: [usize; 2],
    /// The operation; `None` for a watched value that no recorded operation made.
    made: Option<Made<D>>,
}

struct Made<D: Device> {
    op: Op,
    /// The node of each tensor of its operands.
    from: Vec<Option<usize>>,
    /// Those of the tensors that its derivative reads.
    tensors: Vec<D::Tensor>,
    weights: Vec<D::Weight>,
    result: Option<D::Tensor>,
}

impl<D: Device> std::fmt::Debug for Node<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("op", &self.made.as_ref().map(|made| &made.op)).finish_non_exhaustive()
    }
}

impl<'a, D: Device> Tape<'a, D> {
    pub(crate) fn new(device: &'a D) -> Tape<'a, D> {
        Tape { device, nodes: Mutex::default() }
    }

    /// A value of the wrapped device.
    #[cfg(test)]
    pub(crate) fn given(&self, value: D::Tensor) -> Tensor<D::Tensor> {
        Tensor { value, node: None }
    }

    /// Puts a value on the tape, so that its gradient will be computed. Returns the index of its node.
    pub(crate) fn watch(&self, x: &mut Tensor<D::Tensor>) -> usize {
        *x.node.get_or_insert_with(|| self.push(Node { shape: self.device.shape(&x.value), made: None }))
    }

    /// The number of nodes.
    pub(crate) fn len(&self) -> usize {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn push(&self, node: Node<D>) -> usize {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.push(node);
        nodes.len() - 1
    }

    /// Ends the recording.
    pub(crate) fn backward(self) -> Backward<'a, D> {
        let nodes = self.nodes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let gradients = nodes.iter().map(|_| Vec::new()).collect();
        Backward { device: self.device, nodes, gradients }
    }
}

/// The backward pass over a tape.
pub(crate) struct Backward<'a, D: Device> {
    device: &'a D,
    nodes: Vec<Node<D>>,
    gradients: Vec<Vec<Gradient<D::Tensor>>>,
}

impl<D: Device> Backward<'_, D> {
    /// Adds to the gradient with respect to the value of a node: one row of `values` for each of these rows of the value.
    pub(crate) fn seed(&mut self, node: usize, rows: Vec<Range<usize>>, values: D::Tensor) {
        self.gradients[node].push(Gradient { rows, values });
    }

    /// Takes the last node off the tape, and adds what follows from its gradient to the gradients with respect to its operands.
    /// `None` when the tape is empty.
    pub(crate) fn step(&mut self) -> Option<BackwardStep<D::Tensor>> {
        let (dev, Node { shape, made }) = (self.device, self.nodes.pop()?);
        let (node, n_rows) = (self.nodes.len(), shape[0]);
        let gradient = Gradient::sum(dev, self.gradients.pop().unwrap_or_default());
        if let (Some(gradient), Some(made)) = (&gradient, &made) {
            self.differentiate(made, gradient, n_rows);
        }
        Some(BackwardStep { node, shape, gradient })
    }

    fn differentiate(&mut self, made: &Made<D>, gradient: &Gradient<D::Tensor>, n_rows: usize) {
        let (dev, by_row) = (self.device, made.op.is_row_wise());
        // For a row-wise operation, the rows that have a gradient are enough.
        let dy = if by_row { gradient.clone() } else { gradient.by(dev, &[0..n_rows]) };
        let same_rows = |x: &D::Tensor| {
            if dy.is_all(n_rows) {
                x.clone()
            } else {
                dev.gather_rows(&[x], dy.rows.iter().map(|rows| (0, rows.clone())).collect())
            }
        };
        let (tensors, result): (Vec<D::Tensor>, _) =
            (made.tensors.iter().map(same_rows).collect(), made.result.as_ref().map(same_rows));
        let done =
            Done { op: &made.op, tensors: &tensors, weights: &made.weights, result: result.as_ref(), dy: &dy.values };
        for (operand, mut by) in done.gradients(dev) {
            if let Some(from) = made.from[operand] {
                if by_row {
                    by.rows = dy.rows.clone();
                }
                self.gradients[from].push(by);
            }
        }
    }

    /// A gradient with respect to all rows of a value of this shape, with zeros in the rows that it has none for.
    pub(crate) fn whole(&self, gradient: Option<Gradient<D::Tensor>>, [rows, cols]: [usize; 2]) -> D::Tensor {
        match gradient {
            Some(gradient) => gradient.by(self.device, &[0..rows]).values,
            None => self.device.upload([rows, cols], self.device.host_memory().zeros(rows * cols)),
        }
    }
}

/// One step of the backward pass.
pub(crate) struct BackwardStep<T> {
    /// The index of the node.
    pub(crate) node: usize,
    /// Its shape.
    pub(crate) shape: [usize; 2],
    /// The gradient with respect to it, if there is one.
    pub(crate) gradient: Option<Gradient<T>>,
}

impl<D: Device> Device for Tape<'_, D> {
    type Tensor = Tensor<D::Tensor>;
    type Weight = D::Weight;
    type Cache = Infallible;
    type Staged = D::Staged;

    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn tensor_limits(&self) -> TensorLimits {
        self.device.tensor_limits()
    }

    fn logit_rows_per_pass(&self) -> usize {
        self.device.logit_rows_per_pass()
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        self.device.host_memory()
    }

    fn load(&self, weight: &StoredWeight) -> Result<D::Weight, DeviceError> {
        self.device.load(weight)
    }

    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> Self::Tensor {
        Tensor { value: self.device.upload(shape, values), node: None }
    }

    fn shape(&self, x: &Self::Tensor) -> [usize; 2] {
        self.device.shape(&x.value)
    }

    fn run(&self, op: &Op, operands: Operands<'_, Self>) -> Self::Tensor {
        let Operands { tensors, weights, .. } = operands;
        let from: Vec<Option<usize>> = tensors.iter().map(|x| x.node).collect();
        let recorded = from.iter().any(Option::is_some);
        // A fused product runs in steps, because its derivative needs the result of the product, which the fused kernel does
        // not store.
        match op {
            Op::LinearActivation { f } if recorded => {
                return self.activation(&self.linear(tensors[0], weights[0], weights[1]), *f);
            }
            Op::LinearOfNorm { eps, f } if recorded => {
                let normed = self.layer_norm(tensors[0], weights[0], weights[1], *eps);
                let y = self.linear(&normed, weights[2], weights[3]);
                return f.map_or_else(|| y.clone(), |f| self.activation(&y, f));
            }
            _ => {}
        }
        let values: Vec<&D::Tensor> = tensors.iter().map(|x| &x.value).collect();
        let value = self.device.run(op, Operands::new(&values, weights));
        let node = recorded.then(|| {
            let Reads { tensors, result } = op.derivative_reads();
            let made = Made {
                op: op.clone(),
                from,
                tensors: tensors.iter().map(|i| values[*i].clone()).collect(),
                weights: weights.iter().map(|w| (*w).clone()).collect(),
                result: result.then(|| value.clone()),
            };
            self.push(Node { shape: self.device.shape(&value), made: Some(made) })
        });
        Tensor { value, node }
    }

    fn new_cache(&self, _: &[usize], _: usize, _: Heads) -> Infallible {
        unreachable!("gradients are those of whole runs")
    }

    fn append(&self, cache: &mut Infallible, _: &Self::Tensor, _: &[Queries]) {
        match *cache {}
    }

    fn copy_out(&self, x: &Self::Tensor, window: &Window) -> D::Staged {
        self.device.copy_out(&x.value, window)
    }

    fn submit(&self) {
        self.device.submit();
    }

    fn submit_if_enough(&self) -> bool {
        self.device.submit_if_enough()
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        self.device.settle(running).await
    }

    async fn read(&self, staged: D::Staged) -> Result<Vec<f32>, DeviceError> {
        self.device.read(staged).await
    }
}
