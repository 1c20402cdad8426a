//! What a machine boots from, found in the image itself: a kernel, and the modules by which it mounts its root.
//!
//! The tree belongs to the guest, so nothing in it is trusted: files are opened beneath its root without following any
//! symbolic link, only regular files are read, and none beyond a bound.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::error::{Doing, Error, Result};
use crate::sys::fs::{self, Open};

/// No kernel is larger, in bytes.
pub const KERNEL: u64 = 256 << 20;
/// No file of modules is larger, as it is and uncompressed.
const MODULE: u64 = 64 << 20;
/// No list of modules is larger.
const LIST: u64 = 16 << 20;

/// What mounts the root: the bus on which the device is, and the file system.
const NEEDED: [&str; 2] = ["virtio_pci", "virtiofs"];
/// What tells QEMU of a panic, where the kernel has it.
const WANTED: [&str; 1] = ["pvpanic_pci"];

/// Where modules are; the second where `/lib` is a directory of its own.
const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];

/// The guest's root, as the host sees it.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// A kernel of the image.
#[derive(Debug)]
pub struct Kernel {
    /// Where it was found, for people.
    pub place: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A kernel's module, uncompressed.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// The name, as `modprobe` knows it.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What a kernel needs to mount its root.
#[derive(Debug, PartialEq, Eq)]
pub enum Modules {
    /// Nothing: it has all in itself.
    BuiltIn,
    /// These, in the order in which they are to be loaded.
    Load(Vec<Module>),
    /// The image has no modules of this kernel.
    Unknown,
}

impl Root {
    /// The tree at `path`.
    pub fn open(path: &Path) -> Result<Root> {
        Ok(Root(fs::open_dir(path).at("opening", path)?))
    }

    /// The image's newest kernel; one that has modules in the image before one that has none.
    pub fn kernel(&self) -> Result<Kernel> {
        let mut found: Vec<(bool, String, String)> = Vec::new();
        for (name, _) in self.names("boot") {
            if let Some(version) = name.strip_prefix("vmlinuz-") {
                found.push((self.modules_dir(version).is_some(), version.into(), format!("boot/{name}")));
            }
        }
        for place in MODULES {
            for (version, _) in self.names(place) {
                let path = format!("{place}/{version}/vmlinuz");
                found.push((true, version, path));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| by_version(&a.1, &b.1)));
        while let Some((_, _, path)) = found.pop() {
            if let Some(bytes) = self.read(&path, KERNEL)? {
                return Ok(Kernel { place: format!("/{path}"), bytes });
            }
        }
        Err(Error::Failed(
            "there is no kernel in the image (/boot/vmlinuz-* or /usr/lib/modules/*/vmlinuz); \
             install one there, or give one with --kernel FILE"
                .into(),
        ))
    }

    /// The modules that the kernel of that version needs to mount its root.
    pub fn modules(&self, version: &str) -> Result<Modules> {
        let Some(dir) = self.modules_dir(version) else { return Ok(Modules::Unknown) };
        let list = |name: &str| -> Result<Option<String>> {
            let bytes = self.read(&format!("{dir}/{name}"), LIST)?;
            Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
        };
        let built_in = list("modules.builtin")?.unwrap_or_default();
        let built_in: BTreeSet<String> = built_in.lines().map(module_name).collect();
        if NEEDED.iter().all(|n| built_in.contains(*n)) {
            return Ok(Modules::BuiltIn);
        }
        let listed = match list("modules.dep")? {
            Some(text) => Listed::dependencies(&text),
            // A kernel that was unpacked and not installed: what a module needs stands in the module itself.
            None => Listed::order(&list("modules.order")?.unwrap_or_default()),
        };
        let mut read = BTreeMap::new();
        let order = in_order(&listed, &built_in, &mut |name, path| {
            let module = self.module(&dir, path)?;
            let needs = needs_of(&module);
            read.insert(name.to_string(), module);
            Ok(needs)
        })?;
        let order = order.map_err(|name| {
            Error::Failed(format!(
                "the image's kernel {version} has no module {name}, so it cannot mount a virtiofs root; \
                 install another kernel in the image, or give one with --kernel FILE"
            ))
        })?;
        let modules = order.into_iter().map(|(name, path)| match read.remove(&name) {
            Some(bytes) => Ok(Module { name, bytes }),
            None => Ok(Module { bytes: self.module(&dir, &path)?, name }),
        });
        Ok(Modules::Load(modules.collect::<Result<_>>()?))
    }

    /// A module, uncompressed. The list may name it as it was before it was compressed.
    fn module(&self, dir: &str, listed: &str) -> Result<Vec<u8>> {
        let listed = if listed.starts_with('/') { listed.into() } else { format!("{dir}/{listed}") };
        let listed = listed.trim_start_matches('/');
        for suffix in ["", ".xz", ".zst", ".gz"] {
            let path = format!("{listed}{suffix}");
            if let Some(bytes) = self.read(&path, MODULE)? {
                return uncompressed(&path, bytes).map_err(|e| {
                    Error::Damaged(format!("/{path} in the image cannot be uncompressed: {e}"))
                });
            }
        }
        Err(Error::Failed(format!(
            "/{listed} is missing in the image, although the list of its modules names it"
        )))
    }

    /// A file of the image; `None` where there is no regular file that can be opened without following a link.
    pub fn read(&self, path: &str, bound: u64) -> Result<Option<Vec<u8>>> {
        let doing = || format!("reading /{path} in the image");
        let fd = match fs::open_beneath(self.0.as_fd(), path.as_bytes(), Open::Read) {
            Ok(fd) => fd,
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(
                        libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV | libc::EISDIR | libc::ENXIO
                    )
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e).doing(doing()),
        };
        let stat = fs::stat(&fd).doing(doing())?;
        if !stat.is_file() {
            return Ok(None);
        }
        read_all(File::from(fd), bound).doing(doing()).map(Some)
    }

    fn names(&self, path: &str) -> Vec<(String, u32)> {
        let dir = fs::open_beneath(self.0.as_fd(), path.as_bytes(), Open::Dir);
        let names = dir.and_then(|d| fs::list(d.as_fd())).unwrap_or_default();
        names.into_iter().filter_map(|(n, kind)| Some((String::from_utf8(n).ok()?, kind))).collect()
    }

    fn modules_dir(&self, version: &str) -> Option<String> {
        // It comes from a kernel or a directory's name, and becomes part of a path.
        if version.is_empty() || version.contains('/') || version.starts_with('.') {
            return None;
        }
        let dirs = MODULES.iter().map(|top| format!("{top}/{version}"));
        dirs.into_iter().find(|d| fs::open_beneath(self.0.as_fd(), d.as_bytes(), Open::Dir).is_ok())
    }
}

/// All of a reader that is expected to end within `bound` bytes; one that does not is an error (`EFBIG`).
pub fn read_all(reader: impl Read, bound: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(bound + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bound {
        return Err(std::io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(bytes)
}

fn uncompressed(path: &str, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    match path.rsplit('.').next() {
        Some("xz") => read_all(xz2::read::XzDecoder::new(&bytes[..]), MODULE),
        Some("zst") => read_all(zstd::stream::read::Decoder::new(&bytes[..])?, MODULE),
        Some("gz") => read_all(flate2::read::MultiGzDecoder::new(&bytes[..]), MODULE),
        _ => Ok(bytes),
    }
}

/// `kernel/fs/fuse/virtio-fs.ko.xz` is the module `virtio_fs`.
fn module_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// The modules of a kernel by name: the path of each, and what it needs where the list says so.
#[derive(Debug, Default)]
struct Listed(BTreeMap<String, (String, Option<Vec<String>>)>);

impl Listed {
    /// `modules.dep` (modules.dep(5)).
    fn dependencies(text: &str) -> Listed {
        let entries = text.lines().filter_map(|line| line.split_once(':')).map(|(path, needs)| {
            // What is to be loaded first is at the end of the line.
            let needs = needs.split_whitespace().rev().map(module_name).collect();
            (module_name(path), (path.trim().to_string(), Some(needs)))
        });
        Listed(entries.collect())
    }

    /// `modules.order`, which the kernel's build makes.
    fn order(text: &str) -> Listed {
        Listed(text.lines().map(|path| (module_name(path), (path.trim().to_string(), None))).collect())
    }
}

/// What a module says that it needs.
fn needs_of(module: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(WORD.len()).position(|w| w == WORD) else { return Vec::new() };
    let text = module.get(at + WORD.len()..).unwrap_or_default();
    let text = text.split(|b| *b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.split(',').filter(|n| !n.is_empty()).map(module_name).collect()
}

/// Names and paths of the modules that are to be loaded, each after those that it needs; the inner error names one that is
/// missing. `ask` is asked what a module needs where the list does not say it.
#[allow(clippy::type_complexity)]
fn in_order(
    listed: &Listed,
    built_in: &BTreeSet<String>,
    ask: &mut dyn FnMut(&str, &str) -> Result<Vec<String>>,
) -> Result<std::result::Result<Vec<(String, String)>, String>> {
    let (mut order, mut seen) = (Vec::new(), built_in.clone());
    for wanted in NEEDED.iter().chain(&WANTED) {
        if WANTED.contains(wanted) && !listed.0.contains_key(*wanted) {
            continue;
        }
        // By hand and not by recursion: whoever made the list decides how deep it goes.
        let mut todo = vec![((*wanted).to_string(), false)];
        while let Some((name, needs_are_there)) = todo.pop() {
            if !needs_are_there && !seen.insert(name.clone()) {
                continue;
            }
            let Some((path, needs)) = listed.0.get(&name) else { return Ok(Err(name)) };
            if needs_are_there {
                order.push((name, path.clone()));
                continue;
            }
            let needs = match needs {
                Some(needs) => needs.clone(),
                None => ask(&name, path)?,
            };
            todo.push((name, true));
            todo.extend(needs.into_iter().rev().map(|n| (n, false)));
        }
    }
    Ok(Ok(order))
}

/// The version that a kernel says it has (the x86 boot protocol's `kernel_version`).
pub fn version_of(kernel: &[u8]) -> Option<String> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = u16::from_le_bytes(kernel.get(0x20e..0x210)?.try_into().ok()?);
    let text = kernel.get(0x200 + usize::from(at)..)?;
    let text = text.get(..256.min(text.len()))?;
    let end = text.iter().position(|b| b" \0\n".contains(b))?;
    let version = std::str::from_utf8(text.get(..end)?).ok()?;
    (!version.is_empty()).then(|| version.to_string())
}

/// Numbers in a version are compared as numbers: 6.1.0-9 comes before 6.1.0-10.
fn by_version(a: &str, b: &str) -> Ordering {
    let mut sides = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(x), Some(y)) = (sides.0.first(), sides.1.first()) else {
            return sides.0.len().cmp(&sides.1.len());
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (left, right) = (digits(&mut sides.0), digits(&mut sides.1));
            match left.len().cmp(&right.len()).then_with(|| left.cmp(right)) {
                Ordering::Equal => continue,
                other => return other,
            }
        }
        if x != y {
            return x.cmp(y);
        }
        sides.0 = sides.0.get(1..).unwrap_or_default();
        sides.1 = sides.1.get(1..).unwrap_or_default();
    }
}

/// Takes the number at the beginning, without leading zeros.
fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    let zeros = number.iter().take_while(|b| **b == b'0').count();
    number.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (older, newer) in [
            ("6.1.0-9-amd64", "6.1.0-10-amd64"),
            ("6.1.9", "6.1.10"),
            ("6.1", "6.1.1"),
            ("5.19", "6.1"),
            ("6.1.0-a", "6.1.0-b"),
            ("6.01", "6.2"),
        ] {
            assert_eq!(by_version(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(by_version(newer, older), Ordering::Greater, "{older} {newer}");
        }
        assert_eq!(by_version("6.1", "6.1"), Ordering::Equal);
    }

    const DEPENDENCIES: &str = "\
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/fuse/fuse.ko.xz:
kernel/drivers/misc/pvpanic-pci.ko: kernel/drivers/misc/pvpanic.ko
";

    #[test]
    fn modules_come_after_those_that_they_need() {
        let built_in = BTreeSet::from(["pvpanic".to_string()]);
        let never = &mut |name: &str, _: &str| panic!("{name} is listed");
        let order = in_order(&Listed::dependencies(DEPENDENCIES), &built_in, never).unwrap().unwrap();
        let names: Vec<&str> = order.iter().map(|(n, _)| &**n).collect();
        for (first, second) in [("virtio_ring", "virtio"), ("virtio", "virtio_pci"), ("fuse", "virtiofs")] {
            let at = |name| names.iter().position(|n| *n == name).unwrap();
            assert!(at(first) < at(second), "{names:?}");
        }
        assert_eq!(names.len(), 6, "{names:?}");
        assert!(order.contains(&("virtiofs".into(), "kernel/fs/fuse/virtiofs.ko.xz".into())));
        assert_eq!(in_order(&Listed::default(), &built_in, never).unwrap(), Err("virtio_pci".to_string()));
        // One that needs itself ends too.
        let circle = "a/virtio_pci.ko: a/b.ko\na/b.ko: a/virtio_pci.ko\na/virtiofs.ko:\n";
        assert_eq!(in_order(&Listed::dependencies(circle), &built_in, never).unwrap().unwrap().len(), 3);
        // Where there is no list of what each needs, the modules themselves say it.
        let listed = Listed::order("a/virtiofs.ko\na/virtio-pci.ko\na/fuse.ko\n");
        let asked = &mut |name: &str, _: &str| {
            Ok(needs_of(if name == "virtiofs" { b"\0x=y\0depends=fuse\0" } else { b"\0depends=\0" }))
        };
        let order = in_order(&listed, &built_in, asked).unwrap().unwrap();
        let names: Vec<&str> = order.iter().map(|(n, _)| &**n).collect();
        assert_eq!(names, ["virtio_pci", "fuse", "virtiofs"]);
    }

    #[test]
    fn modules_are_read_as_they_are_compressed() {
        use std::io::Write;
        let xz = {
            let mut w = xz2::write::XzEncoder::new(Vec::new(), 1);
            w.write_all(b"module").unwrap();
            w.finish().unwrap()
        };
        assert_eq!(uncompressed("a.ko.xz", xz).unwrap(), b"module");
        assert_eq!(
            uncompressed("a.ko.zst", zstd::encode_all(&b"module"[..], 1).unwrap()).unwrap(),
            b"module"
        );
        assert_eq!(uncompressed("a.ko", b"module".to_vec()).unwrap(), b"module");
        assert!(uncompressed("a.ko.xz", b"module".to_vec()).is_err());
        assert_eq!(read_all(&[0u8; 5][..], 4).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    }

    #[test]
    fn nothing_outside_the_image_is_read() {
        let top = std::env::temp_dir().join(format!("reroot-boot-{}", std::process::id()));
        let root = top.join("root");
        std::fs::create_dir_all(root.join("boot")).unwrap();
        std::fs::write(top.join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("boot/vmlinuz-9")).unwrap();
        std::os::unix::fs::symlink(top.join("secret"), root.join("boot/vmlinuz-8")).unwrap();
        std::os::unix::fs::symlink(&top, root.join("lib")).unwrap();
        std::fs::create_dir(root.join("boot/vmlinuz-7")).unwrap();
        let guest = Root::open(&root).unwrap();
        assert!(guest.kernel().unwrap_err().to_string().contains("--kernel"));
        assert_eq!(guest.read("../secret", 100).unwrap(), None);
        assert_eq!(guest.modules("../..").unwrap(), Modules::Unknown);
        std::fs::write(root.join("boot/vmlinuz-6.1"), "kernel").unwrap();
        assert_eq!(guest.kernel().unwrap().bytes, b"kernel");
        std::fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn a_kernel_says_its_version() {
        let mut kernel = vec![0u8; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        kernel[0x300..0x30f].copy_from_slice(b"6.1.0-5 (x@y) #");
        assert_eq!(version_of(&kernel).unwrap(), "6.1.0-5");
        kernel[0x20f] = 0xff;
        assert_eq!(version_of(&kernel), None);
        assert_eq!(version_of(b""), None);
    }
}
