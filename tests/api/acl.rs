//! POSIX ACLs, default ACLs, umask, setgid directories.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{self as rfs, CWD, FileType, Mode, XattrFlags};

use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::{At, OTHER, as_user, twins};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// An ACL as it stands in the attribute (`acl_ea_header` of the kernel): tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(perm.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHERS: u16 = 32;
const NOBODY: u32 = u32::MAX;

fn fill(dir: &Path) {
    tree::write(
        dir,
        &[
            ("file", Item::Mode(b"content", 0o640)),
            ("with", Item::Mode(b"with", 0o640)),
            ("suid", Item::Mode(b"suid", 0o6755)),
            ("dir/x", Item::File(b"x")),
            ("default/x", Item::File(b"x")),
            ("narrow", Item::Dir(0o700)),
            ("team", Item::Dir(0o2775)),
            ("open", Item::Dir(0o777)),
            ("theirs", Item::Mode(b"theirs", 0o640)),
        ],
    );
    crate::common::sh(
        dir,
        "setfacl -m u:1234:rw,g:77:r with
         setfacl -d -m u:1234:rwx,g:77:rx,o::- default; setfacl -m u:1234:rwx default
         setfacl -d -m u::rw,g::-,o::- narrow
         chown :77 team; chmod 2775 team; setfacl -d -m u:1234:rwx,m:rx team
         chown 1234:77 theirs; chmod 2755 theirs; chmod 777 .",
    )
    .ok();
}

fn made(at: &At, dir: &str, prefix: &str) {
    for mode in [0o777, 0o666, 0o600, 0o7777, 0o2711, 0] {
        let name = |kind: &str| format!("{dir}/{prefix}-{kind}-{mode:o}");
        let mode = Mode::from_raw_mode(mode);
        at.did("mkdir", rfs::mkdir(at.path(name("dir")), mode));
        let flags = rfs::OFlags::CREATE | rfs::OFlags::RDWR;
        at.did("open", rfs::open(at.path(name("file")), flags, mode).map(drop));
        at.did("mknod", rfs::mknodat(CWD, at.path(name("node")), FileType::RegularFile, mode, 0));
        at.did("fifo", rfs::mknodat(CWD, at.path(name("fifo")), FileType::Fifo, mode, 0));
        at.did("socket", rfs::mknodat(CWD, at.path(name("socket")), FileType::Socket, mode, 0));
        for kind in ["dir", "file", "node", "fifo", "socket"] {
            at.look(&name(kind));
        }
        at.did("deeper", rfs::mkdir(at.path(name("dir")).join("deeper"), mode));
        at.look(&format!("{}/deeper", name("dir")));
    }
    at.did("symlink", std::os::unix::fs::symlink("x", at.path(format!("{dir}/{prefix}-link"))));
    at.look(&format!("{dir}/{prefix}-link"));
}

#[test]
fn new_files_take_modes_groups_and_acls_as_on_ext4() {
    twins(fill, |at| {
        std::thread::scope(|scope| {
            for mask in [0o022, 0o077, 0, 0o777] {
                scope
                    .spawn(move || {
                        sys::own_umask(mask);
                        for dir in ["dir", "default", "narrow", "team", "open", "."] {
                            made(at, dir, &format!("root{mask:o}"));
                        }
                    })
                    .join()
                    .unwrap();
                for (who, groups) in [("in", &[77u32][..]), ("out", &[][..])] {
                    as_user(OTHER, OTHER, groups, || {
                        sys::own_umask(mask);
                        for dir in ["dir", "default", "team", "open"] {
                            made(at, dir, &format!("{who}{mask:o}"));
                        }
                    });
                }
            }
        });
    });
}

#[test]
fn acls_and_modes_follow_each_other() {
    twins(fill, |at| {
        let set = |path: &str, name: &str, value: &[u8]| {
            at.did(
                &format!("set {path} {name}"),
                rfs::setxattr(at.path(path), name, value, XattrFlags::empty()),
            );
            at.look(path);
        };
        let get = |path: &str, name: &str| {
            let mut value = [0; 200];
            let n = at.did(&format!("get {path} {name}"), rfs::getxattr(at.path(path), name, &mut value[..]));
            at.note("acl", &value[..n.unwrap_or(0)]);
        };
        let minimal = acl(&[(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHERS, 0, NOBODY)]);
        let full = acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, OTHER),
            (GROUP_OBJ, 5, NOBODY),
            (GROUP, 4, 77),
            (MASK, 6, NOBODY),
            (OTHERS, 1, NOBODY),
        ]);
        for path in ["file", "with", "suid", "dir", "default"] {
            for name in [ACCESS, DEFAULT] {
                get(path, name);
                set(path, name, &full);
                get(path, name);
                for mode in [0o600, 0o777, 0o2750] {
                    at.did("chmod", rfs::chmod(at.path(path), Mode::from_raw_mode(mode)));
                    get(path, name);
                    at.look(path);
                }
                set(path, name, &minimal);
                get(path, name);
                set(path, name, &full);
                // What is no ACL.
                set(path, name, b"");
                set(path, name, b"\x02\0\0\0");
                set(path, name, b"\x01\0\0\0\x01\0\x07\0\xff\xff\xff\xff");
                set(path, name, &full[..20]);
                set(path, name, &acl(&[(USER_OBJ, 6, NOBODY), (OTHERS, 0, NOBODY)]));
                set(path, name, &acl(&[(USER_OBJ, 9, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHERS, 0, NOBODY)]));
                get(path, name);
                at.did("remove", rfs::removexattr(at.path(path), name));
                at.did("remove", rfs::removexattr(at.path(path), name));
                get(path, name);
                at.look(path);
            }
        }
    });
}

#[test]
fn acls_decide_who_may_and_who_may_change_them() {
    twins(fill, |at| {
        let rights = acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 7, OTHER),
            (GROUP_OBJ, 5, NOBODY),
            (MASK, 7, NOBODY),
            (OTHERS, 0, NOBODY),
        ]);
        for (uid, gid, groups) in [(OTHER, OTHER, &[][..]), (55, 77, &[]), (55, 55, &[77]), (55, 55, &[])] {
            as_user(uid, gid, groups, || {
                for path in ["file", "with", "default", "default/x", "narrow", "team", "theirs"] {
                    at.did(&format!("{uid}:{gid} reads {path}"), File::open(at.path(path)).map(drop));
                    at.did("writes", File::options().append(true).open(at.path(path)).map(drop));
                    at.did("sets", rfs::setxattr(at.path(path), ACCESS, &rights, XattrFlags::empty()));
                    at.did(
                        "sets the default",
                        rfs::setxattr(at.path(path), DEFAULT, &rights, XattrFlags::empty()),
                    );
                    let mut value = [0; 200];
                    at.did("gets", rfs::getxattr(at.path(path), ACCESS, &mut value[..]));
                    at.look(path);
                }
                at.did("makes", fs::create_dir(at.path(format!("default/by-{uid}-{gid}"))));
            });
        }
    });
}
