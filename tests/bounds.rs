//! No kernel indexes outside its bindings or its workgroup memory, for all shapes. Released kernels run without the
//! checks that would catch it.

use actscope::device::gpu::{Gpu, mutants};
use actscope::verify::list;

/// Runs the cases of some operations and returns the out-of-bounds indices.
fn left(gpu: &Gpu, operations: &[&str]) -> Vec<(&'static str, Vec<String>)> {
    gpu.start_bounds_check();
    for (_, cases) in list::OPERATIONS.iter().filter(|(op, _)| operations.is_empty() || operations.contains(&op.name()))
    {
        for case in cases() {
            pollster::block_on(case.on(gpu)).unwrap();
        }
    }
    pollster::block_on(gpu.finish_bounds_check()).unwrap()
}

#[test]
fn no_kernel_leaves_its_memory() {
    for gpu in pollster::block_on(Gpu::families()).unwrap() {
        assert_eq!(left(&gpu, &[]), []);
    }
}

#[test]
fn no_tile_leaves_its_memory() {
    for gpu in pollster::block_on(Gpu::with_each_tile()).unwrap() {
        assert_eq!(left(&gpu, &["linear_add", "linear_by_head", "unembed"]), []);
    }
}

/// Tests of the check itself: an index out of bounds in bindings that are written, in one that is read, and in
/// workgroup memory.
#[test]
fn what_leaves_is_named() {
    let expected = [("add", &["a", "b", "y"][..]), ("linear_add", &["x"]), ("linear_add", &["w_tile"])];
    for (mutant, (operation, arrays)) in mutants::OUTSIDE.iter().zip(expected) {
        mutants::inject(Some(mutant));
        let gpu = pollster::block_on(Gpu::open_as(actscope::device::gpu::kernels::Family::Tiles)).unwrap();
        let found = left(&gpu, &[operation]);
        mutants::inject(None);
        let arrays = arrays.iter().map(|array| array.to_string()).collect();
        assert_eq!(found, [(operation.trim_end_matches("_add"), arrays)], "{mutant:?}");
    }
}
