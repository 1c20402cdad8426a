//! Desktops that machines run on, and machines that run.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::common::program::run;
use crate::common::scratch::mount_type;
use crate::common::{Answer, Mount, Program, Scratch, require_root};

/// How long one step of a guest may take. Most take two seconds on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(480);

/// What the guests of most tests run. Words that stand on the console after `GUEST` are its answers.
const QUICK_INIT: &str = r#"#!/bin/sh
PATH=/usr/bin:/usr/sbin:/bin:/sbin
say() { echo "<2>GUEST $*" >/dev/kmsg; }
# After a system call of its own each, so that nothing is cut off by the end.
trigger() { sync; echo "$1" >/proc/sysrq-trigger; while :; do sleep 60; done; }
say "user space of $(cat /etc/version)"
IFS=,
for word in $do; do
  case $word in
    write) echo "written by a guest of $(cat /etc/version)" >>/root/written; sync ;;
    edit) echo "edited by a guest" >>/etc/hostname; rm /etc/motd; mv /usr/share/doc /usr/share/papers; sync ;;
    read) say "written: $(cat /root/written)" ;;
    watch) before=$(cat /etc/version)
      say "watches $before"
      while [ "$(cat /etc/version)" = "$before" ]; do sleep 0.1; done
      say "sees $(cat /etc/version)" ;;
    work) for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        echo $n >>/root/work; sync; md5sum /usr/bin/dpkg >/dev/null
      done
      say "has worked" ;;
    fill) dd if=/dev/zero of=/root/filler bs=1M 2>/dev/null || say "the disk is full"; sync ;;
    exercise) /usr/local/sbin/exercise >/root/log 2>&1 || { say "the exercise failed: $(tail -3 /root/log)"; trigger o; } ;;
    spin) say "writes"; while :; do echo x >>/root/endless; done ;;
    count) n=0 failed=0; exec 3>/root/goes; rm /root/goes
      while [ ! -e /root/enough ]; do
        n=$((n + 1)); echo $n >>/root/counted || failed=1; echo $n >&3 || failed=1
        mkdir /root/d && echo $n >/root/d/f && mv /root/d/f /root/f && [ "$(cat /root/f)" = $n ] &&
          rm /root/f && rmdir /root/d && ls -l /usr/bin /etc >/root/list && rm /root/list || failed=1
        [ $n != 20 ] || say "counts"
        # With --cache always the guest asks for nothing that it knows.
        [ $((n % 20)) != 0 ] || echo 2 >/proc/sys/vm/drop_caches
      done
      [ $failed = 1 ] && say "counted with an error" || say "counted without an error"; trigger o ;;
    wait) say "waits"; while :; do sleep 60; done ;;
    off) trigger o ;;
    reboot) trigger b ;;
    panic) trigger c ;;
  esac
done
"#;

/// Unpacks a Debian that `scripts/setup test` made.
pub fn unpack(name: &str, to: &Path) {
    // CARGO_BIN_EXE is TARGET/PROFILE/reroot.
    let target = Path::new(env!("CARGO_BIN_EXE_reroot")).ancestors().nth(2).unwrap();
    let archive = target.join("tools").join(name);
    assert!(archive.exists(), "{} is not there: run `scripts/setup test`", archive.display());
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(to).args(["--xattrs", "--xattrs-include=*", "-xpf"]).arg(archive);
    run(&mut tar, LIMIT).ok();
}

/// The virtiofsd in Rust, which `scripts/setup test` builds.
pub fn rust_virtiofsd() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_reroot")).ancestors().nth(2).unwrap();
    let program = target.join("tools/bin/virtiofsd");
    assert!(program.exists(), "{} is not there: run `scripts/setup test`", program.display());
    program
}

/// Starts `/usr/local/sbin/service` in a guest that runs systemd.
pub const UNIT: &str = "[Unit]
Description=What this test is about
[Service]
ExecStart=/usr/local/sbin/service
[Install]
WantedBy=multi-user.target
";

/// A scratch directory with a store in which there is a Debian that boots, `debian:1`, and a desktop `d` on it.
pub struct Home {
    pub scratch: Scratch,
    pub program: Program,
}

impl Home {
    pub fn new() -> Home {
        Home::with(|_| {})
    }

    /// With something done to the system before it is imported.
    pub fn with(change: impl FnOnce(&Path)) -> Home {
        require_root();
        let scratch = Scratch::new();
        let program = Program::new(&scratch);
        let home = Home { scratch, program };
        let system = home.unpacked("system-1");
        change(&system);
        home.import("system-1", "debian:1", None);
        home.program.ok(&["create", "d", "debian:1"]);
        home
    }

    /// The system as plain files, with the quick init.
    pub fn unpacked(&self, name: &str) -> PathBuf {
        let dir = self.scratch.dir(name);
        unpack("guest.tar", &dir);
        let init = dir.join("sbin/quick-init");
        fs::write(&init, QUICK_INIT).unwrap();
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("etc/version"), "1\n").unwrap();
        dir
    }

    /// Makes a version of it.
    pub fn import(&self, name: &str, version: &str, parent: Option<&str>) {
        let source = format!("dir:{}", self.scratch.join(name).display());
        let mut args = vec!["import", &*source, version];
        args.extend(parent.into_iter().flat_map(|p| ["--parent", p]));
        run(&mut self.program.command(&args), LIMIT).ok();
    }

    /// `vm run d` with the quick init, that has not been started.
    pub fn command(&self, words: &str, args: &[&str]) -> Command {
        let append = format!("init=/sbin/quick-init quiet do={words}");
        self.plain_command(&[&["--append", &*append][..], args].concat())
    }

    /// `vm run d`, that has not been started.
    pub fn plain_command(&self, args: &[&str]) -> Command {
        let point = self.scratch.mnt();
        let mut all = vec!["vm", "run", "d", "--mountpoint", point.to_str().unwrap()];
        if !args.contains(&"--memory") {
            all.extend(["--memory", "512M"]);
        }
        if !args.contains(&"--cache") {
            all.extend(["--cache", "always"]);
        }
        all.extend(args);
        self.program.command(&all)
    }

    /// Runs a guest with the quick init to its end, whatever that is.
    #[track_caller]
    pub fn run(&self, words: &str, args: &[&str]) -> Answer {
        let answer = run(&mut self.command(words, args), 2 * LIMIT);
        self.assert_clean();
        answer
    }

    /// Starts a guest with the quick init.
    #[track_caller]
    pub fn start(&self, words: &str, args: &[&str]) -> Guest {
        Guest::start(&mut self.command(words, args))
    }

    /// Unmounts, and waits for the daemon's process, which is on its way out a moment longer than the command.
    #[track_caller]
    pub fn umount(&self, mount: Mount) {
        mount.umount();
        let begin = Instant::now();
        while !self.processes().is_empty() && begin.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The user layer on the host.
    pub fn user(&self, path: &str) -> PathBuf {
        self.scratch.store().join("desktops/d/user").join(path)
    }

    /// Panics if a machine has left something: a mount, a process, a directory.
    #[track_caller]
    pub fn assert_clean(&self) {
        let left = self.processes();
        assert!(left.is_empty(), "left running: {left:?}");
        assert_eq!(mount_type(&self.scratch.mnt()), None, "left mounted");
        let status = self.program.json(&["status", "d"]);
        assert_eq!(status["mounted"], false, "{status}");
        assert_eq!(self.run_directory(), None, "left behind");
    }

    /// Processes that speak of this scratch directory and are not this one: they inherit that from the program.
    pub fn processes(&self) -> Vec<String> {
        let needle = format!("REROOT_TEST_SCRATCH={}", self.scratch.path().display());
        let mut out = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|b| *b == 0).any(|v| v == needle.as_bytes()) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&line).replace('\0', " ");
                out.push(format!("{} {words}", entry.file_name().display()));
            }
        }
        out
    }

    /// The number of the process of this scratch directory whose command line has that word.
    #[track_caller]
    pub fn process(&self, word: &str) -> u32 {
        let all = self.processes();
        let line = all.iter().find(|l| l.contains(word)).unwrap_or_else(|| panic!("no {word}: {all:?}"));
        line.split(' ').next().unwrap().parse().unwrap()
    }

    /// Where the run of this desktop keeps what QEMU reads.
    pub fn run_directory(&self) -> Option<PathBuf> {
        let name = [self.scratch.store().as_os_str().as_encoded_bytes(), b"\0d"].concat();
        let dir = Path::new("/run/reroot").join(format!("vm-{}", reroot::store::Digest::of(&name).short()));
        dir.exists().then_some(dir)
    }
}

/// A `vm run` that goes on beside the test. It is ended when this is dropped.
pub struct Guest {
    child: Child,
    lines: Receiver<(Instant, String)>,
    /// Everything that was said so far.
    pub said: Vec<String>,
    pub began: Instant,
}

impl Guest {
    #[track_caller]
    pub fn start(command: &mut Command) -> Guest {
        let began = Instant::now();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let pipes: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for pipe in pipes {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_string();
                    if send.send((Instant::now(), text)).is_err() {
                        return;
                    }
                }
            });
        }
        Guest { child, lines, said: Vec::new(), began }
    }

    /// Whether it has not ended. Until this said no, nobody else has its number.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line with these words is said; how long that took from the start.
    #[track_caller]
    pub fn until(&mut self, words: &str) -> Duration {
        let end = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((when, line)) => {
                    self.said.push(line);
                    if self.said.last().unwrap().contains(words) {
                        return when - self.began;
                    }
                }
                Err(e) => panic!("{words:?} was not said ({e}); what was said:\n{}", self.said.join("\n")),
            }
        }
    }

    /// Waits for its end; its exit status, `None` if a signal ended it.
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                while let Ok((_, line)) = self.lines.recv_timeout(Duration::from_secs(5)) {
                    self.said.push(line);
                }
                return status.code();
            }
            self.said.extend(self.lines.try_iter().map(|(_, line)| line));
            assert!(Instant::now() < end, "it did not end; what was said:\n{}", self.said.join("\n"));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As [`Guest::end`], and the status must be this one.
    #[track_caller]
    pub fn expect(&mut self, code: i32) {
        let got = self.end();
        assert_eq!(got, Some(code), "what was said:\n{}", self.said.join("\n"));
    }

    /// Kills the run as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether a line with these words was said.
    pub fn has_said(&self, words: &str) -> bool {
        self.said.iter().any(|l| l.contains(words))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The kernel ends QEMU and virtiofsd with it, the scratch directory its daemon.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), "--", &pid.to_string()]).status();
    assert!(status.unwrap().success(), "kill -{name} {pid}");
}

/// Sends a signal to a process that may have ended.
pub fn signal_if_there(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{name}"), "--", &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}
