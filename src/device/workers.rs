//! Worker threads: those of the `cpu` device, and those with which `gpu` copies readbacks. Owns the threads, and the protocol that
//! hands them work: an operation is a job of many pieces. Each thread has a range of them, which it takes one by one from the front,
//! so that it reads memory in order. A thread whose range is empty takes pieces from the back of the others' ranges, so that cores
//! of different speed end at the same time. The caller returns when the last piece is done. A worker without work spins for a moment
//! before it sleeps, because an operation of a short text takes less time than waking a thread.
//!
//! loom tests the protocol; CONTRIBUTING.md has the command. Its cfg is `loom_workers` and not `loom`, because with `loom` some
//! of our dependencies would not compile.

use crate::device::host_pool::HostPool;
use pulp::Arch;
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{OnceLock, PoisonError};
use std::thread::available_parallelism;
use sync::{Arc, AtomicU64, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, MutexGuard, Ordering, yield_now};

/// The primitives of the protocol: the standard library's, or loom's when loom tests the protocol.
mod sync {
    #[cfg(all(test, loom_workers))]
    pub(super) use loom::{
        sync::atomic::{AtomicU64, AtomicUsize, Ordering},
        sync::{Arc, Condvar, Mutex, MutexGuard},
        thread::{Builder, JoinHandle, yield_now},
    };
    #[cfg(not(all(test, loom_workers)))]
    pub(super) use std::{
        sync::atomic::{AtomicU64, AtomicUsize, Ordering},
        sync::{Arc, Condvar, Mutex, MutexGuard},
        thread::{Builder, JoinHandle, yield_now},
    };
}

/// What the device computes with: vectors, threads and memory. Several threads may call [`Workers::each`], and take turns. A
/// task must not call it.
#[derive(Debug)]
pub(crate) struct Workers {
    pub arch: Arch,
    /// The memory of tensors.
    pub memory: std::sync::Arc<HostPool>,
    /// The number of threads that compute, including the caller.
    pub threads: usize,
    /// Started by the first job of more than one piece.
    pool: OnceLock<WorkerPool>,
    /// Held by the thread whose job runs.
    turn: std::sync::Mutex<()>,
}

impl Workers {
    /// As many threads as the process may run at a time.
    pub(crate) fn new(arch: Arch) -> Workers {
        Workers {
            arch,
            memory: std::sync::Arc::default(),
            threads: available_parallelism().map_or(1, usize::from),
            pool: OnceLock::new(),
            turn: std::sync::Mutex::new(()),
        }
    }

    /// Calls `task` once with every number below `n`, on all threads, and returns when all calls have returned. A thread mostly
    /// gets numbers that follow one another.
    pub(crate) fn each(&self, n: usize, task: impl Fn(usize) + Sync) {
        match n.min(self.threads) {
            0 | 1 => (0..n).for_each(task),
            _ => {
                let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                self.pool.get_or_init(|| WorkerPool::new(self.threads - 1)).each(n, &task);
            }
        }
    }

    /// [`Workers::each`] for pieces of `size` elements of `values`. The last piece may be shorter.
    pub(crate) fn each_piece(&self, values: &mut [f32], size: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        // Each piece is locked once, by the one call that has its number.
        let pieces: Vec<_> = values.chunks_mut(size.max(1)).map(std::sync::Mutex::new).collect();
        self.each(pieces.len(), |i| task(i, &mut pieces[i].lock().unwrap_or_else(PoisonError::into_inner)));
    }
}

/// The worker threads: all threads that compute, without the caller.
#[derive(Debug)]
struct WorkerPool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the caller and the workers share. Each counter has cache lines of its own, because workers spin on one counter while
/// other threads write another.
#[derive(Debug)]
struct Shared {
    slot: Mutex<JobSlot>,
    /// Wakes sleeping workers when a job is posted or the pool is closed.
    wake: Condvar,
    /// The number of jobs posted so far, and one more once the pool is closed.
    posted: Padded,
    /// The pieces of the current job that no thread has taken: the range of the caller, and that of each worker.
    ranges: Vec<PieceRange>,
    /// The number of workers that are working on the current job.
    active: Padded,
}

#[derive(Debug)]
#[repr(align(128))]
struct Padded(AtomicUsize);

/// A range of pieces. The lower half of the number is its begin, the upper half its end.
#[derive(Debug)]
#[repr(align(128))]
struct PieceRange(AtomicU64);

impl PieceRange {
    fn set(&self, range: Range<u32>) {
        self.0.store(u64::from(range.end) << 32 | u64::from(range.start), Ordering::Relaxed);
    }

    /// Takes the first piece, or the last one.
    fn take(&self, from_back: bool) -> Option<u32> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let (begin, end) = (seen as u32, (seen >> 32) as u32);
            if begin == end {
                return None;
            }
            let left = if from_back { seen - (1 << 32) } else { seen + 1 };
            match self.0.compare_exchange_weak(seen, left, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(if from_back { end - 1 } else { begin }),
                Err(now) => seen = now,
            }
        }
    }
}

struct JobSlot {
    job: Option<Job>,
    /// The number of workers that wait for `wake`.
    sleeping: usize,
    closed: bool,
    /// The payload of a piece that panicked.
    panic: Option<Box<dyn Any + Send>>,
}

impl std::fmt::Debug for JobSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobSlot")
            .field("sleeping", &self.sleeping)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
struct Job {
    /// Valid while the job is in the slot or a worker is active.
    task: &'static (dyn Fn(usize) + Sync),
}

impl WorkerPool {
    /// Starts `n` workers, or fewer if the system refuses more threads.
    fn new(n: usize) -> WorkerPool {
        let shared = Arc::new(Shared::new(1 + n));
        let spawn = |i: usize| {
            let shared = shared.clone();
            Builder::new().name(format!("cpu {i}")).spawn(move || shared.run_worker(i)).ok()
        };
        WorkerPool { threads: (1..=n).map_while(spawn).collect(), shared }
    }

    /// [`Workers::each`], for one caller at a time.
    fn each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Workers reach the task through the slot alone. Before this function returns, even
        // when a piece panics, the job is out of the slot and no worker is active.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Job { task };
        let threads = shared.ranges.len();
        let until = |i: usize| u32::try_from(n * i / threads).expect("a job has less than 2^32 pieces");
        for (i, range) in shared.ranges.iter().enumerate() {
            range.set(until(i)..until(i + 1));
        }
        let mut slot = shared.lock();
        slot.job = Some(job);
        let sleeping = slot.sleeping;
        shared.posted.0.fetch_add(1, Ordering::Release);
        drop(slot);
        if sleeping > 0 {
            shared.wake.notify_all();
        }

        let own = catch_unwind(AssertUnwindSafe(|| shared.take_pieces(0, job)));
        shared.lock().job = None;
        while !spin_until(|| shared.active.0.load(Ordering::Acquire) == 0) {
            yield_now();
        }
        if let Some(panic) = shared.lock().panic.take().or(own.err()) {
            resume_unwind(panic);
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        // Workers that spin look at `closed` once this number has changed.
        self.shared.posted.0.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// For `threads` threads, the caller included.
    fn new(threads: usize) -> Shared {
        let counter = || Padded(AtomicUsize::new(0));
        Shared {
            slot: Mutex::new(JobSlot { job: None, sleeping: 0, closed: false, panic: None }),
            wake: Condvar::new(),
            posted: counter(),
            ranges: (0..threads).map(|_| PieceRange(AtomicU64::new(0))).collect(),
            active: counter(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, JobSlot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes pieces until none are left: those of the thread's own range, then those of the ranges after it.
    fn take_pieces(&self, thread: usize, job: Job) {
        let (before, from_own) = self.ranges.split_at(thread);
        for (i, range) in from_own.iter().chain(before).enumerate() {
            while let Some(piece) = range.take(i > 0) {
                (job.task)(piece as usize);
            }
        }
    }

    /// The loop of worker `thread`: waits for a job, works on it, until the pool is closed.
    fn run_worker(&self, thread: usize) {
        let mut seen = 0;
        loop {
            let posted = || self.posted.0.load(Ordering::Acquire);
            spin_until(|| posted() != seen);
            let mut slot = self.lock();
            while posted() == seen && !slot.closed {
                slot.sleeping += 1;
                slot = self.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
                slot.sleeping -= 1;
            }
            if slot.closed {
                return;
            }
            seen = posted();
            // The caller may have finished the job and taken it out of the slot.
            let Some(job) = slot.job else { continue };
            self.active.0.fetch_add(1, Ordering::Relaxed);
            drop(slot);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_pieces(thread, job))) {
                self.lock().panic = Some(panic);
            }
            self.active.0.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Spins until `happened()` is true, or until the spin limit. Returns true if it happened. The limit is longer than the
/// operations that run on one thread, so that workers still spin after one of them, and about the time that it takes to wake
/// one or two threads.
#[cfg(not(all(test, loom_workers)))]
fn spin_until(happened: impl Fn() -> bool) -> bool {
    const SPIN_LIMIT: std::time::Duration = std::time::Duration::from_micros(100);
    // Never called on wasm32, which has one thread and no clock.
    let begin = std::time::Instant::now();
    loop {
        for _ in 0..64 {
            if happened() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() > SPIN_LIMIT {
            return false;
        }
    }
}

/// Looks once, because loom explores every interleaving.
#[cfg(all(test, loom_workers))]
fn spin_until(happened: impl Fn() -> bool) -> bool {
    happened()
}

#[cfg(all(test, loom_workers))]
mod model {
    use super::*;

    /// In every interleaving of a caller and a worker (with at most three preemptions), each piece of two jobs is done once and
    /// before `each` returns, and the worker ends when the pool is dropped. This test was seen to fail
    /// with a worker that counts itself as active only after it has released the slot.
    #[test]
    fn every_piece_is_done_once_and_before_the_end() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let pool = WorkerPool::new(1);
            for _ in 0..2 {
                let done = [AtomicUsize::new(0), AtomicUsize::new(0)];
                pool.each(2, &|i| {
                    done[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
            }
        });
    }
}

#[cfg(all(test, not(loom_workers)))]
mod tests {
    use super::*;
    use std::time::Duration;

    fn of_threads(threads: usize) -> Workers {
        Workers { threads, ..Workers::new(Arch::new()) }
    }

    #[test]
    fn every_piece_is_done_once_and_before_the_end() {
        for threads in [1, 2, 3, 8] {
            let workers = of_threads(threads);
            for n in (0..40).chain([1000]).cycle().take(2000) {
                let done: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                workers.each(n, |i| {
                    done[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "{n} pieces, {threads} threads");
            }
            let done = AtomicUsize::new(0);
            workers.each(8, |i| {
                std::thread::sleep(Duration::from_millis(i as u64));
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 8, "slow pieces, {threads} threads");
            let mut values = vec![0.0; 1000];
            workers.each_piece(&mut values, 7, |i, piece| piece.iter_mut().for_each(|v| *v += i as f32));
            assert!(values.iter().enumerate().all(|(i, v)| *v == (i / 7) as f32));
        }
    }

    #[test]
    fn workers_wake_up_again() {
        let workers = of_threads(3);
        for pause in [0, 1, 20, 0, 2] {
            std::thread::sleep(Duration::from_millis(pause));
            // The pieces wait for one another, so this only ends if three threads run them.
            let met = std::sync::Barrier::new(3);
            workers.each(3, |_| {
                met.wait();
            });
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let workers = of_threads(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let sum = AtomicUsize::new(0);
                        workers.each(9, |i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 36);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_comes_out_where_the_work_was_given() {
        let workers = of_threads(3);
        for bad in 0..9 {
            let outcome = catch_unwind(AssertUnwindSafe(|| workers.each(9, |i| assert!(i != bad, "piece {i}"))));
            let message = outcome.expect_err("a piece panicked");
            assert_eq!(*message.downcast::<String>().expect("a message"), format!("piece {bad}"));
        }
        let sum = AtomicUsize::new(0);
        workers.each(9, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 36);
    }
}
