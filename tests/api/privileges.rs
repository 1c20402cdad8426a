//! setuid, setgid and capabilities end with a change, as on ext4.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs as rfs;

use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::{At, OTHER, as_user, twins, twins_on};

const STEPS: [&str; 12] = [
    "write",
    "append",
    "truncate",
    "ftruncate",
    "o_trunc",
    "allocate",
    "punch",
    "mapping",
    "range",
    "nothing",
    "read",
    "splice",
];
const MODES: [u32; 4] = [0o6777, 0o6766, 0o2777, 0o4776];

fn fill(dir: &Path) {
    for who in ["root", "other", "owner"] {
        for step in STEPS {
            for mode in MODES {
                let name = format!("{who}-{step}-{mode:o}");
                let bytes = vec![b'x'; if step == "mapping" { 1_100_000 } else { 9000 }];
                tree::write(dir, &[(&name, Item::Mode(&bytes, mode))]);
            }
        }
    }
    let set = "for f in *-6777; do setcap cap_net_raw+ep $f; done
               for f in owner-*; do m=$(stat -c %a $f); chown 1234:1234 $f; chmod $m $f; done
               for f in owner-*-6777; do setcap cap_net_raw+ep $f; done";
    crate::common::sh(dir, &format!("PATH=$PATH:/usr/sbin:/sbin\n{set}")).ok();
}

fn change(at: &At, step: &str, name: &str) {
    let path = at.path(name);
    let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    match step {
        "write" => drop(at.did("write", open().write_at(b"changed", 5))),
        "append" => {
            use std::io::Write;
            at.did("append", OpenOptions::new().append(true).open(&path).unwrap().write(b"more"));
        }
        "truncate" => drop(at.did("truncate", truncate(&path, 100))),
        "ftruncate" => drop(at.did("ftruncate", open().set_len(20_000))),
        "o_trunc" => drop(at.did("o_trunc", File::create(&path).map(drop))),
        "allocate" => drop(at.did("allocate", sys::fallocate(&open(), 0, 0, 30_000))),
        "punch" => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            at.did("punch", sys::fallocate(&open(), mode, 0, 4096));
        }
        "range" => {
            let file = open();
            let (mut a, mut b) = (0, 5000);
            at.did("range", rfs::copy_file_range(&file, Some(&mut a), &file, Some(&mut b), 100));
        }
        "splice" => {
            let (out, input) = rustix::pipe::pipe().unwrap();
            rustix::io::write(&input, b"through a pipe").unwrap();
            let mut offset = 3;
            let flags = rustix::pipe::SpliceFlags::empty();
            at.did("splice", rustix::pipe::splice(&out, None, open(), Some(&mut offset), 10, flags));
        }
        "mapping" => {
            let map = sys::map(&open(), 4096).unwrap();
            sys::store(&map, 10, b"mapped");
            at.did("msync", map.flush());
        }
        "nothing" => drop(open()),
        "read" => drop(at.did("read", fs::read(&path).map(|b| b.len()))),
        _ => unreachable!("{step}"),
    }
    at.note(name, (format!("{:o}", fs::metadata(&path).unwrap().mode()), has_capability(&path)));
}

fn truncate(path: &Path, len: i64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    sys::truncate(&std::ffi::CString::new(path.as_os_str().as_bytes())?, len)
}

fn has_capability(path: &Path) -> bool {
    rfs::lgetxattr(path, "security.capability", &mut [0; 64][..]).is_ok()
}

fn changed(at: &At) {
    for step in STEPS {
        for mode in MODES {
            change(at, step, &format!("root-{step}-{mode:o}"));
        }
    }
    for who in ["other", "owner"] {
        as_user(OTHER, OTHER, &[], || {
            for step in STEPS {
                for mode in MODES {
                    change(at, step, &format!("{who}-{step}-{mode:o}"));
                }
            }
        });
    }
}

#[test]
fn every_change_of_the_content_ends_privileges() {
    twins(fill, changed);
}

#[test]
fn every_change_through_the_daemon_ends_privileges() {
    twins_on("data=coherent", fill, changed);
}

#[test]
fn a_change_of_the_owner_ends_privileges() {
    twins(fill, |at| {
        let chown = |name: &str, uid: Option<u32>, gid: Option<u32>| {
            let (u, g) = (uid.map(rfs::Uid::from_raw), gid.map(rfs::Gid::from_raw));
            at.did(&format!("chown {name} {uid:?}:{gid:?}"), rfs::chown(at.path(name), u, g));
            at.note("after", (fs::metadata(at.path(name)).unwrap().mode(), has_capability(&at.path(name))));
        };
        for mode in MODES {
            for (step, uid, gid) in [
                // With capabilities root's is another matter, see tests/limits.rs.
                ("write", if mode == 0o6777 { Some(0) } else { None }, None),
                ("append", Some(0), None),
                ("truncate", Some(5), Some(5)),
                ("ftruncate", None, Some(0)),
                ("punch", None, Some(5)),
            ] {
                chown(&format!("root-{step}-{mode:o}"), uid, gid);
                as_user(OTHER, OTHER, &[77], || {
                    let name = format!("owner-{step}-{mode:o}");
                    chown(&name, None, Some(77));
                    chown(&name, uid, gid);
                    chown(&name, None, None);
                });
            }
        }
    });
}
