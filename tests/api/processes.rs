//! Programs that run while their file changes.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs as rfs;

use crate::common::desk::desk;
use crate::common::sh;
use crate::twins::{OTHER, as_user, twins};

fn fill(dir: &Path) {
    // Copied by another process: a descriptor for writing that a process started meanwhile inherits makes a program busy.
    sh(dir, "cp /usr/bin/cat cat; cp /usr/bin/cat other; printf '#!/bin/sh\\necho script\\n' >script; chmod 755 script; cp script plain; chmod 644 plain; mkdir dir").ok();
}

/// A program that runs until it is killed. It is running, and not only started, when this returns.
struct Running(Child);

impl Running {
    fn start(path: &Path) -> Running {
        use std::io::{Read, Write};
        let mut child = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        let mut echo = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut echo).unwrap();
        Running(child)
    }

    fn stop(mut self) -> bool {
        drop(self.0.stdin.take());
        self.0.wait().unwrap().success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_running_program_is_busy_and_may_be_replaced() {
    twins(fill, |at| {
        let path = at.path("cat");
        let running = Running::start(&path);
        at.did("write", OpenOptions::new().write(true).open(&path).map(drop));
        at.did("append", OpenOptions::new().append(true).open(&path).map(drop));
        at.did("empty", File::create(&path).map(drop));
        at.did("truncate", rustix_truncate(&path));
        at.did("chmod", rfs::chmod(&path, rfs::Mode::from_raw_mode(0o700)));
        at.did("attribute", rfs::setxattr(&path, "user.x", b"y", rfs::XattrFlags::empty()));
        at.did("link", fs::hard_link(&path, at.path("second")));
        at.did("write by the other name", OpenOptions::new().write(true).open(at.path("second")).map(drop));
        at.did("move", fs::rename(&path, at.path("dir/moved")));
        at.did(
            "write where it was moved",
            OpenOptions::new().write(true).open(at.path("dir/moved")).map(drop),
        );
        let again = Running::start(&at.path("dir/moved"));
        at.did("replace", fs::rename(at.path("other"), at.path("dir/moved")));
        at.did("remove", fs::remove_file(at.path("second")));
        at.note("went on", (running.stop(), again.stop()));
        let third = Running::start(&at.path("dir/moved"));
        at.note("the new one runs", third.stop());
    });
}

/// `truncate(2)` to another length than it has.
fn rustix_truncate(path: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    crate::sys::truncate(&std::ffi::CString::new(path.as_os_str().as_bytes())?, 10)
}

#[test]
fn execution_is_refused_as_on_ext4() {
    twins(fill, |at| {
        let run = |name: &str| {
            let out = Command::new(at.path(name)).stdin(Stdio::null()).output();
            at.did(&format!("run {name}"), out.map(|o| (o.status.code(), o.stdout)));
        };
        for name in ["cat", "script", "plain", "dir", "absent", "script/x"] {
            run(name);
            as_user(OTHER, OTHER, &[], || run(name));
        }
        at.did("chmod", rfs::chmod(at.path("plain"), rfs::Mode::from_raw_mode(0o754)));
        run("plain");
        as_user(OTHER, OTHER, &[], || run("plain"));
        at.did("chmod", rfs::chmod(at.path("plain"), rfs::Mode::from_raw_mode(0o644)));
        run("plain");
        at.did(
            "append",
            sh(at.dir(), "echo 'echo more' >>script").code.ok_or(std::io::Error::other("killed")),
        );
        run("script");
    });
}

#[test]
fn a_program_is_executed_while_it_is_copied_up() {
    let fill = |dir: &Path| {
        // Large enough that the copy takes a while: an executable with a long tail.
        sh(dir, "cp /usr/bin/cat cat; truncate -s 1M cat; head -c 50000000 /dev/urandom >>cat").ok();
    };
    desk("", fill, |d| {
        let bytes = fs::read(d.at("cat")).unwrap();
        for round in 0..3 {
            let path = d.at("cat");
            let writer = path.clone();
            // Opening for writing copies it up; a program that starts meanwhile runs or hears that it is busy, as
            // the one that opens does.
            let copying = std::thread::spawn(move || OpenOptions::new().append(true).open(writer).map(drop));
            let mut ran = 0;
            loop {
                let done = copying.is_finished();
                match Command::new(&path).stdin(Stdio::null()).status() {
                    Ok(status) => {
                        assert!(status.success());
                        ran += 1;
                    }
                    Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ETXTBSY), "{e}"),
                }
                if done && ran > 0 {
                    break;
                }
            }
            match copying.join().unwrap() {
                Ok(()) => {}
                Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ETXTBSY), "{e}"),
            }
            assert!(fs::read(&path).unwrap() == bytes, "round {round}");
            if round == 1 {
                d.remount();
            }
        }
    });
}
