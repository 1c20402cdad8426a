//! Messages between two processes on one machine, each with at most one descriptor (`unix(7)`, `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest message, in bytes.
const LONGEST: usize = 128 << 10;

/// Two ends between which messages stay whole (`SOCK_SEQPACKET`).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message; waits while the other side is behind.
pub fn send(to: impl AsFd, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_with(to, text, fd, SendFlags::NOSIGNAL)
}

/// Sends a message, unless the other side is so far behind that it would have to wait (`WouldBlock`).
pub fn send_now(to: impl AsFd, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_with(to, text, fd, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(to: impl AsFd, text: &[u8], fd: Option<BorrowedFd<'_>>, how: SendFlags) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    loop {
        match sendmsg(to.as_fd(), &[IoSlice::new(text)], &mut control, how) {
            Err(rustix::io::Errno::INTR) => {}
            r => return Ok(r.map(|_| ())?),
        }
    }
}

/// Waits for a message; `None` when the other side has ended. The descriptor is missing too where this process can have
/// no more of them.
pub fn receive(from: impl AsFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut text = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            recvmsg(from.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let got = match got {
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            r => r?,
        };
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if got.bytes == 0 {
            return Ok(None);
        }
        text.truncate(got.bytes);
        return Ok(Some((text, fd)));
    }
}

/// Reads what one call gives.
pub fn read_once(from: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LONGEST];
    loop {
        match rustix::io::read(from.as_fd(), &mut bytes) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            r => {
                bytes.truncate(r?);
                return Ok(bytes);
            }
        }
    }
}

/// Writes all of it with one call.
pub fn write_once(to: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    match rustix::io::write(to, bytes)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Takes this process's standard input as a socket, with nothing in its place; `None` where it is none.
pub fn take_input() -> io::Result<Option<OwnedFd>> {
    let input = io::stdin();
    let kind = rustix::fs::fstat(&input)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(kind) != rustix::fs::FileType::Socket {
        return Ok(None);
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(&input, 3)?;
    let nothing = std::fs::File::open("/dev/null")?;
    // Whoever this process starts does not inherit the socket: its end is this process's end.
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(Some(socket))
}

/// Waits until something can be read from one of them, or its other side has ended; says from which.
pub fn wait(of: &[BorrowedFd<'_>]) -> io::Result<Vec<bool>> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds: Vec<_> = of.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            r => {
                r?;
                return Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect());
            }
        }
    }
}

/// Makes the number of one descriptor lead to what another one leads to (`dup3(2)`). Whoever uses the number goes on
/// with that.
pub fn put_in_place(of: BorrowedFd<'_>, new: impl AsFd) -> io::Result<()> {
    // SAFETY: both numbers are open descriptors for the whole call. The number `of` stays open, as its owner expects;
    // what it led to is closed, to which nothing but that number refers.
    let r = unsafe { libc::dup3(new.as_fd().as_raw_fd(), of.as_raw_fd(), libc::O_CLOEXEC) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_message_arrives_whole_and_with_its_descriptor() {
        let (a, b) = pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        send(&a, b"first", None).unwrap();
        send(&a, b"second", Some(write.as_fd())).unwrap();
        drop((a, write));
        let (text, fd) = receive(&b).unwrap().unwrap();
        assert_eq!((&text[..], fd.is_none()), (&b"first"[..], true));
        let (text, fd) = receive(&b).unwrap().unwrap();
        assert_eq!(text, b"second");
        io::Write::write_all(&mut std::fs::File::from(fd.unwrap()), b"through").unwrap();
        let mut got = String::new();
        read.read_to_string(&mut got).unwrap();
        assert_eq!(got, "through");
        assert!(receive(&b).unwrap().is_none(), "the other side has ended");
    }
}
