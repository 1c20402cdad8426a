//! The kernel itself keeps read-only layers read-only: a backing file that was opened beneath the private
//! read-only clone cannot be written through passthrough, even when a daemon makes the mistake of answering an
//! open for writing with it.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Scratch, within};
use fuser::{
    BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, OpenFlags, ReplyAttr, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use reroot::sys::fs::{Open, open_beneath};
use reroot::sys::mount;
use std::ffi::OsStr;
use std::sync::Mutex;

/// A file system with one file, `object`, every open of which goes to the same backing file, whatever the
/// caller wants to do with it: the mistake.
struct Careless {
    backing: File,
    kept: Mutex<Vec<BackingId>>,
}

fn attr(ino: u64) -> FileAttr {
    let dir = ino == 1;
    let now = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: 8,
        blocks: 8,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: if dir { FileType::Directory } else { FileType::RegularFile },
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Careless {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(|_| std::io::ErrorKind::Unsupported)?;
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "object" {
            reply.entry(&Duration::from_secs(60), &attr(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(60), &attr(ino.0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match reply.open_backing(&self.backing) {
            Ok(backing) => {
                reply.opened_passthrough(FileHandle(1), FopenFlags::empty(), &backing);
                self.kept.lock().unwrap().push(backing);
            }
            Err(e) => reply.error(Errno::from_i32(e.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

/// Mounts a careless file system over `backing`, opens its file for reading and writing, and gives back what
/// came of a write.
fn write_through(point: PathBuf, backing: File) -> Result<(), Option<i32>> {
    let how =
        mount::FuseMount { source: "careless".into(), allow_other: true, ..mount::FuseMount::default() };
    let (device, detached) = mount::fuse_detached(&how).unwrap();
    let careless = Careless { backing, kept: Mutex::default() };
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let session = Session::from_fd(careless, device, SessionACL::All, config).unwrap();
    let serving = std::thread::spawn(move || session.run());
    detached.attach(&point).unwrap();
    let file = point.join("object");
    let written = within(Duration::from_secs(30), "a write through passthrough", move || {
        let mut text = String::new();
        File::open(&file).and_then(|mut f| f.read_to_string(&mut text)).map_err(|e| e.raw_os_error())?;
        assert_eq!(text, "content\n", "reading goes past the daemon");
        let open = OpenOptions::new().read(true).write(true).open(&file);
        open.and_then(|mut f| f.write_all(b"WRITTEN")).map_err(|e| e.raw_os_error())
    });
    mount::unmount(&point, true).unwrap();
    let _ = within(Duration::from_secs(30), "the end of the session", move || serving.join());
    written
}

fn object(scratch: &Scratch) -> PathBuf {
    let dir = scratch.dir("objects");
    fs::write(dir.join("object"), "content\n").unwrap();
    dir
}

fn beneath(dir: impl std::os::fd::AsFd) -> File {
    File::from(open_beneath(dir, b"object", Open::Read).unwrap())
}

#[test]
fn an_object_beneath_the_read_only_clone_cannot_be_written_by_mistake() {
    common::require_root();
    let scratch = Scratch::new();
    let dir = object(&scratch);
    let clone = mount::read_only_clone(&dir).unwrap();
    let written = write_through(scratch.mnt(), beneath(&clone));
    assert_eq!(written, Err(Some(libc::EIO)));
    assert_eq!(fs::read(dir.join("object")).unwrap(), b"content\n");
}

/// Why the clone is there: without it the same mistake, with a descriptor that is open only for reading,
/// changes the object.
#[test]
fn without_the_clone_the_same_mistake_destroys_the_object() {
    common::require_root();
    let scratch = Scratch::new();
    let dir = object(&scratch);
    let written = write_through(scratch.mnt(), beneath(File::open(Path::new(&dir)).unwrap()));
    assert_eq!(written, Ok(()));
    assert_eq!(fs::read(dir.join("object")).unwrap(), b"WRITTEN\n");
}
