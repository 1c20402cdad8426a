//! A mounted desktop for one test, in a thread that may hang.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Program, Scratch, require_root, sh, tree, within};

/// How long a test on a desktop may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A mounted desktop `d` on version `v:1`.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The program with its store.
    pub program: Program,
    /// Where it is mounted.
    pub mnt: PathBuf,
    /// What the version was imported from.
    pub source: PathBuf,
    /// Its user layer on the host's file system.
    pub user: PathBuf,
    options: String,
}

impl Desk {
    /// A path in the view.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mnt.join(name)
    }

    /// Runs a shell script in the view; it must succeed. What it wrote, without the last newline.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        sh(&self.mnt, script).ok().out().trim_end_matches('\n').to_string()
    }

    /// As [`Desk::sh`], as user and group 1234 without privileges. The script starts in the view and must use
    /// relative paths: the directories above may be closed to others. It must not hold single quotes.
    #[track_caller]
    pub fn sh_as_user(&self, script: &str) -> super::Answer {
        let line = format!("exec setpriv --reuid=1234 --regid=1234 --clear-groups sh -euc '{script}'");
        sh(&self.mnt, &line)
    }

    /// Unmounts and mounts again.
    #[track_caller]
    pub fn remount(&self) {
        self.program.umount(&self.mnt);
        self.program.mount_with("d", &self.mnt, &self.options).forget();
    }

    /// Makes the kernel forget what it can of names and inodes.
    pub fn drop_caches(&self) {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }
}

/// Imports what `fill` writes, mounts a desktop on it with `options`, and runs a test there. Everything goes
/// when the test ends or fails; one that hangs fails.
#[track_caller]
pub fn desk(options: &str, fill: impl FnOnce(&Path), test: impl FnOnce(&Desk) + Send + 'static) {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let source = tree::import(&scratch, &program, "v:1", None, fill);
    program.ok(&["create", "d", "v:1"]);
    program.mount_with("d", scratch.mnt(), options).forget();
    let desk = Desk {
        program: program.clone(),
        mnt: scratch.mnt(),
        source,
        user: scratch.store().join("desktops/d/user"),
        options: options.into(),
    };
    within(LIMIT, "the test", move || test(&desk));
    program.umount(&scratch.mnt());
}
