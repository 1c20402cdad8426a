//! The program under test, and commands and closures that may hang, all with a time limit.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Scratch;

/// How long a command of the program may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))
        .is_some_and(|l| l.split_whitespace().nth(1) == Some("0"))
}

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The command line, for messages.
    pub command: String,
    /// The exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Answer {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Panics with all it said unless it ended with `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Answer {
        assert!(
            self.code == Some(code),
            "{}\nended with {:?}, expected {code}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.out(),
            self.err()
        );
        self
    }

    /// Panics unless it succeeded.
    #[track_caller]
    pub fn ok(self) -> Answer {
        self.expect_code(0)
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: no JSON ({e}): {}{}", self.command, self.out(), self.err()))
    }
}

/// Runs a command to its end; kills it and panics when that takes longer than `limit`. Its output goes through
/// threads, so that neither a full pipe nor a grandchild that keeps the pipe open stops the test.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Answer {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let words = words.join(OsStr::new(" ")).to_string_lossy().into_owned();
    // A process group of its own, so that everything it started can be killed with it.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("{words}: {e}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if began.elapsed() < limit => {
                let pause = if began.elapsed() < Duration::from_millis(100) { 1 } else { 10 };
                std::thread::sleep(Duration::from_millis(pause));
            }
            _ => break None,
        }
    };
    if status.is_none() {
        kill_group(&mut child);
    }
    let answer = Answer {
        command: words,
        code: status.and_then(|s| s.code()),
        stdout: collect(&stdout),
        stderr: collect(&stderr),
    };
    assert!(
        status.is_some(),
        "{}\ndid not end within {limit:?} and was killed\nstdout: {}\nstderr: {}",
        answer.command,
        answer.out(),
        answer.err()
    );
    answer
}

fn kill_group(child: &mut Child) {
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
    let began = Instant::now();
    // A process in the kernel's hands may not die at once; the test does not wait for it for ever.
    while matches!(child.try_wait(), Ok(None)) && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let mut piece = vec![0u8; 65536];
            while let Ok(n) = pipe.read(&mut piece) {
                let Some(bytes) = piece.get(..n).filter(|b| !b.is_empty()) else { break };
                if send.send(bytes.to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    receive
}

/// Everything that arrives until the pipe closes, or until nothing has come for a while although the command
/// has ended: then something it left behind still holds the pipe.
fn collect(pieces: &mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    while let Ok(piece) = pieces.recv_timeout(Duration::from_secs(2)) {
        out.extend_from_slice(&piece);
    }
    out
}

/// Runs a shell script with `set -eu` and a time limit of [`LIMIT`].
#[track_caller]
pub fn sh(dir: &Path, script: &str) -> Answer {
    // `-C` of env(1) and not `current_dir`: entering a directory of a dead mount could hang this process.
    run(Command::new("env").arg("-C").arg(dir).args(["sh", "-euc", script]), LIMIT)
}

/// Does something that may hang, in a thread; panics when it takes longer than `limit`. The thread stays
/// behind then, since nothing can end it.
#[track_caller]
pub fn within<T: Send + 'static>(limit: Duration, what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let _ = send.send(act());
    });
    match receive.recv_timeout(limit) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: still not done after {limit:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(cause) => std::panic::resume_unwind(cause),
            Ok(()) => unreachable!("the worker ended without an answer"),
        },
    }
}

/// The program, with a scratch directory's store.
#[derive(Clone, Debug)]
pub struct Program {
    exe: PathBuf,
    store: PathBuf,
    env: Vec<(String, String)>,
}

impl Program {
    /// Where its store is.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// With the store of `scratch`.
    pub fn new(scratch: &Scratch) -> Program {
        // The daemons inherit it: by it they are found, whatever stands in their arguments.
        let mark = ("REROOT_TEST_SCRATCH".to_string(), scratch.path().display().to_string());
        Program { exe: env!("CARGO_BIN_EXE_reroot").into(), store: scratch.store(), env: vec![mark] }
    }

    /// Another build of the program, whose name begins with the program's.
    pub fn with_exe(mut self, exe: impl Into<PathBuf>) -> Program {
        self.exe = exe.into();
        self
    }

    /// With another variable in its environment.
    pub fn with_env(mut self, name: &str, value: &str) -> Program {
        self.env.push((name.into(), value.into()));
        self
    }

    /// A command of the program that has not been started.
    pub fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(&self.exe);
        command.arg("--store").arg(&self.store).args(args).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs it to its end, whatever that is.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Answer {
        run(&mut self.command(args), LIMIT)
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: &[A]) -> Answer {
        self.run(args).ok()
    }

    /// Runs it with `--json`; it must succeed.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, args: &[A]) -> Value {
        let mut all = vec![OsStr::new("--json")];
        all.extend(args.iter().map(AsRef::as_ref));
        self.run(&all).ok().json()
    }

    /// The report of one desktop's swap: `upgrade` or `rollback` with `--json`.
    #[track_caller]
    pub fn swap<A: AsRef<OsStr>>(&self, args: &[A]) -> Value {
        match self.json(args) {
            Value::Array(mut list) if list.len() == 1 => list.remove(0),
            one => one,
        }
    }

    /// Mounts a desktop; it is unmounted when the guard goes.
    #[track_caller]
    pub fn mount(&self, desktop: &str, at: impl AsRef<Path>) -> Mount {
        self.mount_with(desktop, at, "")
    }

    /// As [`Program::mount`], with `-o` options where the list is not empty.
    #[track_caller]
    pub fn mount_with(&self, desktop: &str, at: impl AsRef<Path>, options: &str) -> Mount {
        let at = at.as_ref();
        let mut args = vec![OsStr::new("mount"), OsStr::new(desktop), at.as_os_str()];
        if !options.is_empty() {
            args.extend([OsStr::new("-o"), OsStr::new(options)]);
        }
        self.ok(&args);
        Mount { program: self.clone(), point: at.to_path_buf(), armed: true }
    }

    /// Unmounts; that must succeed. A mount may be in use a moment longer than the test uses it: a command that
    /// another thread starts has copies of this process's descriptors until it becomes its own program.
    #[track_caller]
    pub fn umount(&self, point: &Path) {
        let began = Instant::now();
        loop {
            let answer = self.run(&[OsStr::new("umount"), point.as_os_str()]);
            let busy = answer.code == Some(1) && answer.err().contains("is in use");
            if !busy || began.elapsed() > Duration::from_secs(60) {
                answer.ok();
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Mounts a version read-only as plain files.
    #[track_caller]
    pub fn inspect(&self, version: &str, at: impl AsRef<Path>) -> Mount {
        let at = at.as_ref();
        self.ok(&[OsStr::new("inspect"), OsStr::new(version), at.as_os_str()]);
        Mount { program: self.clone(), point: at.to_path_buf(), armed: true }
    }
}

/// A mount that ends with this guard.
#[derive(Debug)]
pub struct Mount {
    program: Program,
    point: PathBuf,
    armed: bool,
}

impl Mount {
    /// Where it is attached.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// A path in the view.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point.join(name)
    }

    /// Runs a shell script in the view; it must succeed. Gives back what it wrote, without the last newline.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        sh(&self.point, script).ok().out().trim_end_matches('\n').to_string()
    }

    /// Unmounts now; that must succeed.
    #[track_caller]
    pub fn umount(mut self) {
        self.armed = false;
        self.program.umount(&self.point);
    }

    /// Leaves it mounted: the test ends it in another way, or its scratch directory does.
    pub fn forget(mut self) {
        self.armed = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if std::thread::panicking() {
            // The test has failed already; its scratch directory detaches the mount whatever happens here.
            let command = self.program.command(&[OsStr::new("umount"), self.point.as_os_str()]);
            let _ = Command::new("timeout")
                .args(["-k", "5", "20"])
                .arg(command.get_program())
                .args(command.get_args())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        } else {
            self.program.umount(&self.point);
        }
    }
}
