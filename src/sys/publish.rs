//! Write once, publish by rename.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// When this process began to make names, in nanoseconds since 1970: process numbers come again.
static SINCE: LazyLock<u128> =
    LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos());

/// A name for a temporary file that nothing else has, also not what a killed process has left.
pub fn temporary_name() -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(".tmp-{}-{:x}-{number}", std::process::id(), *SINCE)
}

/// Whether a name is a [`temporary_name`] whose process has ended.
pub fn is_abandoned(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(".tmp-") else { return false };
    let mut parts = rest.split('-');
    let Some(pid) = parts.next().and_then(|p| p.parse().ok()) else { return false };
    let since = parts.next().and_then(|s| u128::from_str_radix(s, 16).ok()).unwrap_or(0);
    match super::process::began(pid) {
        None => true,
        // The system's clock of processes goes in steps, and the wall clock may be set.
        Some(began) => began > UNIX_EPOCH + Duration::from_nanos(since as u64) + Duration::from_secs(2),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_abandoned_when_its_process_has_ended() {
        let mine = temporary_name();
        assert!(!is_abandoned(&mine));
        assert_ne!(mine, temporary_name());
        // A process of that number that ended long ago: this one has got its number.
        assert!(is_abandoned(&format!(".tmp-{}-1-0", std::process::id())));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let name = format!(".tmp-{}-{:x}-0", child.id(), *SINCE + 5_000_000_000);
        std::thread::sleep(Duration::from_millis(200));
        assert!(is_abandoned(&name), "ended and not waited for");
        child.wait().unwrap();
        assert!(is_abandoned(&name));
        assert!(!is_abandoned("state.json") && !is_abandoned(".tmp-x"));
    }
}
