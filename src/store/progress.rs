//! What long work says of itself while it runs.

/// Told of work as it proceeds; called from many threads.
pub trait Progress: Sync {
    /// A new part of the work begins; `bytes` is its size where it is known.
    fn begin(&self, what: &str, bytes: Option<u64>);
    /// So many more files and bytes are done.
    fn advance(&self, files: u64, bytes: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64, _: u64) {}
}
