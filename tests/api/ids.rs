//! Owners that are shown as others: id-mapped mounts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{self as rfs, Mode};

use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::twins::as_user;

fn fill(dir: &Path) {
    tree::write(
        dir,
        &[
            ("roots", Item::Mode(b"roots", 0o600)),
            ("users", Item::Mode(b"users", 0o600)),
            ("open", Item::Dir(0o777)),
            ("home/x", Item::File(b"x")),
        ],
    );
    crate::common::sh(dir, "chown 1000:1000 users home home/x; chmod 2775 home").ok();
}

/// On disk 1000 is what the view shows as 70000; root stays root.
const MAP: &str = "uidmap=0:0:1000+1000:70000:1000,gidmap=0:0:1000+1000:70000:1000";

#[test]
fn an_id_mapped_mount_shows_and_takes_mapped_owners() {
    desk(MAP, fill, |d| {
        let owner = |name: &str| {
            let m = fs::metadata(d.at(name)).unwrap();
            (m.uid(), m.gid(), m.mode() & 0o7777)
        };
        let below = |name: &str| {
            let m = fs::metadata(d.user.join(name)).unwrap();
            (m.uid(), m.gid())
        };
        assert_eq!([owner("roots"), owner("users")], [(0, 0, 0o600), (70000, 70000, 0o600)]);
        as_user(70000, 70000, &[], || {
            assert_eq!(fs::read(d.at("users")).unwrap(), b"users");
            assert_eq!(fs::read(d.at("roots")).unwrap_err().raw_os_error(), Some(libc::EACCES));
            fs::write(d.at("users"), "changed").unwrap();
            fs::write(d.at("open/made"), "made").unwrap();
            fs::create_dir(d.at("home/dir")).unwrap();
            std::os::unix::fs::symlink("x", d.at("home/link")).unwrap();
            rfs::chmod(d.at("users"), Mode::from_raw_mode(0o640)).unwrap();
            let given = rfs::chown(d.at("users"), Some(rfs::Uid::from_raw(70001)), None);
            assert_eq!(given, Err(rustix::io::Errno::PERM));
        });
        // Who is not mapped owns nothing here and can make nothing.
        as_user(1000, 1000, &[], || {
            assert_eq!(fs::read(d.at("users")).unwrap_err().raw_os_error(), Some(libc::EACCES));
            let made = fs::write(d.at("open/by-nobody"), "").unwrap_err();
            assert_eq!(made.raw_os_error(), Some(libc::EOVERFLOW));
        });
        rfs::chown(d.at("roots"), Some(rfs::Uid::from_raw(70500)), Some(rfs::Gid::from_raw(70501))).unwrap();
        let unmapped = rfs::chown(d.at("roots"), Some(rfs::Uid::from_raw(5000)), None);
        assert_eq!(unmapped, Err(rustix::io::Errno::OVERFLOW));
        fs::write(d.at("by-root"), "").unwrap();
        for _ in 0..2 {
            assert_eq!(owner("open/made"), (70000, 70000, 0o644));
            assert_eq!(owner("home/dir"), (70000, 70000, 0o2755));
            assert_eq!(owner("roots").0, 70500);
            assert_eq!(owner("users"), (70000, 70000, 0o640));
            assert_eq!(owner("by-root").0, 0);
            d.remount();
        }
        assert_eq!(below("open/made"), (1000, 1000));
        assert_eq!(below("home/dir"), (1000, 1000));
        assert_eq!(below("roots"), (1500, 1501));
        assert_eq!(below("users"), (1000, 1000));
        // ACLs hold mapped ids too.
        d.sh("setfacl -m u:70007:rw users");
        assert!(d.sh("getfacl -cn users").contains("user:70007:rw-"));
        let disk = crate::common::sh(&d.user, "getfacl -cn users").ok().out();
        assert!(disk.contains("user:1007:rw-"), "{disk}");
    });
}

#[test]
fn privileges_end_on_an_id_mapped_mount_too() {
    desk(MAP, fill, |d| {
        d.sh("echo x >file; chmod 6777 file; cp -a file second; cp -a file third");
        as_user(70000, 70000, &[], || {
            use std::io::Write;
            fs::OpenOptions::new().append(true).open(d.at("file")).unwrap().write_all(b"more").unwrap();
            crate::sys::truncate(&std::ffi::CString::new(d.at("second").to_str().unwrap()).unwrap(), 0)
                .unwrap();
        });
        for name in ["file", "second"] {
            assert_eq!(fs::metadata(d.at(name)).unwrap().mode() & 0o7777, 0o777, "{name}");
        }
        assert_eq!(fs::metadata(d.at("third")).unwrap().mode() & 0o7777, 0o6777);
    });
}
