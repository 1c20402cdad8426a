//! Mount options, in the words of mount(8).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where file contents are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum DataMode {
    /// Large and executable files of the stack through the kernel, small ones through its page cache.
    #[default]
    Auto,
    /// Every file through the kernel.
    Passthrough,
    /// No file through the kernel: the daemon reads and writes, readers see writers.
    Coherent,
}

/// What `-o` sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// Nothing may be changed.
    pub read_only: bool,
    /// setuid and setgid have no effect.
    pub nosuid: bool,
    /// Device nodes have no effect.
    pub nodev: bool,
    /// Nothing may be executed.
    pub noexec: bool,
    /// Access times stay as they are.
    pub noatime: bool,
    /// Access times move at every access.
    pub strictatime: bool,
    /// Those of directories stay as they are.
    pub nodiratime: bool,
    /// The source that the mount table shows; that of the subject where there is none.
    pub source: Option<String>,
    /// The mount table shows `fuse.reroot`, not `fuse`.
    pub subtype: bool,
    /// Others than the mounter may use it.
    pub allow_other: bool,
    /// The kernel checks permission bits.
    pub default_permissions: bool,
    /// Where contents are read and written.
    pub data: DataMode,
    /// Somebody else moves the mount to where it is the machine's root (no word sets it).
    #[serde(default)]
    pub root: bool,
    /// Owners on disk to owners in the view: (first on disk, first in the view, how many).
    pub uid_map: Vec<(u32, u32, u32)>,
    /// The same for groups.
    pub gid_map: Vec<(u32, u32, u32)>,
}

impl Default for MountOptions {
    fn default() -> Self {
        let root = crate::sys::process::is_root();
        MountOptions {
            read_only: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            noatime: false,
            strictatime: false,
            nodiratime: false,
            source: None,
            subtype: true,
            allow_other: root,
            default_permissions: true,
            data: DataMode::Auto,
            root: false,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
        }
    }
}

impl MountOptions {
    /// Reads a list as it stands after `-o`; later words win. `X-…`, `x-…`, `_netdev`, `auto`, `noauto`,
    /// `nofail`, `user` and the like, which concern fstab and not the mount, are passed over.
    pub fn parse(list: &str) -> Result<MountOptions> {
        let mut out = MountOptions::default();
        for word in list.split(',').filter(|w| !w.is_empty()) {
            out.set(word)?;
        }
        Ok(out)
    }

    pub(super) fn set(&mut self, word: &str) -> Result<()> {
        match word {
            "defaults" => *self = MountOptions::default(),
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nosuid" => self.nosuid = true,
            "suid" => self.nosuid = false,
            "nodev" => self.nodev = true,
            "dev" => self.nodev = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "noatime" => (self.noatime, self.strictatime) = (true, false),
            "strictatime" => (self.noatime, self.strictatime) = (false, true),
            "atime" => self.noatime = false,
            "relatime" | "norelatime" | "nostrictatime" => (self.noatime, self.strictatime) = (false, false),
            "nodiratime" => self.nodiratime = true,
            "diratime" => self.nodiratime = false,
            "no_subtype" => self.subtype = false,
            "allow_other" => self.allow_other = true,
            "default_permissions" => self.default_permissions = true,
            "data=auto" => self.data = DataMode::Auto,
            "data=passthrough" => self.data = DataMode::Passthrough,
            "data=coherent" => self.data = DataMode::Coherent,
            // What every view has.
            "acl" | "user_xattr" => {}
            "auto" | "noauto" | "nofail" | "_netdev" | "user" | "nouser" | "users" | "owner" | "group" => {}
            _ if word.starts_with("x-") || word.starts_with("X-") || word.starts_with("comment=") => {}
            _ => match word.split_once('=') {
                Some(("fsname", name)) if !name.is_empty() => self.source = Some(name.into()),
                Some(("uidmap", ranges)) => self.uid_map = parse_ranges(word, ranges)?,
                Some(("gidmap", ranges)) => self.gid_map = parse_ranges(word, ranges)?,
                _ => {
                    return Err(Error::Usage(format!(
                        "unknown mount option {word:?}; known are ro, rw, nosuid, nodev, noexec, noatime, relatime, \
                         strictatime, nodiratime, allow_other, default_permissions, fsname=NAME, no_subtype, \
                         data=auto|passthrough|coherent, uidmap=DISK:VIEW:COUNT, gidmap=…"
                    )));
                }
            },
        }
        Ok(())
    }

    /// The `MOUNT_ATTR_*` bits.
    pub fn attributes(&self) -> u64 {
        let mut bits = 0;
        for (is, bit) in [
            (self.read_only, libc::MOUNT_ATTR_RDONLY),
            (self.nosuid, libc::MOUNT_ATTR_NOSUID),
            (self.nodev, libc::MOUNT_ATTR_NODEV),
            (self.noexec, libc::MOUNT_ATTR_NOEXEC),
            (self.noatime, libc::MOUNT_ATTR_NOATIME),
            (self.strictatime, libc::MOUNT_ATTR_STRICTATIME),
            (self.nodiratime, libc::MOUNT_ATTR_NODIRATIME),
        ] {
            if is {
                bits |= bit;
            }
        }
        bits
    }
}

/// Ranges of ids: `DISK:VIEW:COUNT`, several joined with `+`.
pub(super) fn parse_ranges(word: &str, text: &str) -> Result<Vec<(u32, u32, u32)>> {
    let read = |part: &str| {
        let mut numbers = part.split(':').map(|n| n.parse::<u32>().ok());
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Some(a)), Some(Some(b)), Some(Some(n)), None) if n > 0 => Some((a, b, n)),
            _ => None,
        }
    };
    text.split('+')
        .map(read)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::Usage(format!("{word:?}: ranges are DISK:VIEW:COUNT, several joined with '+'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_mount_writes_them() {
        let o =
            MountOptions::parse("rw,nosuid,noatime,x-systemd.automount,uidmap=0:1000:1+1:2000:5").unwrap();
        assert!(o.nosuid && o.noatime && !o.read_only);
        assert_eq!(o.uid_map, [(0, 1000, 1), (1, 2000, 5)]);
        assert!(!MountOptions::parse("ro,rw").unwrap().read_only);
        assert!(MountOptions::parse("bogus").is_err());
        assert!(MountOptions::parse("uidmap=1:2").is_err());
    }
}
