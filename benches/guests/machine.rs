//! The machine that `reroot vm run` starts, on other roots than a desktop: the same QEMU and virtiofsd with the same words.
//!
//! They are read from the running processes, so that this knows nothing of how they are called.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How a machine is started.
#[derive(Debug)]
pub struct Recipe {
    dir: PathBuf,
    virtiofsd: Vec<String>,
    qemu: Vec<String>,
}

impl Recipe {
    /// That of the machine which the process `run`, a `reroot vm run`, has started on the mount at `point`. What it boots
    /// from is copied into the new directory `dir`.
    pub fn read(run: u32, point: &Path, dir: &Path) -> Recipe {
        fs::create_dir(dir).expect("directory");
        let parts = children(run);
        let words_of = |name: &str| {
            let found = parts.iter().find(|words| words.first().is_some_and(|w| w.contains(name)));
            found.unwrap_or_else(|| panic!("{run} has started no {name}: {parts:?}")).clone()
        };
        let point = point.to_str().expect("UTF-8");
        let mut virtiofsd = words_of("virtiofsd");
        assert!(virtiofsd.iter().any(|w| w.contains(point)), "{point}: {virtiofsd:?}");
        for word in &mut virtiofsd {
            *word = if word.starts_with("--fd=") { "--fd=0".into() } else { word.replace(point, "ROOT") };
        }
        let mut qemu = Vec::new();
        let mut words = words_of("qemu-system").into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                // Nobody speaks to its monitor.
                "-chardev" | "-mon" | "-kernel" | "-initrd" => {
                    let value = words.next().expect("a value");
                    let value = match word.as_str() {
                        "-chardev" if value.starts_with("socket,id=root,") => {
                            "socket,id=root,path=SOCKET".into()
                        }
                        "-chardev" if value.contains("id=monitor") => continue,
                        "-mon" => continue,
                        "-chardev" => value,
                        _ => {
                            let copy = dir.join(word.trim_start_matches('-'));
                            fs::copy(&value, &copy).unwrap_or_else(|e| panic!("{value}: {e}"));
                            copy.to_str().expect("UTF-8").to_string()
                        }
                    };
                    qemu.extend([word, value]);
                }
                _ => qemu.push(word),
            }
        }
        Recipe { dir: dir.to_path_buf(), virtiofsd, qemu }
    }

    /// Boots it with that directory as its root until a line with `marker` stands on its console, and turns it off; how
    /// long that took from the start of virtiofsd.
    pub fn boot(&self, root: &Path, marker: &str, limit: Duration) -> Duration {
        let socket = self.dir.join("socket");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("socket");
        let begin = Instant::now();
        let root = root.to_str().expect("UTF-8");
        let words: Vec<String> = self.virtiofsd.iter().map(|w| w.replace("ROOT", root)).collect();
        let log = fs::File::create(self.dir.join("virtiofsd.log")).expect("log");
        // The socket is its standard input.
        let _virtiofsd =
            Process::start(&words, Stdio::from(OwnedFd::from(listener)), Stdio::null(), log.into());
        let socket = socket.to_str().expect("UTF-8");
        let words: Vec<String> = self.qemu.iter().map(|w| w.replace("SOCKET", socket)).collect();
        let log = fs::File::create(self.dir.join("qemu.log")).expect("log");
        let mut qemu = Process::start(&words, Stdio::null(), Stdio::piped(), log.into());
        let console = BufReader::new(qemu.0.stdout.take().expect("console"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                let _ = send.send((Instant::now(), String::from_utf8_lossy(&line).trim_end().to_string()));
            }
        });
        let mut said = Vec::new();
        loop {
            match lines.recv_timeout(limit.saturating_sub(begin.elapsed())) {
                Ok((when, line)) if line.contains(marker) => return when - begin,
                Ok((_, line)) => said.push(line),
                Err(e) => panic!("{root}: {marker:?} was not said ({e}):\n{}", said.join("\n")),
            }
        }
    }
}

/// A program that is killed when this is dropped; what is declared last is dropped first, so virtiofsd outlives its guest.
struct Process(Child);

impl Process {
    fn start(words: &[String], input: Stdio, output: Stdio, errors: Stdio) -> Process {
        // Ended with this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(words).stdin(input).stdout(output).stderr(errors);
        Process(command.spawn().unwrap_or_else(|e| panic!("{words:?}: {e}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command lines of a process's children.
fn children(parent: u32) -> Vec<Vec<String>> {
    let mut out = Vec::new();
    for task in fs::read_dir(format!("/proc/{parent}/task")).expect("a process").flatten() {
        for child in fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace() {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let words = line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
            let mut words: Vec<String> = words.collect();
            // A zero stands after each word.
            words.pop();
            out.push(words);
        }
    }
    out
}

/// A system as somebody else than Reroot shows it, unmounted when this is dropped.
#[derive(Debug)]
pub struct Shown {
    /// Where.
    pub root: PathBuf,
}

impl Shown {
    /// Through the kernel's overlayfs, with a new upper directory in `home`.
    pub fn overlay(tree: &Path, home: &Path) -> Shown {
        let (root, layers) = Shown::prepare(tree, home);
        let mut command = Command::new("mount");
        Shown::mount(command.args(["-t", "overlay", "overlay", "-o", &layers]).arg(&root));
        Shown { root }
    }

    /// Through fuse-overlayfs, alike.
    pub fn fuse_overlay(tree: &Path, home: &Path) -> Shown {
        let (root, layers) = Shown::prepare(tree, home);
        // virtiofsd acts as every user.
        let options = format!("{layers},allow_other");
        Shown::mount(Command::new("fuse-overlayfs").args(["-o", &options]).arg(&root));
        Shown { root }
    }

    fn prepare(tree: &Path, home: &Path) -> (PathBuf, String) {
        let [root, upper, work] = ["root", "upper", "work"].map(|name| home.join(name));
        for dir in [&root, &upper, &work] {
            fs::create_dir_all(dir).expect("directory");
        }
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", tree.display(), upper.display(), work.display());
        (root, layers)
    }

    fn mount(command: &mut Command) {
        let status = command.stdin(Stdio::null()).status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        assert!(status.success(), "{command:?}");
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // A process that just ended may still be letting go of its files.
        for _ in 0..100 {
            let done = Command::new("umount").arg(&self.root).stderr(Stdio::null()).status();
            if done.is_ok_and(|s| s.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
