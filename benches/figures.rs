//! The figures that BENCHMARKS.md quotes: `cargo bench --bench figures [-- NAME…]`, as root.
//!
//! Each figure is the median of several rounds on a real mount; where it is a ratio, both sides are measured
//! in turn in the same run. Names: mount, memory, lookup, rollback, import.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const REROOT: &str = env!("CARGO_BIN_EXE_reroot");

/// A scratch directory with a store; unmounts and removes everything at the end.
struct Bench {
    dir: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let dir = PathBuf::from(format!("/var/tmp/reroot-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("mnt")).expect("scratch directory");
        Bench { dir }
    }
    fn mnt(&self) -> PathBuf {
        self.dir.join("mnt")
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(REROOT);
        c.arg("--store").arg(self.dir.join("store")).args(args).current_dir(&self.dir);
        c
    }
    fn run(&self, args: &[&str]) -> String {
        let out = self.command(args).output().expect("reroot runs");
        assert!(out.status.success(), "reroot {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
    fn import(&self, tag: &str, more: &[&str], fill: impl FnOnce(&mut Archive)) {
        let mut child = self
            .command(&[&["import", "tar:-", tag], more].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("reroot runs");
        let mut archive =
            Archive(tar::Builder::new(std::io::BufWriter::new(child.stdin.take().expect("stdin"))));
        fill(&mut archive);
        archive.0.into_inner().expect("archive").flush().expect("archive");
        assert!(child.wait().expect("reroot ends").success());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.mnt()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Archive(tar::Builder<std::io::BufWriter<std::process::ChildStdin>>);

impl Archive {
    fn add(&mut self, path: &str, kind: tar::EntryType, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).expect("archive");
    }
    fn dir(&mut self, path: &str) {
        self.add(path, tar::EntryType::Directory, b"");
    }
    fn file(&mut self, path: &str, content: &[u8]) {
        self.add(path, tar::EntryType::Regular, content);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn say(name: &str, values: &mut [f64], unit: &str) {
    let m = median(values);
    println!(
        "{name}: {m:.2} {unit} ({:.2}-{:.2}, {} rounds)",
        values[0],
        values[values.len() - 1],
        values.len()
    );
}

fn drop_caches(what: &str) {
    let _ = Command::new("sync").status();
    let _ = fs::write("/proc/sys/vm/drop_caches", what);
}

fn timed(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64() * 1e3
}

/// 200,000 paths.
fn large(a: &mut Archive) {
    for d in 0..2000 {
        a.dir(&format!("d{d}"));
        for f in 0..99 {
            a.file(&format!("d{d}/file-with-a-name-{f}"), format!("{}", f % 10).as_bytes());
        }
    }
}

fn mount() {
    let b = Bench::new("mount");
    b.import("big:1", &[], large);
    b.run(&["create", "d", "big:1"]);
    for (name, cold) in
        [("mount of 200,000 paths, warm", false), ("mount of 200,000 paths, all caches empty", true)]
    {
        let mut times = Vec::new();
        for _ in 0..11 {
            if cold {
                drop_caches("3");
            }
            times.push(timed(|| drop(b.run(&["mount", "d", "mnt"]))));
            b.run(&["umount", "d"]);
        }
        say(name, &mut times, "ms");
    }
}

fn memory() {
    let b = Bench::new("memory");
    b.import("big:1", &[], large);
    b.run(&["create", "d", "big:1"]);
    b.run(&["mount", "d", "mnt"]);
    thread::sleep(Duration::from_millis(500));
    let status: serde_json::Value = serde_json::from_str(&b.run(&["--json", "status", "d"])).expect("JSON");
    // The daemon and its supervisor, which share the program.
    let private = |which: &str| -> u64 {
        let pid = status[which].as_u64().expect("a process");
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
        let lines = rollup.lines().filter(|l| l.starts_with("Private_"));
        lines.filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    let kib = private("pid") + private("supervisor");
    println!("private memory of an idle mount of 200,000 paths: {:.2} MiB", kib as f64 / 1024.0);
    b.run(&["umount", "d"]);
}

/// Every path beneath a directory, stat'ed.
fn walk(dir: &Path) -> u64 {
    let mut n = 0;
    for entry in fs::read_dir(dir).expect("listing").flatten() {
        let meta = entry.path().symlink_metadata().expect("stat");
        n += 1;
        if meta.is_dir() {
            n += walk(&entry.path());
        }
    }
    n
}

fn lookup() {
    let b = Bench::new("lookup");
    let depths = [1usize, 10, 100, 1000];
    b.import("deep:0", &[], |a| {
        for d in 0..100 {
            a.dir(&format!("d{d}"));
            for f in 0..20 {
                a.file(&format!("d{d}/f{f}"), b"x");
            }
        }
    });
    for n in 1..=1000 {
        b.import(&format!("deep:{n}"), &["--parent", &format!("deep:{}", n - 1), "--as-delta"], |a| {
            a.file(&format!("d{}/f{}", n % 100, (n / 100) % 20), format!("{n}").as_bytes());
        });
    }
    let paths: Vec<String> = (0..100).flat_map(|d| (0..20).map(move |f| format!("d{d}/f{f}"))).collect();
    for depth in depths {
        let name = format!("n{depth}");
        b.run(&["create", &name, &format!("deep:{depth}")]);
        fs::create_dir_all(b.dir.join(&name)).expect("mount point");
        b.run(&["mount", &name, &name]);
    }
    for cold in [true, false] {
        let mut times = vec![Vec::new(); depths.len()];
        for _ in 0..21 {
            for (i, depth) in depths.iter().enumerate() {
                let top = b.dir.join(format!("n{depth}"));
                if cold {
                    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
                }
                times[i].push(timed(|| {
                    for path in &paths {
                        top.join(path).symlink_metadata().expect("stat");
                    }
                }));
            }
        }
        for i in 0..depths.len() {
            let mut ratios: Vec<f64> = times[i].iter().zip(&times[0]).map(|(a, b)| a / b).collect();
            let what = if cold { "cold" } else { "warm" };
            say(&format!("lookup, {what}, {} deltas against 1", depths[i]), &mut ratios, "x");
        }
    }
    for depth in depths {
        b.run(&["umount", &format!("n{depth}")]);
    }
}

fn rollback() {
    let b = Bench::new("rollback");
    for version in ["1", "2"] {
        b.import(&format!("app:{version}"), &[], |a| {
            for d in 0..100 {
                a.dir(&format!("d{d}"));
                for f in 0..100 {
                    a.file(&format!("d{d}/f{f}"), format!("{version} {d} {f}").as_bytes());
                }
            }
            a.dir("same");
            for f in 0..100 {
                a.file(&format!("same/f{f}"), b"same");
            }
        });
    }
    b.run(&["create", "d", "app:1"]);
    b.run(&["mount", "d", "mnt"]);
    let mnt = b.mnt();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    // What the kernel was given within the last second is dropped and not only told to be asked for again.
    let settle = || thread::sleep(Duration::from_millis(1100));
    for round in 0..9 {
        walk(&mnt);
        settle();
        let to = if round % 2 == 0 { "app:2" } else { "app:1" };
        let mut text = String::new();
        outside.push(timed(|| text = b.run(&["--json", "rollback", "d", "--to", to])));
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["paths_differing"], 10_000);
        inside.push(report["total_ms"].as_f64().expect("total_ms"));
    }
    say("live rollback, 10,000 known paths differ, in the daemon", &mut inside, "ms");
    say("the same, the whole command", &mut outside, "ms");

    if std::env::var_os("REROOT_DEBUG").is_some() {
        println!("{}", fs::read_to_string(b.dir.join("store/desktops/d/daemon.log")).unwrap_or_default());
    }

    // The pause: the longest request of a reader while four threads write and fsync, with swaps and without.
    let stop = Arc::new(AtomicBool::new(false));
    let longest = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for i in 0..4 {
        let (stop, path) = (stop.clone(), mnt.join(format!("fsync{i}")));
        threads.push(thread::spawn(move || {
            let file = File::create(path).expect("file");
            while !stop.load(Ordering::Relaxed) {
                file.write_all_at(b"x", 0).expect("write");
                file.sync_data().expect("fsync");
            }
        }));
    }
    {
        let (stop, longest, dir) = (stop.clone(), longest.clone(), mnt.join("same"));
        threads.push(thread::spawn(move || {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                i += 1;
                // A name that is not there and was not asked for: a request to the daemon each time.
                let path = dir.join(format!("no{i}"));
                let begin = Instant::now();
                let _ = path.symlink_metadata();
                longest.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
        }));
    }
    let (mut with, mut without, mut pause) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..12 {
        walk(&mnt);
        settle();
        longest.store(0, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
        without.push(longest.swap(0, Ordering::Relaxed) as f64 / 1e3);
        let to = if round % 2 == 0 { "app:1" } else { "app:2" };
        let out = b.command(&["--json", "rollback", "d", "--to", to]).output().expect("reroot runs");
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        if let Some(us) = report["pause_us"].as_f64() {
            pause.push(us);
            with.push(longest.swap(0, Ordering::Relaxed) as f64 / 1e3);
        }
    }
    stop.store(true, Ordering::Relaxed);
    for t in threads {
        t.join().expect("thread");
    }
    say("time in which no request could begin", &mut pause, "us");
    say("longest request while four threads fsync, no swap", &mut without, "ms");
    say("longest request while four threads fsync, during a swap", &mut with, "ms");
    b.run(&["umount", "d"]);
}

fn import() {
    let b = Bench::new("import");
    let src = b.dir.join("src");
    let mut seed = 1u64;
    let mut total = 0u64;
    // 1 GiB in files as a system root has them: many small, some large.
    for d in 0..200 {
        fs::create_dir_all(src.join(format!("d{d}"))).expect("directory");
        for f in 0..50 {
            let size = if f == 0 { 3 << 20 } else { 46_000 };
            let mut data = vec![0u8; size];
            for word in data.chunks_mut(8) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let bytes = seed.to_le_bytes();
                word.copy_from_slice(&bytes[..word.len()]);
            }
            total += size as u64;
            fs::write(src.join(format!("d{d}/f{f}")), data).expect("file");
        }
    }
    let _ = Command::new("sync").status();
    let (mut ratios, mut copies) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let paths: Vec<PathBuf> = (0..200)
            .flat_map(|d| (0..50).map(move |f| (d, f)))
            .map(|(d, f)| src.join(format!("d{d}/f{f}")))
            .collect();
        let hash = timed(|| {
            thread::scope(|s| {
                for half in paths.chunks(paths.len().div_ceil(2)) {
                    s.spawn(move || {
                        for path in half {
                            let file = File::open(path).expect("file");
                            reroot::store::Digest::of_reader(file).expect("read");
                        }
                    });
                }
            });
        });
        let copy = timed(|| {
            let to = b.dir.join(format!("copy{round}"));
            assert!(Command::new("cp").arg("-a").arg(&src).arg(&to).status().expect("cp").success());
            let _ = Command::new("sync").arg("-f").arg(&to).status();
        });
        let _ = fs::remove_dir_all(b.dir.join(format!("copy{round}")));
        let import = timed(|| drop(b.run(&["import", "dir:src", &format!("root:{round}")])));
        b.run(&["untag", &format!("root:{round}")]);
        b.run(&["gc"]);
        let _ = fs::remove_dir_all(b.dir.join("store/cache"));
        fs::create_dir_all(b.dir.join("store/cache")).expect("cache");
        ratios.push(import / hash);
        copies.push(import / copy);
    }
    println!("import of {:.2} GiB", total as f64 / f64::from(1 << 30));
    say("import against hashing on two cores", &mut ratios, "x");
    say("import against cp -a and sync of the same tree", &mut copies, "x");
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, work) in [
        ("mount", mount as fn()),
        ("memory", memory),
        ("rollback", rollback),
        ("lookup", lookup),
        ("import", import),
    ] {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            work();
        }
    }
}
