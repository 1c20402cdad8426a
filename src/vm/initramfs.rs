//! A minimal initramfs: it loads the image's own modules, mounts the root, and gives it to the image's init.
//!
//! Its programs are those of one static busybox and not of a program of ours: an init without a C library would be a second
//! build for another target, for a script of forty lines. The image's own initramfs is not looked at, since whether
//! it mounts virtiofs can be found out only by starting it; `--initrd` names it.

use std::path::Path;

use super::boot::{Module, Root, read_all};
use crate::error::{Error, Result};

/// No busybox is larger, in bytes.
const BUSYBOX: u64 = 64 << 20;

/// Where one stands in an image.
const IN_IMAGE: [&str; 2] = ["usr/bin/busybox", "bin/busybox"];
/// Where one stands on a host: Debian, Fedora, Alpine.
const ON_HOST: [&str; 6] = [
    "/usr/bin/busybox",
    "/bin/busybox",
    "/usr/sbin/busybox",
    "/sbin/busybox",
    "/bin/busybox.static",
    "/usr/local/bin/busybox",
];

/// What the guest runs first.
const INIT: &str = include_str!("init.sh");

/// Makes the archive.
pub fn make(root: &Root, modules: &[Module]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "modules", "sysroot"] {
        archive.directory(dir);
    }
    // Until the guest has mounted its own /dev, its init speaks through this.
    archive.entry("dev/console", 0o020_600, (5, 1), b"");
    archive.entry("bin/busybox", 0o100_755, (0, 0), &busybox(root)?);
    archive.entry("init", 0o100_755, (0, 0), INIT.as_bytes());
    for (i, module) in modules.iter().enumerate() {
        // Loaded in the order of their names.
        archive.entry(&format!("modules/{i:03}-{}.ko", module.name), 0o100_644, (0, 0), &module.bytes);
    }
    Ok(archive.finish())
}

/// A busybox that needs nothing else: the image's, else this machine's.
fn busybox(root: &Root) -> Result<Vec<u8>> {
    for path in IN_IMAGE {
        if let Some(bytes) = root.read(path, BUSYBOX)?.filter(|b| is_static(b)) {
            return Ok(bytes);
        }
    }
    for path in ON_HOST.map(Path::new) {
        let bytes = std::fs::File::open(path).and_then(|f| read_all(f, BUSYBOX));
        if let Some(bytes) = bytes.ok().filter(|b| is_static(b)) {
            return Ok(bytes);
        }
    }
    Err(Error::Failed(
        "neither the image nor this machine has a static busybox for the initramfs; install busybox-static here \
         (a package of Debian's) or in the image, or give an initramfs that mounts virtiofs with --initrd FILE"
            .into(),
    ))
}

/// Whether it is a program for x86-64 that asks for no interpreter (ELF, no `PT_INTERP`).
fn is_static(program: &[u8]) -> bool {
    const X86_64: u64 = 62;
    const INTERPRETER: u64 = 3;
    let number = |at: u64, size: u64| -> Option<u64> {
        let bytes = program.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(size)?).ok()?)?;
        Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    let check = || -> Option<bool> {
        // 64 bits, the low byte first.
        if program.get(..6)? != b"\x7fELF\x02\x01" || number(18, 2)? != X86_64 {
            return None;
        }
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for i in 0..count {
            if number(start.checked_add(i * size)?, 4)? == INTERPRETER {
                return Some(false);
            }
        }
        Some(count > 0)
    };
    check().unwrap_or(false)
}

/// An archive as the kernel unpacks it: cpio's `newc` form (the kernel's initramfs buffer format).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), b"");
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        // No content is near 4 GiB.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // Number, mode, owner, group, links, time, size, device, device number, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_kernels_form() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.entry("bin/x", 0o100_755, (0, 0), b"hello");
        archive.entry("dev", 0o020_600, (5, 1), b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let (mut at, mut names) = (0, Vec::new());
        while at < bytes.len() {
            let field = |i: usize| {
                let from = at + 6 + 8 * i;
                usize::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, length) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + length - 1];
            let content = (at + 110 + length).next_multiple_of(4);
            names.push((String::from_utf8_lossy(name).into_owned(), field(1), field(10)));
            if name == b"bin/x" {
                assert_eq!(&bytes[content..content + size], b"hello");
            }
            at = (content + size).next_multiple_of(4);
        }
        let expected =
            [("bin", 0o040_755, 0), ("bin/x", 0o100_755, 0), ("dev", 0o020_600, 1), ("TRAILER!!!", 0, 0)];
        assert_eq!(names, expected.map(|(n, m, d)| (n.to_string(), m, d)));
    }

    #[test]
    fn a_program_that_needs_others_is_no_static_one() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own), "this test's own program is linked dynamically");
        assert!(!is_static(b"") && !is_static(b"\x7fELF\x02\x01") && !is_static(&own[..100]));
        let mut header = own[..64].to_vec();
        let (start, count) = (64u64.to_le_bytes(), 1u16.to_le_bytes());
        header[32..40].copy_from_slice(&start);
        header[56..58].copy_from_slice(&count);
        header.extend_from_slice(&[1u8; 56]);
        assert!(is_static(&header));
        header[64..68].copy_from_slice(&3u32.to_le_bytes());
        assert!(!is_static(&header));
    }
}
