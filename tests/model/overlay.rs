//! The third side: the kernel's overlayfs, and where it is known to differ from ext4.
//!
//! Where it agrees with ext4 and the view does not, the view is wrong; where it differs from both in a way that is not
//! listed here, the list is wrong. From its first known difference on it has no part in a sequence.

use std::path::PathBuf;

use super::common::{self, Scratch};
use super::operations::{Operation, Outcome};
use super::snapshot::{Fact, Tree};
use super::trial::{mount_overlay, unmount_overlay};

const OPTIONS: &str = "redirect_dir=on,index=on,xino=on";

/// A mounted overlay.
#[derive(Debug)]
pub struct Overlay {
    pub point: PathBuf,
    options: String,
    mounted: bool,
}

/// Makes the lower layers: the first version as a full tree, and what each script changes, written by overlayfs.
pub fn prepare(scratch: &Scratch, scripts: &[&str], slots: usize) {
    let mut lower = scratch.join("src-m-1").display().to_string();
    for (i, script) in scripts.iter().enumerate() {
        let (upper, work) = (scratch.dir(&format!("over-{}", i + 1)), scratch.dir("over-work"));
        let point = scratch.dir("over-prepare");
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        mount_overlay(&point, &options).expect("mounting overlayfs");
        let all = format!(
            "for i in $(seq 0 {}); do (cd s$i; {script}
             tpl={}/tpl-{}; find . | while read -r p; do
               if [ \"$(stat -c %Y \"$p\")\" != \"$(stat -c %Y $tpl/\"$p\")\" ]; then touch -h -r $tpl/\"$p\" \"$p\"; fi; done
             ); done",
            slots - 1,
            scratch.path().display(),
            i + 1
        );
        let done = common::sh(&point, &all);
        unmount_overlay(&point);
        done.ok();
        common::sh(scratch.path(), "rm -rf over-work over-prepare").ok();
        lower = format!("{}:{lower}", upper.display());
    }
}

impl Overlay {
    /// One with an upper directory of its own, above the layers of a version.
    pub fn new(scratch: &Scratch, name: &str, version: usize) -> Overlay {
        let mut lower = scratch.join("src-m-1").display().to_string();
        for i in 1..=version {
            lower = format!("{}:{lower}", scratch.join(format!("over-{i}")).display());
        }
        let (upper, work) = (scratch.dir(&format!("over-{name}/u")), scratch.dir(&format!("over-{name}/w")));
        let point = scratch.dir(&format!("over-{name}/mnt"));
        let options =
            format!("lowerdir={lower},upperdir={},workdir={},{OPTIONS}", upper.display(), work.display());
        mount_overlay(&point, &options).expect("mounting overlayfs");
        Overlay { point, options, mounted: true }
    }

    /// Unmounts and mounts again; whether that could be done.
    pub fn remount(&mut self) -> bool {
        unmount_overlay(&self.point);
        self.mounted = mount_overlay(&self.point, &self.options).is_ok();
        self.mounted
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if self.mounted {
            unmount_overlay(&self.point);
            if let Some(home) = self.point.parent().filter(|h| common::scratch::mounts_beneath(h).is_empty())
            {
                let _ = std::process::Command::new("rm").arg("-rf").arg(home).status();
            }
        }
    }
}

/// Whether a path looks the same in overlayfs, leaving out what it shows otherwise always.
pub fn same(_path: &str, plain: &Fact, other: &Fact) -> bool {
    without_links(&plain.text) == without_links(&other.text)
}

/// A merged directory has link count 1 there: a count of subdirectories would have to read all layers.
fn without_links(text: &str) -> String {
    match text.split_once(" links ").filter(|(mode, _)| mode.len() == 5 && mode.starts_with('4')) {
        Some((mode, rest)) => format!("{mode}{}", rest.split_once(' ').map_or("", |(_, rest)| rest)),
        None => text.into(),
    }
}

/// A known difference.
#[derive(Debug)]
pub struct Known {
    pub reason: &'static str,
    /// The trees are equal all the same.
    pub goes_on: bool,
}

/// Why overlayfs may give this answer, where ext4 gives the other.
pub fn known_answer(operation: &Operation, plain: &Outcome, third: &Outcome) -> Option<Known> {
    use Operation as O;
    let leaves = |reason| Some(Known { reason, goes_on: false });
    let stays = |reason| Some(Known { reason, goes_on: true });
    if let (Ok(a), Ok(b)) = (plain, third)
        && without_links(a) == without_links(b)
    {
        return stays("a directory's link count is 1");
    }
    match (operation, plain, third) {
        (O::RemoveXattr(_, name), Ok(_), Err(libc::ENODATA)) if name.starts_with("system.posix_acl") => {
            stays("removing an ACL that is not there is an error")
        }
        (
            O::HandleChmod(..) | O::HandleChown(..) | O::HandleXattr(..) | O::HandleTimes(..),
            Ok(_),
            Err(libc::EEXIST | libc::ENOENT | libc::ENOTDIR | libc::ESTALE),
        ) => leaves("a lower file without a name cannot be copied up"),
        (O::Mknod(_, mode, 0, 0), Ok(_), Err(libc::EPERM)) if mode & libc::S_IFMT == libc::S_IFCHR => {
            leaves("a character device 0:0 is its whiteout")
        }
        (O::MapRead(..), _, _) => {
            leaves("a mapping of a lower file stays with it when the file is copied up")
        }
        (O::Stat(_), Ok(a), Ok(b)) if a.replace(" links 0 ", " links 1 ") == *b => {
            stays("a file without a name counts the link in the index")
        }
        _ => None,
    }
}

/// Why overlayfs may show this tree.
pub fn known_tree(plain: &Tree, third: &Tree, wrong: &[String]) -> Option<&'static str> {
    let _ = (plain, third, wrong);
    None
}
