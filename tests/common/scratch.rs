//! A directory for one test.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory on a real file system, with a store in it. When it goes, what is mounted beneath it is unmounted, the
/// daemons of its store are ended, and it is removed.
///
/// ```text
/// SCRATCH/store   the store          SCRATCH/mnt   an empty directory to mount on
/// ```
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one beneath `$TMPDIR`, else `/var/tmp`: `/tmp` is often a tmpfs, which is another file system than
    /// the promises are about.
    pub fn new() -> Scratch {
        let top = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let top = top.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", top.display()));
        // Short, since sockets lie beneath it and their paths hold 107 bytes.
        let name = format!("rr{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Scratch::at(top.join(name))
    }

    /// Makes one in a directory of the caller's, for instance on a [`super::Disk`].
    pub fn at(path: PathBuf) -> Scratch {
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        fs::create_dir(path.join("mnt")).unwrap();
        Scratch { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// The store that [`super::Program`] uses.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where tests mount if they mount only once.
    pub fn mnt(&self) -> PathBuf {
        self.path.join("mnt")
    }

    /// Ends the daemons of this store as a power cut does, with their supervisors, and waits until they are gone. How many
    /// daemons there were.
    pub fn kill_daemons(&self) -> usize {
        let mut killed = 0;
        let began = Instant::now();
        // A supervisor may have been starting another one meanwhile.
        loop {
            let found = daemons(&self.path);
            // Supervisors first, so that nobody starts a daemon in the place of one that was killed.
            let parents: Vec<u32> = found.iter().filter_map(|pid| parent(*pid)).collect();
            let (above, below): (Vec<u32>, Vec<u32>) = found.iter().partition(|pid| parents.contains(pid));
            for pid in above.iter().chain(&below) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
            }
            killed += below.len();
            // A process on its way out has no program any more, and still its files and locks.
            while found.iter().any(|pid| !is_dead(*pid)) && began.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if found.is_empty() || began.elapsed() >= Duration::from_secs(30) {
                return killed;
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Lazily, without helpers, and first: a path lookup through a dead mount could hang, detaching by name cannot.
        for point in mounts_beneath(&self.path).into_iter().rev() {
            let _ = Command::new("timeout")
                .args(["20", "umount", "-i", "-l", "--"])
                .arg(point)
                .stderr(Stdio::null())
                .status();
        }
        // A daemon whose mount is gone ends by itself; one that does not is a bug, but no reason to stay.
        let began = Instant::now();
        while !daemons(&self.path).is_empty() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill_daemons();
        if !mounts_beneath(&self.path).is_empty() {
            eprintln!("{}: still mounted, so it stays", self.path.display());
            return;
        }
        let remove = || {
            let mut rm = Command::new("rm");
            rm.args(["-rf", "--one-file-system", "--"]).arg(&self.path).stderr(Stdio::null());
            rm.status().is_ok_and(|s| s.success())
        };
        if !remove() {
            // Something immutable, of a test that failed in between.
            let _ = Command::new("chattr").args(["-R", "-f", "-ia", "--"]).arg(&self.path).status();
            remove();
        }
    }
}

/// What is mounted at or beneath a directory, in mount order. Reads the mount table only, touches no mount.
pub fn mounts_beneath(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table
        .split(|c| *c == b'\n')
        .filter_map(|line| line.split(|c| *c == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// The type of what is mounted at a path, on top where there are several.
pub fn mount_type(point: &Path) -> Option<String> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let text = String::from_utf8_lossy(&table);
    text.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let field = unescape(left.split(' ').nth(4)?.as_bytes());
        let here = Path::new(&std::ffi::OsString::from_vec(field)) == point;
        here.then(|| right.split(' ').next().unwrap_or_default().to_string())
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut out, mut i) = (Vec::new(), 0);
    while let Some(c) = field.get(i) {
        let octal =
            field.get(i + 1..i + 4).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match octal {
            Some(byte) if *c == b'\\' => {
                out.push(byte);
                i += 4;
            }
            _ => {
                out.push(*c);
                i += 1;
            }
        }
    }
    out
}

/// Processes of the program under test that speak of a path beneath `dir` in their arguments or environment.
pub fn daemons(dir: &Path) -> Vec<u32> {
    let program = Path::new(env!("CARGO_BIN_EXE_reroot"));
    let needle = dir.as_os_str().as_encoded_bytes();
    let mut out = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        // A program that was built again meanwhile shows as "… (deleted)".
        if exe != program
            && !exe.as_os_str().as_encoded_bytes().starts_with(program.as_os_str().as_encoded_bytes())
        {
            continue;
        }
        let speaks = ["cmdline", "environ"].iter().any(|f| {
            let bytes = fs::read(entry.path().join(f)).unwrap_or_default();
            bytes.windows(needle.len()).enumerate().any(|(at, w)| {
                // `…/rr1-1` is not `…/rr1-10`.
                w == needle && !bytes.get(at + needle.len()).is_some_and(u8::is_ascii_digit)
            })
        });
        if speaks && !is_dead(pid) {
            out.push(pid);
        }
    }
    out
}

/// Who started a process.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// Whether a process has ended, waited for or not.
pub fn is_dead(pid: u32) -> bool {
    // The first thread may have ended while others still hold the files and locks of all.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if threads > 1 {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X']))
}
