//! Inode flags as `ioctl(2)` carries them: in the old form, and in the extended one that the kernel asks for before it
//! sets any (`struct fsxattr`: flags, four numbers that are 0 here, 8 bytes of padding).

use std::io;

use super::fs;

/// `FS_IOC_GETFLAGS`.
pub const GET: u32 = 0x8008_6601;
/// The same as 32-bit programs call it.
pub const GET_32: u32 = 0x8004_6601;
/// `FS_IOC_SETFLAGS`.
pub const SET: u32 = 0x4008_6602;
/// The same as 32-bit programs call it.
pub const SET_32: u32 = 0x4004_6602;
/// `FS_IOC_FSGETXATTR`.
pub const GET_EXTENDED: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
pub const SET_EXTENDED: u32 = 0x401c_5820;

/// Old form, `FS_XFLAG_*`.
const PAIRS: [(u32, u32); 5] = [
    (fs::FLAG_IMMUTABLE, 0x8),
    (fs::FLAG_APPEND, 0x10),
    (fs::FLAG_SYNC, 0x20),
    (fs::FLAG_NOATIME, 0x40),
    (fs::FLAG_NODUMP, 0x80),
];

/// The extended form of flags.
pub fn extended(flags: u32) -> Vec<u8> {
    let bits = PAIRS.iter().filter(|(old, _)| flags & old != 0).fold(0, |bits, (_, new)| bits | new);
    let mut out = u32::to_ne_bytes(bits).to_vec();
    out.resize(28, 0);
    out
}

/// The flags of something that has the flags `now`, once the extended form is set. `EOPNOTSUPP` for what the old form
/// has no flag for: projects, extent sizes.
pub fn of_extended(now: u32, data: &[u8]) -> io::Result<u32> {
    let (bits, rest) = data.split_first_chunk().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut bits = u32::from_ne_bytes(*bits);
    let mut flags = now;
    for (old, new) in PAIRS {
        flags = if bits & new != 0 { flags | old } else { flags & !old };
        bits &= !new;
    }
    if bits != 0 || rest.iter().any(|b| *b != 0) {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::{FLAG_APPEND, FLAG_DIRSYNC, FLAG_IMMUTABLE};

    #[test]
    fn inode_flags_have_two_forms() {
        let form = extended(FLAG_IMMUTABLE | FLAG_DIRSYNC);
        assert_eq!((form.len(), form.first()), (28, Some(&8)));
        let back = of_extended(FLAG_APPEND | FLAG_DIRSYNC, &form);
        assert_eq!(back.unwrap(), FLAG_IMMUTABLE | FLAG_DIRSYNC);
        let mut project = form.clone();
        project[12] = 1;
        for (data, error) in [(&project[..], libc::EOPNOTSUPP), (&form[..3], libc::EINVAL)] {
            assert_eq!(of_extended(0, data).unwrap_err().raw_os_error(), Some(error));
        }
    }
}
