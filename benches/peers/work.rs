//! The work that is timed: what a program does to a tree, in seconds.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::ground::{call, open_dir};

/// How long it takes.
pub fn timed(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

/// Lists every directory and looks at every entry, as `find -ls` does; how many there are.
pub fn walk(dir: &Path) -> u64 {
    let mut open = vec![open_dir(dir)];
    let mut count = 0;
    while let Some(fd) = open.pop() {
        for entry in Dir::read_from(&fd).expect("listing") {
            let entry = entry.expect("listing");
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).expect("stat");
            count += 1;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW;
                open.push(rustix::fs::openat(&fd, name, flags, Mode::empty()).expect("directory"));
            }
        }
    }
    count
}

/// The files of [`crate::trees::files`].
pub fn names(dir: &Path, count: usize) -> Vec<PathBuf> {
    (0..count).map(|n| dir.join(format!("d{:04}/file-{:02}", n / 100, n % 100))).collect()
}

/// Opens, reads and closes each.
pub fn read_each(paths: &[PathBuf]) {
    let mut buffer = [0; 8192];
    for path in paths {
        let mut file = File::open(path).expect("file");
        while file.read(&mut buffer).expect("read") > 0 {}
    }
}

/// Reads a file from its beginning to its end.
pub fn read_through(path: &Path) {
    let mut file = File::open(path).expect("file");
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).expect("read") > 0 {}
}

/// Makes that many small files, a hundred to a directory.
pub fn create(dir: &Path, count: usize) {
    for n in 0..count {
        let home = dir.join(format!("new{:04}", n / 100));
        if n % 100 == 0 {
            fs::create_dir(&home).expect("directory");
        }
        let mut file = File::create(home.join(format!("file-{:02}", n % 100))).expect("file");
        file.write_all(&[b'x'; 1000]).expect("write");
    }
}

/// Writes 4 KiB into the middle of a file, to the return of the call.
pub fn first_write(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).expect("file");
    file.write_all_at(&[b'y'; 4096], 4096 * 100).expect("write");
}

/// What fio says of a job: seconds for an operation.
pub fn fio(dir: &Path, job: &[&str]) -> f64 {
    let mut command = Command::new("fio");
    command
        .args(["--name=job", "--output-format=json", "--group_reporting", "--thread", "--invalidate=0"])
        .args(job);
    let out = command.current_dir(dir).output().expect("fio runs");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    // Some versions print notes before the document.
    let document = &text[text.find('{').unwrap_or(0)..];
    let answer: serde_json::Value = serde_json::from_str(document).expect("fio's JSON");
    let job = &answer["jobs"][0];
    let rate = job["read"]["iops"].as_f64().unwrap_or(0.0) + job["write"]["iops"].as_f64().unwrap_or(0.0);
    assert!(rate > 0.0, "fio measured nothing: {text}");
    1.0 / rate
}

/// Runs a command in a directory.
pub fn command(dir: &Path, words: &[&str]) {
    call(Command::new(words[0]).args(&words[1..]).current_dir(dir));
}
