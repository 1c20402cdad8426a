//! Changes that are under way when the daemon ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, XattrFlags, removexattr, renameat_with, setxattr};

use crate::common::desk::desk;
use crate::common::successor::{daemon, kill_again_and_again};
use crate::common::tree::{self, Item};
use crate::common::{Program, Scratch, require_root, within};

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

/// A kernel before 6.9 does not send again what the dead daemon had taken: it fails. Nobody waits for ever.
#[test]
fn where_the_kernel_does_not_send_again_what_was_lost_fails_and_nobody_waits() {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch).with_env("REROOT_RESEND", "no");
    tree::import(&scratch, &program, "os:1", None, |dir| {
        tree::write(dir, &[("there", Item::File(b"stack"))])
    });
    program.ok(&["create", "d", "os:1"]);
    let mount = program.mount("d", scratch.mnt());
    let (point, of) = (mount.path().to_path_buf(), program.clone());
    let lost = within(Duration::from_secs(120), "everybody", move || {
        let (stop, lost) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for t in 0..THREADS {
                let (stop, lost, point) = (&stop, &lost, &point);
                scope.spawn(move || {
                    let text = t.to_string();
                    while !stop.load(Ordering::Relaxed) {
                        let ways = [
                            fs::metadata(point.join("there")).map(drop),
                            File::open(point.join("there")).map(drop),
                            fs::write(point.join(&text), &text),
                            fs::read(point.join(&text)).map(drop),
                            fs::remove_file(point.join(&text)),
                        ];
                        for (way, result) in ways.into_iter().enumerate() {
                            match result {
                                Ok(()) => {}
                                // Made, or removed, and not told so.
                                Err(e) if e.kind() == io::ErrorKind::NotFound && way > 2 => {}
                                Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::ESTALE)) => {
                                    lost.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(e) => {
                                    stop.store(true, Ordering::Relaxed);
                                    panic!("way {way}: {e}");
                                }
                            }
                        }
                    }
                });
            }
            let killed = kill_again_and_again(&of, "d", KILLS, &stop);
            stop.store(true, Ordering::Relaxed);
            assert_eq!(killed, KILLS);
        });
        lost.into_inner()
    });
    assert!(lost <= THREADS * KILLS as u64, "{lost}");
    assert_eq!(mount.sh("cat there; echo more >>there; cat there"), "stackstackmore");
    mount.umount();
}

/// What a daemon made and did not live to give to its owner is not what its owner is told was made.
#[test]
fn what_was_made_in_part_is_made_anew_for_its_owner() {
    desk(
        "",
        |dir| tree::write(dir, &[("there", Item::File(b"stack"))]),
        |desk| {
            fs::create_dir(desk.at("pub")).unwrap();
            fs::set_permissions(desk.at("pub"), fs::Permissions::from_mode(0o777)).unwrap();
            for (script, is) in [
                ("umask 077; : >pub/new", "1234 600"),
                ("umask 022; mkdir pub/new; : >pub/new/in; rm pub/new/in", "1234 755"),
                ("umask 027; mkfifo pub/new", "1234 640"),
                ("ln -s target pub/new", "1234 777"),
            ] {
                let pid = daemon(&desk.program, "d").to_string();
                let mut strace = Command::new("strace")
                    .args(["-f", "-p", &pid, "-o", "/dev/null", "-e", "trace=fchown,fchownat,lchown,chown"])
                    .args(["-e", "inject=fchown,fchownat,lchown,chown:signal=KILL:when=1"])
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                // It says so when it is there.
                let mut said = BufReader::new(strace.stderr.take().unwrap());
                let mut line = String::new();
                said.read_line(&mut line).unwrap();
                assert!(line.contains("attached"), "{line}");
                let answer = desk.sh_as_user(script);
                answer.ok();
                strace.wait().unwrap();
                let seen = desk.sh("stat -c '%u %a' pub/new");
                assert_eq!(seen, is, "{script}");
                assert_ne!(daemon(&desk.program, "d").to_string(), pid, "{script}: nobody was killed");
                desk.sh("rm -r pub/new");
                std::thread::sleep(Duration::from_millis(1100));
            }
        },
    );
}
