//! The virtiofsd in Rust keeps a file handle of each file that its guest knows, and no descriptor. The host may then forget
//! every file at any time, and each must be found again by its number alone.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fspick};

use crate::common::{Mount, sh};
use crate::guest::{Guest, Home, rust_virtiofsd};
use crate::story;

/// Works with names, open files and directories that were found long before. Says nothing if all is well.
const EXERCISE: &str = r#"#!/bin/bash
set -euo pipefail
export LC_ALL=C
fail() { echo "round $round: $*"; exit 1; }
round=0
mkdir /root/exercise; cd /root/exercise
names() { find /usr -mindepth 2 -path /usr/share/doc -prune -o -path /usr/share/common-licenses -prune -o -printf '%p %y %i %m %n %U %s %T@ %l\n'; }
names >names
find /usr/sbin /usr/lib/systemd /usr/lib/x86_64-linux-gnu/*.so* -type f -exec md5sum {} + >sums
# Held until the end: a file of the version, one of the user's, one that has no name, a directory. None of them is beneath
# the working directory, which no open file keeps in the host's memory then.
license=/usr/share/common-licenses/GPL-3
exec 3<$license 4>>/root/held 5<>/root/gone 6</usr/share/debconf
echo kept >&5; rm /root/gone
sum=$(md5sum <$license)
mkdir mounted; mount -t tmpfs none mounted; echo there >mounted/file
for round in 1 2 3; do
  echo "<2>GUEST exercises, round $round" >/dev/kmsg
  sleep 0.5
  [ "$(ls)" = "$(ls /root/exercise)" ] || fail "the working directory"
  [ -s /proc/self/fd/6/confmodule ] && ls /proc/self/fd/6/ | grep -q confmodule || fail "a directory that is held"
  [ "$(cat mounted/file)" = there ] || fail "a mount"
  # What nobody changed is what it was, to the inode's number.
  names >now
  cmp -s names now || fail "$(diff names now | head -5)"
  md5sum --quiet -c sums || fail "contents"
  # New files, links, a rename of a directory and one over a file.
  mkdir -p new/deep; seq 1000 >new/deep/numbers
  for n in {1..50}; do echo "$round $n" >new/$n; done
  ln new/1 new/link; ln -s deep/numbers new/symlink; mkfifo new/fifo
  mv new round-$round; mv round-$round/2 round-$round/3
  [ "$(cat round-$round/3)" = "$round 2" ] || fail "a rename over a file"
  [ "$(stat -c %i round-$round/link)" = "$(stat -c %i round-$round/1)" ] || fail "a hard link"
  for old in round-*; do
    [ "$(ls $old | wc -l)" = 53 ] && [ "$(wc -l <$old/symlink)" = 1000 ] || fail "$old"
  done
  # Files and a directory of the version become the user's.
  for package in /usr/share/doc/*[a-e]; do
    file=$package/copyright
    [ ! -f $file ] || [ -L $file ] || { lines=$(wc -l <$file); echo $round >>$file; [ $(wc -l <$file) -gt $lines ] || fail $file; }
  done
  mv /usr/share/common-licenses /usr/share/licenses; chmod 700 /usr/share/licenses; ls /usr/share/licenses >/dev/null
  chmod 755 /usr/share/licenses; mv /usr/share/licenses /usr/share/common-licenses
  # What is held.
  echo $round >&4
  [ "$(cat /proc/self/fd/5)" = kept ] || fail "a file without a name"
  [ "$(md5sum </proc/self/fd/3)" = "$sum" ] || fail "a file of the version"
done
[ "$(wc -l </root/held)" = 3 ] || fail "a file that was held"
umount mounted; rm -r round-1
echo "<2>GUEST knows $(sed -n 's/^fuse_inode *\([0-9]*\) .*/\1/p' /proc/slabinfo)" >/dev/kmsg
"#;

/// Makes the host's kernel forget all of a mount that is not in use at that moment, again and again until it is ended.
struct Forgetting {
    watched: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    work: Option<JoinHandle<Seen>>,
}

/// What was seen meanwhile.
#[derive(Debug, Default)]
struct Seen {
    /// How often all was forgotten while there was a process to watch.
    times: u32,
    /// The most descriptors that the watched process held.
    descriptors: usize,
}

impl Forgetting {
    fn begin(point: &Path) -> Forgetting {
        let (watched, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (process, stopped, point) = (Arc::clone(&watched), Arc::clone(&stop), point.to_path_buf());
        let work = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                forget(&point);
                let open = fs::read_dir(format!("/proc/{}/fd", process.load(Ordering::Relaxed)));
                if let Ok(open) = open {
                    seen.times += 1;
                    seen.descriptors = seen.descriptors.max(open.count());
                }
                std::thread::sleep(Duration::from_millis(300));
            }
            seen
        });
        Forgetting { watched, stop, work: Some(work) }
    }

    fn watch(&self, process: u32) {
        self.watched.store(process, Ordering::Relaxed);
    }

    fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.work.take().unwrap().join().unwrap()
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(work) = self.work.take() {
            let _ = work.join();
        }
    }
}

/// A remount of the file system, as `mount -o remount` asks for it: it changes nothing, and the kernel drops each name and
/// file that nobody uses.
fn forget(point: &Path) {
    let picked = fspick(CWD, point, FsPickFlags::FSPICK_CLOEXEC).unwrap();
    fsconfig_reconfigure(&picked).unwrap();
}

/// A guest with the virtiofsd in Rust, on a mount that the host forgets again and again.
///
/// What is declared first is dropped first: after a failure the guest ends before its root.
struct Endurance {
    guest: Guest,
    forgetting: Forgetting,
    mount: Mount,
    home: Home,
}

impl Endurance {
    /// With `args` for `vm run`, which has no words for the quick init where `words` is `None`.
    fn begin(home: Home, words: Option<&str>, args: &[&str]) -> Endurance {
        let mount = home.program.mount("d", home.scratch.mnt());
        let forgetting = Forgetting::begin(mount.path());
        let virtiofsd = rust_virtiofsd();
        let args = [args, &["--virtiofsd", virtiofsd.to_str().unwrap()]].concat();
        let mut command = match words {
            Some(words) => home.command(words, &args),
            None => home.plain_command(&args),
        };
        let mut guest = Guest::start(&mut command);
        guest.until("GUEST");
        forgetting.watch(home.process("virtiofsd"));
        Endurance { guest, forgetting, mount, home }
    }

    /// Waits for the guest's end; it must have powered off, and have said all of `expected`.
    fn end(mut self, expected: &[&str]) -> Home {
        let code = self.guest.end();
        let seen = self.forgetting.end();
        let log = fs::read_to_string(self.home.user("root/log")).unwrap_or_default();
        let said = format!("{}\n{log}", self.guest.said.join("\n"));
        assert_eq!(code, Some(0), "{said}");
        for words in expected {
            assert!(self.guest.has_said(words), "{words}: {said}");
        }
        let known = self.guest.said.iter().find_map(|l| l.split_once("GUEST knows ")).expect("a number").1;
        let known: usize = known.trim().parse().unwrap();
        eprintln!("the guest knew {known} files; {seen:?}");
        assert!(seen.times > 10, "{seen:?}");
        assert!(known > 5000 && seen.descriptors < known / 10, "no handles are used: {known}, {seen:?}");
        // What the guest wrote, in the user layer and in the view.
        for (path, lines) in [
            ("root/held", 3),
            ("root/exercise/round-2/deep/numbers", 1000),
            ("root/exercise/round-3/link", 1),
        ] {
            for file in [self.home.user(path), self.mount.join(path)] {
                let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
                assert_eq!(text.lines().count(), lines, "{}", file.display());
            }
        }
        self.home.umount(self.mount);
        self.home.assert_clean();
        self.home.program.ok(&["fsck"]);
        self.home
    }
}

/// The exercise in a system that is imported.
fn with_exercise(root: &Path) {
    fs::write(root.join("usr/local/sbin/exercise"), EXERCISE).unwrap();
    sh(root, "chmod 755 usr/local/sbin/exercise").ok();
}

#[test]
fn a_guest_that_remembers_for_a_second_works_and_sees_a_swap_while_the_host_forgets() {
    let home = Home::with(with_exercise);
    let system = home.scratch.join("system-1");
    fs::write(system.join("etc/version"), "2\n").unwrap();
    home.import("system-1", "debian:2", Some("debian:1"));
    let mut run = Endurance::begin(home, Some("exercise,watch,write,off"), &["--cache", "auto"]);
    run.guest.until("GUEST exercises, round 3");
    run.guest.until("GUEST watches 1");
    let up = run.home.program.swap(&["upgrade", "d", "--to", "debian:2"]);
    assert_eq!(up["live"], true, "{up}");
    let swapped = Instant::now();
    run.guest.until("GUEST sees 2");
    eprintln!("the guest saw the swap {:.1} s after the command", swapped.elapsed().as_secs_f64());
    let home = run.end(&[]);
    assert_eq!(fs::read_to_string(home.user("root/written")).unwrap(), "written by a guest of 2\n");
}

#[test]
fn a_guest_that_remembers_for_ever_starts_systemd_and_installs_packages_while_the_host_forgets() {
    let home = Home::with(|root| {
        with_exercise(root);
        story::install(root);
    });
    let args = ["--append", "quiet", "--memory", "768M", "--cache", "always"];
    let mut run = Endurance::begin(home, None, &args);
    run.guest.until("GUEST six times seven is 42, cron is enabled");
    run.guest.until("GUEST exercises, round 3");
    run.end(&[
        "GUEST system is running",
        "GUEST six times seven is 42, cron is enabled",
        "GUEST done: all well",
    ]);
}
