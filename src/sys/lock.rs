//! Advisory locks between processes (`flock(2)`): they end with the process, whatever ends it, unless
//! another one holds the same descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// A lock that another process took and handed on with its descriptor.
    pub fn handed_on(fd: OwnedFd) -> Lock {
        Lock(fd.into())
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends a lock, whoever else holds its descriptor.
pub fn release(fd: impl AsFd) -> io::Result<()> {
    Ok(flock(fd, FlockOperation::Unlock)?)
}

/// How a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// With other shared holders.
    Shared,
    /// With nobody.
    Exclusive,
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Waits until the lock on the file `path` (made if missing) is held.
pub fn wait(path: &Path, share: Share) -> io::Result<Lock> {
    let file = open(path)?;
    let op = match share {
        Share::Shared => FlockOperation::LockShared,
        Share::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        match flock(&file, op) {
            Err(rustix::io::Errno::INTR) => continue,
            r => return r.map(|()| Lock(file)).map_err(io::Error::from),
        }
    }
}

/// Takes the lock if nobody stands in the way; `None` otherwise.
pub fn attempt(path: &Path, share: Share) -> io::Result<Option<Lock>> {
    attempt_on(open(path)?, share)
}

/// The same for a lock on a directory itself, in which nothing is made.
pub fn attempt_dir(path: &Path, share: Share) -> io::Result<Option<Lock>> {
    attempt_on(File::open(path)?, share)
}

fn attempt_on(file: File, share: Share) -> io::Result<Option<Lock>> {
    let op = match share {
        Share::Shared => FlockOperation::NonBlockingLockShared,
        Share::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(&file, op) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
