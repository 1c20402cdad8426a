//! Swaps under a live mount: what programs that run in it see, what becomes of what the user wrote, and what is
//! refused. Everything here is done with the program on real mounts.

#[path = "../common/mod.rs"]
mod common;

mod actors;
mod conflicts;
mod fleet;
mod listings;
mod live;
mod refusals;
mod stress;

use std::path::Path;

use common::tree::{self, Item};
use common::{Mount, Program, Scratch};
use serde_json::Value;

/// An image `os` and a desktop `pc` that runs on its first version.
pub struct Desk {
    /// Where everything lies.
    pub scratch: Scratch,
    /// The program.
    pub program: Program,
}

impl Desk {
    /// Imports `os:1` from `base`, then `os:2`, `os:3`, …: each is what the script makes of the version before it.
    #[track_caller]
    pub fn new(base: &[(&str, Item<'_>)], scripts: &[&str]) -> Desk {
        common::require_root();
        let scratch = Scratch::new();
        let program = Program::new(&scratch);
        tree::import(&scratch, &program, "os:1", None, |dir| tree::write(dir, base));
        for (i, script) in scripts.iter().enumerate() {
            let (old, new) = (format!("os:{}", i + 1), format!("os:{}", i + 2));
            tree::import(&scratch, &program, &new, Some(&old), |dir| {
                let before = dir.with_file_name(format!("src-os-{}", i + 1));
                common::sh(dir, &format!("cp -a {}/. .\n{script}", before.display())).ok();
            });
        }
        program.ok(&["create", "pc", "os:1"]);
        Desk { scratch, program }
    }

    /// Mounts the desktop.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        self.program.mount("pc", self.scratch.mnt())
    }

    /// Swaps the desktop to a version, in whichever direction.
    #[track_caller]
    pub fn to(&self, tag: &str) -> Value {
        self.program.swap(&["upgrade", "pc", "--to", &format!("os:{tag}")])
    }

    /// The source that a version was imported from, written down.
    pub fn source(&self, tag: &str) -> tree::Listing {
        tree::listing(&self.scratch.join(format!("src-os-{tag}")))
    }

    /// The desktop's state as it is on disk.
    pub fn state(&self) -> Value {
        let path = self.scratch.store().join("desktops/pc/state.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The object that holds these bytes.
    pub fn object(&self, bytes: &[u8]) -> std::path::PathBuf {
        let hex = reroot::store::Digest::of(bytes).hex();
        self.scratch.store().join("objects").join(&hex[..2]).join(&hex[2..])
    }
}

/// A file system call that may hang.
#[track_caller]
pub fn timed<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    common::within(common::program::LIMIT, "a call in the mount", act)
}

/// Inode number of a path.
#[track_caller]
pub fn ino(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let path = path.to_path_buf();
    timed(move || {
        std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).ino()
    })
}

/// The conflicts of a report as `path case`, sorted.
pub fn cases(report: &Value) -> Vec<String> {
    let list = report["conflicts"].as_array().unwrap_or_else(|| panic!("no conflicts in {report}"));
    let mut out: Vec<String> = list
        .iter()
        .map(|c| format!("{} {}", c["path"].as_str().unwrap(), c["case"].as_str().unwrap()))
        .collect();
    out.sort();
    out
}
