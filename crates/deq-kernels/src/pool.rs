//! Where work is begun that many parallel operations are part of.

/// Runs `work` on a thread of a pool, so that parallel operations within it begin at once.
///
/// From any other thread, each of them is handed over to the pool and waited for: two switches
/// between threads, which cost as much as a small operation. Begin a training or a long evaluation
/// with it. The pool is one of its own, with as many threads as rayon's, so that a thread that
/// waits in it keeps nobody else from rayon's; without the feature `flex`, `work` simply runs.
///
/// ```
/// let sum = deq_kernels::in_pool(|| (1..=4).sum::<usize>());
/// assert_eq!(sum, 10);
/// ```
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[cfg(feature = "flex")]
    if let Some(pool) = pool() {
        return pool.install(work);
    }
    work()
}

/// None if its threads cannot be made.
#[cfg(feature = "flex")]
fn pool() -> Option<&'static rayon::ThreadPool> {
    use std::sync::OnceLock;
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        // As the main thread of a program, which unoptimised code may need.
        let pool = rayon::ThreadPoolBuilder::new().stack_size(8 << 20);
        pool.thread_name(|index| format!("deq-{index}"))
            .build()
            .ok()
    });
    pool.as_ref()
}
