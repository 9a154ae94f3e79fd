//! Who computes on the `cpu` device: the vectors that the processor has, and the threads. Owns the threads and how work comes
//! to them: the caller works too and goes on when the last piece is done, and whoever has worked stays awake a moment longer,
//! for an operation of a short text takes less time than waking a thread.

use super::buffers::Shared;
use crate::device::buffer_pool::BufferPool;
use pulp::Arch;
use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism, yield_now};
use std::time::{Duration, Instant};

/// How long a thread looks out for more work before it sleeps: longer than the operations that one thread does alone, no longer
/// than it takes to wake one or two.
const PATIENCE: Duration = Duration::from_micros(100);

/// What a device computes with: vectors, threads, memory. Several threads may call [`Workers::each`]; they take turns. A task
/// must not call it.
#[derive(Debug)]
pub struct Workers {
    pub arch: Arch,
    /// Memory of tensors.
    pub memory: Arc<BufferPool>,
    /// The caller among them.
    pub threads: usize,
    /// Called together when there first is enough to do.
    helpers: OnceLock<Helpers>,
    /// Held by the thread whose job the workers have.
    turn: Mutex<()>,
}

impl Workers {
    /// As many threads as the process may have running.
    pub fn new(arch: Arch) -> Workers {
        Workers {
            arch,
            memory: Arc::default(),
            threads: available_parallelism().map_or(1, usize::from),
            helpers: OnceLock::new(),
            turn: Mutex::new(()),
        }
    }

    /// Calls `task` with every number below `n`, each once and the low ones first, on whichever thread is free; returns when all
    /// are done.
    pub fn each(&self, n: usize, task: impl Fn(usize) + Sync) {
        match n.min(self.threads) {
            0 | 1 => (0..n).for_each(task),
            _ => {
                let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                self.helpers.get_or_init(|| Helpers::new(self.threads - 1)).each(n, &task);
            }
        }
    }

    /// [`Workers::each`] for pieces of `size` numbers of `values`, the last of which may be shorter.
    pub fn each_piece(&self, values: &mut [f32], size: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        let (n, size) = (values.len(), size.max(1));
        let values = Shared::new(values, n, 1, n);
        self.each(n.div_ceil(size), |i| {
            // SAFETY: within the values, and only this call has this i.
            task(i, unsafe { values.row(0, i * size..((i + 1) * size).min(n)) });
        });
    }
}

/// The threads besides the caller's.
#[derive(Debug)]
struct Helpers {
    office: Arc<Office>,
    threads: Vec<JoinHandle<()>>,
}

/// What the caller and its helpers have in common. Each counter has cache lines of its own: helpers stare at one while another is
/// written.
#[derive(Debug, Default)]
struct Office {
    board: Mutex<Board>,
    news: Condvar,
    /// How many jobs there were.
    posted: Padded,
    /// The first piece of the job that nobody has taken.
    next: Padded,
    /// Helpers that are at it.
    helping: Padded,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicUsize);

#[derive(Default)]
struct Board {
    job: Option<Job>,
    /// Helpers that wait for `news`.
    asleep: usize,
    closed: bool,
    /// The message of a piece that panicked.
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Clone, Copy)]
struct Job {
    /// Lives as long as the job is on the board or somebody is at it.
    task: &'static (dyn Fn(usize) + Sync),
    n: usize,
}

impl Helpers {
    /// `n` of them, or as many as the system grants.
    fn new(n: usize) -> Helpers {
        let office = Arc::<Office>::default();
        let spawn = |i: usize| {
            let office = office.clone();
            Builder::new().name(format!("cpu {i}")).spawn(move || office.help()).ok()
        };
        Helpers { threads: (1..=n).map_while(spawn).collect(), office }
    }

    fn each(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        let office = &*self.office;
        // SAFETY: only the lifetime changes. Helpers come by the task through the board alone; it is taken down, and nobody is at
        // it any more, before this function returns, whatever panics.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let job = Job { task, n };
        office.next.0.store(0, Ordering::Relaxed);
        let mut board = office.board();
        board.job = Some(job);
        let asleep = board.asleep;
        office.posted.0.fetch_add(1, Ordering::Release);
        drop(board);
        if asleep > 0 {
            office.news.notify_all();
        }

        let own = catch_unwind(AssertUnwindSafe(|| office.work(job)));
        office.board().job = None;
        while !look_out(|| office.helping.0.load(Ordering::Acquire) == 0) {
            yield_now();
        }
        if let Some(panic) = office.board().panic.take().or(own.err()) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.office.board().closed = true;
        // Who looks out need not do so any longer.
        self.office.posted.0.fetch_add(1, Ordering::Release);
        self.office.news.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("asleep", &self.asleep).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Office {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes pieces until there are none left.
    fn work(&self, job: Job) {
        loop {
            let i = self.next.0.fetch_add(1, Ordering::Relaxed);
            if i >= job.n {
                return;
            }
            (job.task)(i);
        }
    }

    /// A helper's life.
    fn help(&self) {
        let mut seen = 0;
        loop {
            let posted = || self.posted.0.load(Ordering::Acquire);
            look_out(|| posted() != seen);
            let mut board = self.board();
            while posted() == seen && !board.closed {
                board.asleep += 1;
                board = self.news.wait(board).unwrap_or_else(PoisonError::into_inner);
                board.asleep -= 1;
            }
            if board.closed {
                return;
            }
            seen = posted();
            let Some(job) = board.job else { continue }; // too late for it
            self.helping.0.fetch_add(1, Ordering::Relaxed);
            drop(board);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(job))) {
                self.board().panic = Some(panic);
            }
            self.helping.0.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Whether that happened before the patience was gone.
fn look_out(happened: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        for _ in 0..64 {
            if happened() {
                return true;
            }
            spin_loop();
        }
        if begin.elapsed() > PATIENCE {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn helpers_wake_up_again() {
        let workers = of_threads(3);
        for pause in [0, 1, 20, 0, 2] {
            std::thread::sleep(Duration::from_millis(pause));
            // Pieces that wait for one another: it takes three threads to end this.
            let met = std::sync::Barrier::new(3);
            workers.each(3, |_| {
                met.wait();
            });
        }
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
