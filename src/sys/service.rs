//! The service manager that started this process, if one did (sd_notify(3), systemd's file-descriptor store).

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use sd_notify::NotifyState;

/// It is told that the service is there.
pub fn ready() {
    say(&[NotifyState::Ready], &[]);
}

/// Gives it a descriptor to hold, under a name. As long as it holds that, a next process of the service is given it.
pub fn hold(name: &str, fd: BorrowedFd<'_>) {
    say(&[NotifyState::FdStore, NotifyState::FdName(name)], &[fd]);
}

/// It need not hold what has that name.
pub fn let_go(name: &str) {
    say(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)], &[]);
}

fn say(words: &[NotifyState<'_>], fds: &[BorrowedFd<'_>]) {
    // Without a service manager nobody is there to hear, and nothing is said.
    let said = if fds.is_empty() { sd_notify::notify(words) } else { sd_notify::notify_with_fds(words, fds) };
    if let Err(e) = said {
        log::warn!("the service manager does not hear: {}", crate::error::words(&e));
    }
}

/// What it held for this service, by name. To be called once, before this process opens anything.
pub fn held() -> Vec<(String, OwnedFd)> {
    match sd_notify::listen_fds_with_names() {
        // SAFETY: by sd_listen_fds(3) these numbers are open and this process's own; this is called once, so that
        // nobody else owns them.
        Ok(fds) => fds.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect(),
        Err(e) => {
            log::warn!("what the service manager holds: {}", crate::error::words(&e));
            Vec::new()
        }
    }
}
