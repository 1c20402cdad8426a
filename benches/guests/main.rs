//! What virtual machines on desktops cost; as root, with the Debian that `scripts/setup test` makes.
//!
//! `cargo bench --bench guests [-- N]`: N guests on one version, 10 where nothing is said. Caches are dropped, then one
//! guest after the other boots to user space and waits, each on a desktop of its own. After
//! each the host's memory is looked at: the page cache of files (which holds what guests read of the version), and what
//! the processes of that guest hold for themselves.
//!
//! `cargo bench --bench guests -- boot [ROUNDS] [WORDS]`: the time to user space beside the same machine on other roots,
//! [`boot`]. WORDS choose the kinds of start that contain one of them.

mod boot;
mod machine;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const REROOT: &str = env!("CARGO_BIN_EXE_reroot");

/// Reads what a login does, says so and waits.
const INIT: &str = r#"#!/bin/sh
PATH=/usr/bin:/usr/sbin:/bin:/sbin
for program in /usr/bin/* /usr/lib/x86_64-linux-gnu/*.so*; do cat "$program" >/dev/null 2>&1; done
cat /etc/* /usr/share/doc/*/copyright >/dev/null 2>&1
echo "<2>GUEST is up" >/dev/kmsg
while :; do sleep 60; done
"#;

/// A store in a scratch directory, and its guests. All of it ends and goes at the end.
struct Host {
    dir: PathBuf,
    guests: Vec<Child>,
}

impl Host {
    fn new() -> Host {
        let dir = PathBuf::from(format!("/var/tmp/reroot-guests-{}", std::process::id()));
        fs::create_dir_all(dir.join("system")).expect("scratch directory");
        Host { dir, guests: Vec::new() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(REROOT);
        c.arg("--store").arg(self.dir.join("store")).args(args).current_dir(&self.dir);
        c
    }

    fn run(&self, args: &[&str]) {
        let out = self.command(args).output().expect("reroot runs");
        assert!(out.status.success(), "reroot {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Unpacks the Debian, with `init` as `/sbin/bench-init`.
    fn unpack(&self, init: &str) -> PathBuf {
        let system = self.dir.join("system");
        let tar = Path::new(REROOT).ancestors().nth(2).expect("target").join("tools/guest.tar");
        assert!(tar.exists(), "{} is not there: run `scripts/setup test`", tar.display());
        let unpack = Command::new("tar").arg("-C").arg(&system).arg("-xpf").arg(&tar).status();
        assert!(unpack.is_ok_and(|s| s.success()), "{}", tar.display());
        let file = system.join("sbin/bench-init");
        fs::write(&file, init).expect("init");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("init");
        system
    }

    fn import(&self) {
        let system = self.unpack(INIT);
        self.run(&["import", "dir:system", "debian:1"]);
        fs::remove_dir_all(&system).expect("removing the source");
    }

    /// Ends the guests.
    fn end(&mut self) {
        for guest in &mut self.guests {
            // The second signal does not wait for the guest.
            for _ in 0..600 {
                let _ = Command::new("kill").arg(guest.id().to_string()).stderr(Stdio::null()).status();
                if guest.try_wait().is_ok_and(|s| s.is_some()) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        self.guests.clear();
    }

    /// Boots a guest; seconds to its user space.
    fn boot(&mut self, number: usize) -> f64 {
        let name = format!("guest-{number}");
        self.run(&["create", &name, "debian:1"]);
        let words = "init=/sbin/bench-init quiet";
        self.start(&name, &["--memory", "256M", "--cache", "always", "--append", words])
    }

    /// Starts a guest on a desktop; seconds to its user space.
    fn start(&mut self, desktop: &str, args: &[&str]) -> f64 {
        let begin = Instant::now();
        let mut child = self
            .command(&[&["vm", "run", desktop], args].concat())
            .env("REROOT_GUEST", desktop)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("reroot runs");
        let console = BufReader::new(child.stdout.take().expect("console"));
        self.guests.push(child);
        let mut lines = console.lines().map_while(Result::ok);
        assert!(lines.any(|l| l.contains("GUEST is up")), "the guest ended early");
        // The rest is read, so that the guest does not wait for that.
        std::thread::spawn(move || lines.for_each(drop));
        begin.elapsed().as_secs_f64()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
        // Where a measurement failed in between.
        let _ = self.command(&["umount", "d"]).output();
        let _ = Command::new("rm").args(["-rf", "--one-file-system"]).arg(&self.dir).status();
    }
}

/// MiB of a line of `/proc/meminfo`, `smaps_rollup` or the like.
fn mib(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// The page cache of files, without what is memory of processes (guests' memory among it).
fn page_cache() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    mib(&text, "Cached:") - mib(&text, "Shmem:")
}

/// What the processes of a desktop's machine hold for themselves: daemon, virtiofsd, QEMU with the guest's memory.
fn held(number: usize) -> [f64; 3] {
    let mut out = [0.0; 3];
    let mark = format!("REROOT_GUEST=guest-{number}");
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if !environment.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        let place = match words.first() {
            Some(program) if program.contains("virtiofsd") => 1,
            Some(program) if program.contains("qemu") => 2,
            _ if words.iter().any(|w| w == "serve") => 0,
            _ => continue,
        };
        if let Ok(text) = fs::read_to_string(entry.path().join("smaps_rollup")) {
            out[place] += mib(&text, "Pss:") - mib(&text, "Pss_File:");
        }
    }
    out
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let count = words.iter().find_map(|w| w.parse().ok());
    let host = Host::new();
    if words.iter().any(|w| w == "boot") {
        boot::measure(host, count.unwrap_or(5), &words);
    } else {
        many(host, count.unwrap_or(10));
    }
}

fn many(mut host: Host, count: usize) {
    host.import();
    let _ = Command::new("sync").status();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches, as root");
    println!(
        "| guest | to user space | page cache of the host grows by | daemon | virtiofsd | QEMU, with the guest's memory |"
    );
    println!("|---|---|---|---|---|---|");
    for number in 1..=count {
        let before = page_cache();
        let seconds = host.boot(number);
        let grown = page_cache() - before;
        let [daemon, virtiofsd, qemu] = held(number);
        println!(
            "| {number} | {seconds:.1} s | {grown:.1} MiB | {daemon:.1} MiB | {virtiofsd:.1} MiB | {qemu:.1} MiB |"
        );
    }
}
