//! A program that runs for one machine: QEMU, or virtiofsd.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Result};
use crate::sys::process;

/// How long a part may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// A running program; it is ended when this is dropped, and by the kernel when this process ends in whatever way.
#[derive(Debug)]
pub struct Part {
    /// What people know it as.
    name: &'static str,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Part {
    /// Starts it. What it says on standard error goes to the file `log`; it inherits the descriptors `keep`, which are
    /// closed here.
    pub fn start(name: &'static str, mut command: Command, keep: Vec<OwnedFd>, log: &Path) -> Result<Part> {
        let to = File::options().create(true).append(true).open(log).at("opening the log", log)?;
        process::tie(&mut command, keep);
        let child = command.stderr(to).spawn().doing(format!("starting {name}"))?;
        Ok(Part { name, child, ended: None, log: log.to_path_buf() })
    }

    /// Its standard output, where that was a pipe; once.
    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end, and for no longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        while self.ended().is_none() && begin.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.ended
    }

    /// Makes it end: waits `patience` for it to do so by itself, then asks, then kills.
    pub fn stop(&mut self, patience: Duration) {
        if self.wait(patience).is_none() {
            process::terminate(self.child.id());
            if self.wait(GRACE).is_none() {
                let _ = self.child.kill();
                self.ended = self.child.wait().ok();
            }
        }
    }

    /// An error that says how it ended and what it said last.
    pub fn failure(&mut self) -> Error {
        let how = match self.ended() {
            Some(status) => format!("{} ended with {status}", self.name),
            None => format!("{} does not answer", self.name),
        };
        let last = last_lines(&self.log);
        let said = if last.is_empty() { String::new() } else { format!(": {last}") };
        Error::Failed(format!("{how}{said}\nall that it said is in {}", self.log.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// The last lines of a log that may be long.
fn last_lines(path: &Path) -> String {
    const END: i64 = 2000;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > END as u64 {
            file.seek(SeekFrom::End(-END))?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join("; ")
}
