//! Changes that are under way when the daemon ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, XattrFlags, removexattr, renameat_with, setxattr};

use crate::common::desk::desk;
use crate::common::successor::kill_again_and_again;
use crate::common::tree::{self, Item};

const KILLS: usize = 12;
const THREADS: u64 = 4;

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, flags)?)
}

/// One round of changes, none of which may fail: each is made exactly once, whoever carries it out.
fn round(dir: &Path, n: u64) -> io::Result<()> {
    let at = |name: &str| dir.join(name);
    fs::create_dir(at("d"))?;
    let file = OpenOptions::new().write(true).create_new(true).open(at("f"))?;
    file.write_all_at(&n.to_ne_bytes(), 0)?;
    setxattr(at("f"), "user.mark", b"value", XattrFlags::CREATE)?;
    fs::hard_link(at("f"), at("d/link"))?;
    assert_eq!(file.metadata()?.nlink(), 2);
    std::os::unix::fs::symlink("target", at("s"))?;
    rename(&at("f"), &at("g"), RenameFlags::NOREPLACE)?;
    fs::write(at("other"), b"other")?;
    rename(&at("g"), &at("other"), RenameFlags::EXCHANGE)?;
    assert_eq!(fs::read(at("other"))?, n.to_ne_bytes());
    assert_eq!(fs::read(at("g"))?, b"other");
    fs::rename(at("d/link"), at("g"))?;
    assert_eq!(fs::read(at("g"))?, n.to_ne_bytes());
    fs::rename(at("d"), at("e"))?;
    removexattr(at("other"), "user.mark")?;
    fs::remove_file(at("g"))?;
    assert_eq!(file.metadata()?.nlink(), 1);
    fs::remove_file(at("other"))?;
    assert_eq!(file.metadata()?.nlink(), 0);
    let mut back = [0; 8];
    File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))?
        .read_exact_at(&mut back, 0)?;
    assert_eq!(back, n.to_ne_bytes());
    fs::remove_file(at("s"))?;
    fs::remove_dir(at("e"))?;
    Ok(())
}

#[test]
fn every_change_is_made_once_whenever_the_daemon_ends() {
    desk(
        "",
        |dir| {
            for t in 0..THREADS {
                tree::write(&dir.join(t.to_string()), &[("there", Item::File(b"stack"))]);
            }
        },
        |desk| {
            let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..THREADS)
                    .map(|t| {
                        let (stop, rounds, dir) = (&stop, &rounds, desk.at(t.to_string()));
                        scope.spawn(move || {
                            while !stop.load(Ordering::Relaxed) {
                                let n = rounds.fetch_add(1, Ordering::Relaxed);
                                if let Err(e) = round(&dir, n) {
                                    stop.store(true, Ordering::Relaxed);
                                    panic!("round {n}: {e}");
                                }
                            }
                        })
                    })
                    .collect();
                let killed = kill_again_and_again(&desk.program, "d", KILLS, &stop);
                stop.store(true, Ordering::Relaxed);
                for worker in workers {
                    worker.join().unwrap();
                }
                assert_eq!(killed, KILLS);
            });
            for t in 0..THREADS {
                let left: Vec<_> =
                    fs::read_dir(desk.at(t.to_string())).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert_eq!(left, ["there"]);
            }
        },
    );
}
