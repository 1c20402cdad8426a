//! Translation between fuser and the view, and nothing else: each request takes its pin, asks the view, and
//! answers. What the adapter is stands in `fuse/adapter.rs`.

mod adapter;
mod again;
mod backings;
mod servers;
mod values;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::sys::inode_flags;
use crate::sys::xattr::{Set, VALUE_MAX};
use crate::union::Fail;
use crate::union::attributes::Change;
use crate::union::data::Way;
use crate::union::flags::Target;
use crate::union::names::{Make, Replace};
use adapter::{BRIEFLY, Dirs, KEEP, NO_HANDLE};
use values::*;

pub use adapter::{Adapter, Line, Manner};
pub use servers::Servers;

/// Reads of more bytes than this may take long.
const AT_ONCE: u32 = 64 << 10;

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PASSTHROUGH;
        let wanted = if self.manner.map_ids { wanted | InitFlags::FUSE_ALLOW_IDMAP } else { wanted };
        for flag in wanted.iter() {
            if let Err(missing) = config.add_capabilities(flag) {
                log::warn!("the kernel does not offer {missing:?}");
                if flag == InitFlags::FUSE_PASSTHROUGH {
                    self.view.no_passthrough();
                }
            }
        }
        if self.view.never_changes()
            && self.dirs == Dirs::Kept
            && config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok()
        {
            self.dirs = Dirs::Unasked;
        }
        if self.view.never_changes() && config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok() {
            // One look at pages that are there costs less than the answer to an open; nothing goes past the daemon then.
            self.view.no_passthrough();
            self.opens_unasked = true;
        }
        let _ = config.set_max_stack_depth(1);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _serving = self.serve_on_the_way(req);
        let pin = self.view.pin();
        match self.view.lookup(&pin, parent.0, name.as_bytes()) {
            Ok(None) if matches!(name.as_bytes(), b"." | b"..") => reply.error(Errno::ENOENT),
            Ok(None) => reply.entry(&KEEP, &nothing(), Generation(0)),
            Ok(Some(found)) => self.entry(Ok(found), reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.view.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _serving = self.serve_on_the_way(req);
        let pin = self.view.pin();
        self.attributes(self.view.getattr(&pin, ino.0), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _serving = if size.is_some() { self.serve_slowly(req) } else { self.serve(req) };
        self.changing();
        let pin = self.view.pin();
        let change = Change { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        let result = self.view.setattr(&pin, ino.0, &change, caller(req));
        match &result {
            Err(Fail(libc::ESTALE)) => self.again(),
            _ => self.dir_changed(&pin, ino.0),
        }
        self.attributes(result, reply);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _serving = self.serve_on_the_way(req);
        let pin = self.view.pin();
        match self.view.readlink(&pin, ino.0) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let what = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => Make::File,
            format => Make::Special(format, decode_rdev(rdev)),
        };
        let name = name.as_bytes();
        let make = || self.view.make(&pin, parent.0, name, what, mode, umask, caller(req));
        self.entry(self.made(req, &pin, (parent, name), make), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let name = name.as_bytes();
        let make = || self.view.make(&pin, parent.0, name, Make::Dir, mode, umask, caller(req));
        self.entry(self.made(req, &pin, (parent, name), make), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        empty(Self::removed(req, self.view.unlink(&pin, parent.0, name.as_bytes())), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        empty(Self::removed(req, self.view.rmdir(&pin, parent.0, name.as_bytes())), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let what = Make::Symlink(target.as_os_str().as_bytes());
        let name = name.as_bytes();
        let make = || self.view.make(&pin, parent.0, name, what, 0o777, 0, caller(req));
        self.entry(self.made(req, &pin, (parent, name), make), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let how = match flags.bits() {
            0 => Replace::Yes,
            libc::RENAME_NOREPLACE => Replace::No,
            libc::RENAME_EXCHANGE => Replace::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = (name.as_bytes(), newname.as_bytes());
        let result = self.renamed(req, &pin, (parent, from), (newparent, to), how);
        if result.is_ok() && parent != newparent {
            self.moved(&pin, newparent.0, to);
            if how == Replace::Exchange {
                self.moved(&pin, parent.0, from);
            }
        }
        empty(result, reply);
        if how == Replace::Exchange {
            self.view.exchange_ends(first(req));
        }
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let made = self.view.link(&pin, ino.0, newparent.0, newname.as_bytes());
        self.entry(self.linked(req, &pin, (ino, newparent, newname.as_bytes()), made), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        let _serving = if writes { self.serve_slowly(req) } else { self.serve_on_the_way(req) };
        if self.opens_unasked {
            return reply.error(Errno::ENOSYS);
        }
        if writes {
            self.changing();
        }
        self.close_never_given(req);
        let pin = self.view.pin();
        let opened = match self.view.open(&pin, ino.0, flags.0, caller(req)) {
            Ok(opened) => opened,
            Err(e) => {
                if e.0 == libc::ESTALE {
                    self.again();
                }
                return reply.error(errno(e));
            }
        };
        let fh = FileHandle(opened.fh);
        let keep = match opened.way {
            Way::Cached { keep } => keep,
            Way::Passed => match self.backings.of(&self.view, &opened, &reply, ReplyOpen::wrap_backing) {
                Ok(Some((number, backing))) => {
                    self.view.note_open(opened.fh, first(req), Some(number));
                    return reply.opened_passthrough(fh, FopenFlags::empty(), &backing);
                }
                Ok(None) => self.view.passthrough_failed(opened.fh).unwrap_or(false),
                Err(e) => {
                    let _ = self.backings.close(&self.view, opened.fh);
                    return reply.error(errno(e));
                }
            },
        };
        self.view.note_open(opened.fh, first(req), None);
        reply.opened(fh, if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        self.close_never_given(req);
        let create = || self.view.create(&pin, parent.0, name.as_bytes(), mode, umask, caller(req));
        match self.made(req, &pin, (parent, name.as_bytes()), create) {
            Ok((node, attributes, opened)) => {
                let (fh, generation) = (FileHandle(opened.fh), Generation(node.generation));
                if matches!(opened.way, Way::Passed) {
                    match self.backings.of(&self.view, &opened, &reply, ReplyCreate::wrap_backing) {
                        Ok(Some((number, backing))) => {
                            self.view.note_open(opened.fh, first(req), Some(number));
                            // The lifetime is for entry and attributes alike. The kernel itself drops the
                            // attributes at each write; what a mapping does may stay unseen for this long. With
                            // none at all it would ask for them once more before the open returns.
                            return reply.created_passthrough(
                                &BRIEFLY,
                                &attr(&attributes),
                                generation,
                                fh,
                                FopenFlags::empty(),
                                &backing,
                            );
                        }
                        // The file is made. Where there is no descriptor to register, its bytes go through the daemon.
                        Ok(None) | Err(_) => {
                            let _ = self.view.passthrough_failed(opened.fh);
                        }
                    }
                }
                self.view.note_open(opened.fh, first(req), None);
                reply.created(&KEEP, &attr(&attributes), generation, fh, FopenFlags::empty());
            }
            // A swap has brought the name since the kernel looked: it walks again and opens what is there.
            Err(Fail(libc::EEXIST)) if flags & libc::O_EXCL == 0 => reply.error(Errno::ESTALE),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _serving = if size > AT_ONCE { self.serve_slowly(req) } else { self.serve(req) };
        let mut buf = vec![0; size as usize];
        let read = match fh {
            NO_HANDLE => self.view.read_unchanging(ino.0, offset, &mut buf),
            fh => self.view.read(fh.0, offset, &mut buf),
        };
        match read {
            Ok(n) => reply.data(buf.get(..n).unwrap_or_default()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _serving = self.serve_slowly(req);
        self.changing();
        let pin = self.view.pin();
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| caller(req));
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        match self.view.write(&pin, fh.0, offset, data, kill, mapped) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve(req);
        empty(self.backings.close(&self.view, fh.0), reply);
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve(req);
        // Nothing is held back until a close: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let _serving = self.serve(req);
        match fh {
            NO_HANDLE => reply.ok(),
            fh => empty(self.view.fsync(fh.0, datasync), reply),
        }
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _serving = self.serve_on_the_way(req);
        let flags = match self.dirs {
            // The kernel asks no more, and opens every directory as kept.
            Dirs::Unasked => return reply.error(Errno::ENOSYS),
            Dirs::Kept => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            Dirs::Read => FopenFlags::empty(),
        };
        if is_again(req) {
            self.view.drop_dirs_never_given(first(req));
        }
        let pin = self.view.pin();
        match self.view.opendir(&pin, ino.0) {
            Ok(fh) => {
                self.view.note_dir_open(fh, ino.0, first(req));
                reply.opened(FileHandle(fh), flags)
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _serving = self.serve(req);
        let pin = self.view.pin();
        match self.listing(&pin, ino, fh, offset) {
            Ok(listing) => {
                for (place, item) in listing.after(offset) {
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(INodeNo(item.id), *place, kind(item.format), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _serving = self.serve(req);
        let pin = self.view.pin();
        let listing = match self.listing(&pin, ino, fh, offset) {
            Ok(listing) => listing,
            Err(e) => return reply.error(errno(e)),
        };
        for (next, item) in listing.after(offset) {
            let (next, name) = (*next, OsStr::from_bytes(&item.name));
            let dots = matches!(&item.name[..], b"." | b"..");
            let found = if dots { Ok(None) } else { self.view.item(&pin, ino.0, &item.name) };
            let full = match found {
                Ok(Some((node, a))) => {
                    let ttl = self.attr_ttl(node.id);
                    let full =
                        reply.add(INodeNo(a.ino), next, name, &ttl, &attr(&a), Generation(node.generation));
                    if !full {
                        self.view.listed(&pin, &node);
                    }
                    full
                }
                // A name whose node cannot be had, for instance since its marks are damaged: programs pass over
                // number 0, so it gets one that nothing has. The impossible size makes the kernel list the name
                // and link no inode to it; whoever looks at it asks us and hears the error.
                Err(_) => {
                    let mut bare = nothing();
                    bare.kind = kind(item.format);
                    (bare.ino, bare.size) = (INodeNo(crate::union::node::UNKNOWN), u64::MAX);
                    reply.add(INodeNo(item.id), next, name, &Duration::ZERO, &bare, Generation(0))
                }
                // Gone meanwhile; number 0 is passed over.
                Ok(None) => {
                    let mut bare = nothing();
                    bare.kind = kind(item.format);
                    bare.ino = INodeNo(if dots { item.id } else { 0 });
                    reply.add(INodeNo(item.id), next, name, &Duration::ZERO, &bare, Generation(0))
                }
            };
            if full {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let _serving = self.serve(req);
        self.view.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _serving = self.serve(req);
        let pin = self.view.pin();
        empty(self.view.fsyncdir(&pin, ino.0), reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _serving = self.serve(req);
        match self.view.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.bfree,
                s.bavail,
                s.files,
                s.ffree,
                s.bsize,
                s.namelen.min(255),
                s.frsize,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let how = match flags {
            libc::XATTR_CREATE => Set::Create,
            libc::XATTR_REPLACE => Set::Replace,
            0 => Set::Any,
            _ => Set::Both,
        };
        if value.len() > VALUE_MAX {
            return reply.error(Errno::E2BIG);
        }
        let result = self.view.setxattr(&pin, ino.0, name.as_bytes(), value, how, caller(req));
        let result = self.attribute_set(req, (&pin, ino), (name.as_bytes(), value, how), result);
        self.dir_changed(&pin, ino.0);
        empty(result, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _serving = self.serve(req);
        let pin = self.view.pin();
        answer_xattr(self.view.getxattr(&pin, ino.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _serving = self.serve(req);
        let pin = self.view.pin();
        answer_xattr(self.view.listxattr(&pin, ino.0, caller(req)), size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _serving = self.serve(req);
        self.changing();
        let pin = self.view.pin();
        let result = Self::removed(req, self.view.removexattr(&pin, ino.0, name.as_bytes()));
        self.dir_changed(&pin, ino.0);
        empty(result, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _serving = self.serve_slowly(req);
        self.changing();
        let pin = self.view.pin();
        empty(self.view.fallocate(&pin, fh.0, mode as u32, offset, length, caller(req)), reply);
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _serving = self.serve_slowly(req);
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let found = match fh {
            NO_HANDLE => self.view.lseek_unchanging(ino.0, offset, hole),
            fh => self.view.lseek(fh.0, offset, hole),
        };
        match found {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _serving = self.serve_slowly(req);
        self.changing();
        match self.view.copy_range(fh_in.0, offset_in, fh_out.0, offset_out, len) {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let _serving = self.serve_slowly(req);
        let at = if flags.contains(IoctlFlags::FUSE_IOCTL_DIR) || fh == NO_HANDLE {
            Target::Number(ino.0)
        } else {
            Target::Handle(fh.0)
        };
        let set = |flags: u32| {
            self.changing();
            let pin = self.view.pin();
            let result = self.view.set_flags(&pin, at, flags);
            let _ = self.wake.send(());
            result.map(|()| Vec::new())
        };
        let get = || self.view.get_flags(at);
        let result = match (cmd, in_data) {
            (inode_flags::GET | inode_flags::GET_32, _) => get().map(|f| f.to_ne_bytes().to_vec()),
            (inode_flags::SET | inode_flags::SET_32, [a, b, c, d, ..]) => {
                set(u32::from_ne_bytes([*a, *b, *c, *d]))
            }
            (inode_flags::GET_EXTENDED, _) => get().map(inode_flags::extended),
            (inode_flags::SET_EXTENDED, data) => {
                get().and_then(|now| set(inode_flags::of_extended(now, data)?))
            }
            _ => Err(Fail(libc::ENOTTY)),
        };
        match result {
            Ok(out) => reply.ioctl(0, &out),
            Err(e) => reply.error(errno(e)),
        }
    }
}
