//! Write once, publish by rename.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A name for a temporary file that no other process or thread of this host uses now.
pub fn temporary_name() -> String {
    format!(".tmp-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Makes `path` hold `bytes`: temporary file beside it, fsync, rename, fsync of the directory. Whoever opens
/// `path` sees either what was there before or all of `bytes`, also after a power cut.
pub fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    publish_with(path, |file| file.write_all(bytes))
}

/// As [`publish`], with the content written by `fill`.
pub fn publish_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
    let temporary = dir.join(temporary_name());
    let result = (|| {
        let mut file = File::create_new(&temporary)?;
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// As [`publish`] without waiting for the disk: for what means nothing after a restart of the machine.
pub fn publish_for_now(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
    let temporary = dir.join(temporary_name());
    let result = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}
