//! Another process that does what it is told, line by line. It has one thread and starts nothing, so that what it
//! closes is closed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::fs::{FlockOperation, fcntl_lock, flock};

use crate::sys;

const MARK: &str = "REROOT_TEST_AGENT";

/// A process to talk to. It ends when this goes.
pub struct Agent {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Agent {
    /// Starts one.
    pub fn start() -> Agent {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::obeys", "--nocapture", "--test-threads=1"])
            .env(MARK, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Agent { child, orders, answers }
    }

    /// Gives an order; the answer.
    pub fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            let n = self.answers.read_line(&mut line).unwrap();
            assert!(n > 0, "the agent ended at {order:?}");
            // What the test harness writes may stand before it on the line.
            if let Some(at) = line.find("=> ") {
                return line[at + 3..].trim_end().to_string();
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side. Orders: `open NAME PATH`, `close NAME`, `flock|posix|ofd NAME sh|ex|un`,
/// `append PATH COUNT TEXT`.
#[test]
fn obeys() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let mut files: HashMap<String, File> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let result = match words[..] {
            ["open", name, path] => OpenOptions::new().read(true).write(true).open(path).map(|file| {
                files.insert(name.into(), file);
            }),
            ["close", name] => {
                drop(files.remove(name).unwrap());
                Ok(())
            }
            ["append", path, count, text] => append(Path::new(path), count.parse().unwrap(), text),
            [kind, name, how] => lock(kind, &files[name], how),
            _ => panic!("no such order: {line}"),
        };
        println!(
            "=> {}",
            result.map_or_else(|e| format!("errno {}", e.raw_os_error().unwrap_or(0)), |()| "ok".into())
        );
    }
}

fn lock(kind: &str, file: &File, how: &str) -> std::io::Result<()> {
    let (operation, raw) = match how {
        "sh" => (FlockOperation::NonBlockingLockShared, libc::F_RDLCK),
        "ex" => (FlockOperation::NonBlockingLockExclusive, libc::F_WRLCK),
        _ => (FlockOperation::NonBlockingUnlock, libc::F_UNLCK),
    };
    match kind {
        "flock" => Ok(flock(file, operation)?),
        "posix" => Ok(fcntl_lock(file, operation)?),
        "ofd" => sys::ofd_lock(file, libc::F_OFD_SETLK, raw, 0, 0).map(drop),
        _ => panic!("no such lock: {kind}"),
    }
}

/// Each record is one `write(2)`.
fn append(path: &Path, count: usize, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    for i in 0..count {
        file.write_all(format!("{text} {i}\n").as_bytes())?;
    }
    Ok(())
}
