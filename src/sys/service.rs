//! The service manager that started this process, if one did (sd_notify(3), systemd's file-descriptor store). Where none
//! did, nothing is said and nothing is held.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use sd_notify::{NotifyState, notify, notify_with_fds};

/// It is told that the service is there.
pub fn ready() -> io::Result<()> {
    notify(&[NotifyState::Ready])
}

/// Gives it a descriptor to hold, under a name. As long as it holds that, a next process of the service is given it. It
/// does not wait for events on it: it could not for one that is a path only, and FUSE's device has many. May wait for it.
pub fn hold(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let unwatched = NotifyState::Custom("FDPOLL=0");
    notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name), unwatched], &[fd])
}

/// It need not hold what has that name.
pub fn let_go(name: &str) -> io::Result<()> {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

/// What it held for this service, by name. To be called once, before this process opens anything.
pub fn held() -> io::Result<Vec<(String, OwnedFd)>> {
    let fds = sd_notify::listen_fds_with_names()?;
    // SAFETY: by sd_listen_fds(3) these numbers are open and this process's own; this is called once, so that nobody else
    // owns them.
    Ok(fds.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}
