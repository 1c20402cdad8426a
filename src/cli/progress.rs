//! Bars for long work, on standard error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::RwLock;

use crate::store::Progress;

/// A bar per part of the work, with rate and time left; nothing where nobody looks.
pub struct Bars {
    shown: bool,
    bar: RwLock<Option<ProgressBar>>,
    files: AtomicU64,
}

impl Bars {
    /// `shown`: whether anybody looks.
    pub fn new(shown: bool) -> Bars {
        Bars { shown, bar: RwLock::new(None), files: AtomicU64::new(0) }
    }

    fn clear(&self) {
        if let Some(bar) = self.bar.write().take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, bytes: Option<u64>) {
        if !self.shown {
            return;
        }
        self.clear();
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
        let template = match bytes {
            Some(_) => "{prefix} [{bar:30}] {bytes}/{total_bytes} {decimal_bytes_per_sec} {eta} left {msg}",
            None => "{prefix} {spinner} {bytes} {decimal_bytes_per_sec} {msg}",
        };
        // A template that does not parse leaves indicatif's own.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what.to_string());
        self.files.store(0, Ordering::Relaxed);
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.bar.write() = Some(bar);
    }

    fn advance(&self, files: u64, bytes: u64) {
        if let Some(bar) = &*self.bar.read() {
            bar.inc(bytes);
            if files > 0 {
                let before = self.files.fetch_add(files, Ordering::Relaxed);
                // A text for each of a million files would cost more than the work.
                if before == 0 || before / 64 != (before + files) / 64 {
                    bar.set_message(format!("{} files", before + files));
                }
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}
