//! The reference with every result rounded to f32: what single precision costs where nothing else goes wrong. It is the
//! yardstick that `verify` has for models whose error in PyTorch nobody has measured. Owns no arithmetic.

use super::reference::{Reference, Tensor};
use super::{Device, DeviceError, DeviceInfo, Edit, Limits, Op, StoredWeight, Window};

/// The device.
pub struct Rounded;

impl Rounded {
    fn make(&self, op: &Op, x: &[&Tensor], w: &[&Tensor]) -> Tensor {
        let mut y = op.make(&Reference, x, w);
        self.round(&mut y);
        y
    }

    fn change(&self, op: &Op, x: &[&Tensor], y: &mut Tensor) {
        op.change(&Reference, x, y);
        self.round(y);
    }

    fn round(&self, y: &mut Tensor) {
        let [rows, cols] = Reference.shape(y);
        let all = Window { rows: vec![0..rows], cols: 0..cols };
        let rounded = Reference.copy_out(y, &all);
        Reference.edit(y, &all, &Edit::Replace(rounded));
    }
}

impl Device for Rounded {
    type Tensor = Tensor;
    type Weight = Tensor;
    type Staged = Vec<f32>;

    crate::wrap_device!();

    fn info(&self) -> DeviceInfo {
        DeviceInfo { detail: "f64, every result rounded to f32".into(), ..Reference.info() }
    }

    fn limits(&self) -> Limits {
        Reference.limits()
    }

    fn load(&self, weight: &StoredWeight) -> Result<Tensor, DeviceError> {
        Reference.load(weight)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        Reference.shape(x)
    }

    fn empty(&self, rows: usize, cols: usize) -> Tensor {
        Reference.empty(rows, cols)
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Vec<f32> {
        Reference.copy_out(x, window)
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
