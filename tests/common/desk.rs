//! A mounted desktop for one test, in a thread that may hang.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Program, Scratch, require_root, sh, tree, within};

/// How long a test on a desktop may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Whether the suites run over plain directories: `REROOT_TEST_LAYERS=directories`.
pub fn over_directories() -> bool {
    match std::env::var("REROOT_TEST_LAYERS").as_deref() {
        Ok("directories") => true,
        Ok("version") | Err(_) => false,
        Ok(other) => panic!("REROOT_TEST_LAYERS={other}: it is `version` or `directories`"),
    }
}

/// A mounted desktop `d` on version `v:1`, or the same over plain directories: see [`over_directories`].
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
    /// The options that name the directories, where the view is over some.
    layers: Option<String>,
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
        self.umount();
        self.mount();
    }

    fn mount(&self) {
        match &self.layers {
            None => self.program.mount_with("d", &self.mnt, &self.options).forget(),
            Some(layers) => {
                let list = format!("{layers},{}", self.options);
                let mnt = self.mnt.as_os_str();
                self.program.ok(&["overlay".as_ref(), "-o".as_ref(), list.as_ref(), mnt]);
            }
        }
    }

    #[track_caller]
    fn umount(&self) {
        self.program.umount(&self.mnt);
    }

    /// Makes the kernel forget what it can of names and inodes.
    pub fn drop_caches(&self) {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    }
}

/// In a layer a character device 0:0 is a whiteout: puts in its place what the view makes for one.
fn keep_null_devices(dir: &Path) {
    let script = "find . -type c | while read -r f; do
        [ \"$(stat -c %t:%T \"$f\")\" = 0:0 ] || continue
        d=$(dirname \"$f\"); touch -r \"$d\" ../.dir-time; touch -r \"$f\" ../.file-time; set -- $(stat -c '%a %u:%g' \"$f\")
        rm \"$f\"; : >\"$f\"; chown $2 \"$f\"; chmod $1 \"$f\"; setfattr -n trusted.reroot.rdev -v c \"$f\"
        touch -r ../.file-time \"$f\"; touch -r ../.dir-time \"$d\"; done";
    sh(dir, script).ok();
}

/// Imports what `fill` writes, mounts a desktop on it with `options`, and runs a test there. Everything goes
/// when the test ends or fails; one that hangs fails.
#[track_caller]
pub fn desk(options: &str, fill: impl FnOnce(&Path), test: impl FnOnce(&Desk) + Send + 'static) {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    let mut desk = Desk {
        program: program.clone(),
        mnt: scratch.mnt(),
        source: scratch.join("src-v-1"),
        user: scratch.store().join("desktops/d/user"),
        options: options.into(),
        layers: None,
    };
    if over_directories() {
        scratch.dir("src-v-1");
        fill(&desk.source);
        keep_null_devices(&desk.source);
        desk.user = scratch.dir("upper");
        let (lower, upper, work) = (desk.source.display(), desk.user.display(), scratch.dir("work"));
        desk.layers = Some(format!("lowerdir={lower},upperdir={upper},workdir={}", work.display()));
    } else {
        tree::import(&scratch, &program, "v:1", None, fill);
        program.ok(&["create", "d", "v:1"]);
    }
    desk.mount();
    let desk = &desk;
    within(LIMIT, "the test", {
        let desk = desk.clone();
        move || test(&desk)
    });
    desk.umount();
}
