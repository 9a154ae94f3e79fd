//! Every operation of the device trait on the cases of `src/verify/list.rs`, awkward shapes and hostile values with their
//! tolerances: `cpu` and `gpu` against `reference`. A new operation or kernel variant gets its cases there. Here is one test
//! an operation, so that what fails is named, and what no single operation shows.

use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::reference::Reference;
use actscope::device::{Change, Device, OpKind, Operations, Window};
use actscope::verify::cases::Host;
use actscope::verify::kernels::Suite;
use actscope::verify::list;
use std::collections::BTreeSet;

fn gpus() -> Vec<Gpu> {
    pollster::block_on(Gpu::families()).expect("a GPU adapter, llvmpipe at least")
}

fn check<D: Device>(dev: &D, suite: &Suite) {
    let rows = pollster::block_on(suite.check(&[dev], &|_, _, _| {})).unwrap();
    let run: Vec<_> = rows.iter().filter(|row| row.cases > 0).collect();
    assert!(!run.is_empty(), "no cases");
    for row in run {
        let (device, of) = (dev.info(), &row.kernel);
        assert!(
            row.ok(),
            "{device}, {of}: {} of {} cases are off, worst {}: {:?}",
            row.failed,
            row.cases,
            row.worst,
            row.off
        );
    }
}

fn hold(op: &str) {
    let suite = Suite::of(*OpKind::ALL.iter().find(|kind| kind.name() == op).expect("an operation"));
    Cpu::all().iter().for_each(|cpu| check(cpu, &suite));
    gpus().iter().for_each(|gpu| check(gpu, &suite));
}

macro_rules! operations {
    ($($op:ident)*) => {
        $(#[test] fn $op() { hold(stringify!($op)); })*

        /// Nothing is left out.
        #[test]
        fn every_operation_has_a_test() {
            assert_eq!(list::OPERATIONS.iter().map(|(op, _)| op.name()).collect::<BTreeSet<_>>(), BTreeSet::from([$(stringify!($op)),*]));
        }
    };
}

operations! {
    embed layer_norm layer_norm_scale layer_norm_normalize gain_bias linear linear_by_head sum_heads attention attention_scores
    attention_pattern attention_mix activation add unembed edit linear_activation linear_add
    gather_rows
}

/// Whatever tile configuration is the fastest on somebody's GPU, it is right. The one with matrices is among them where the
/// adapter has those in f32.
#[test]
fn products_are_right_in_every_tile() {
    for op in [OpKind::Linear, OpKind::Unembed] {
        let suite = Suite::of(op);
        pollster::block_on(Gpu::with_each_tile()).unwrap().iter().for_each(|gpu| check(gpu, &suite));
    }
}

/// A copy is of the moment at which it was recorded, whatever happens to the tensor afterwards.
#[test]
fn copies_are_of_their_moment() {
    fn check<D: Device>(dev: &D) {
        let all = Window::all([2, 3]);
        let x = Host { rows: 2, cols: 3, values: vec![1.0; 6] }.on(dev);
        let before = dev.copy_out(&x, &all);
        let zero = dev.edit(&x, all.clone(), Change::Zero);
        let after = dev.copy_out(&zero, &all);
        let unchanged = dev.copy_out(&x, &all);
        drop((x, zero));
        // Its memory may be given to the next tensor before anything has run.
        let _other = Host { rows: 2, cols: 3, values: vec![9.0; 6] }.on(dev);
        dev.submit();
        assert_eq!(pollster::block_on(dev.read(before)).unwrap(), [1.0; 6]);
        assert_eq!(pollster::block_on(dev.read(after)).unwrap(), [0.0; 6]);
        assert_eq!(pollster::block_on(dev.read(unchanged)).unwrap(), [1.0; 6], "no operation changes a tensor");
    }
    check(&Reference::default());
    check(&Cpu::new());
    gpus().iter().for_each(check);
}
