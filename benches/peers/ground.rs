//! Where the comparison takes place: trees on ext4, and the same tree as each peer shows it.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags};

const REROOT: &str = env!("CARGO_BIN_EXE_reroot");

/// Who shows a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The tree itself; a copy of it where the work writes.
    Native,
    /// The kernel's overlayfs with `redirect_dir=on`.
    Overlay,
    /// fuse-overlayfs as podman calls it.
    FuseOverlay,
    /// A desktop of ours.
    Reroot,
    /// A version of ours as read-only plain files.
    Inspect,
}

/// A file system with a store and the trees in it.
///
/// It is ext4 as `mkfs.ext4` makes it, on a loop device that goes past the page cache: the same on every machine, and
/// nobody else's files in it. Without a journal, as some machines' disks are, ext4 looks for minutes past the numbers
/// of removed files whenever a file is made, and each row would pay for the one before it.
pub struct Ground {
    home: PathBuf,
    dir: PathBuf,
    count: Cell<u32>,
}

impl Ground {
    /// Makes one beneath `$TMPDIR`, else `/var/tmp`.
    pub fn new() -> Ground {
        let top = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let home = top.join(format!("rrpeers-{}", std::process::id()));
        let (image, dir) = (home.join("image"), home.join("disk"));
        fs::create_dir_all(&dir).expect("scratch directory");
        let file = fs::File::create(&image).expect("image");
        file.set_len(64 << 30).expect("image");
        call(
            Command::new("mkfs.ext4")
                .args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
                .arg(&image),
        );
        let mut attach = Command::new("losetup");
        let out =
            attach.args(["--direct-io=on", "--find", "--show"]).arg(&image).output().expect("losetup runs");
        assert!(out.status.success(), "losetup: {}", String::from_utf8_lossy(&out.stderr));
        let device = String::from_utf8_lossy(&out.stdout).trim().to_string();
        let mounted = Command::new("mount").args(["-t", "ext4", "-o", "discard", &device]).arg(&dir).output();
        // From here on the device goes with its last user.
        call(Command::new("losetup").args(["-d", &device]));
        assert!(mounted.is_ok_and(|out| out.status.success()), "mounting {device}");
        for name in ["trees", "shows"] {
            fs::create_dir_all(dir.join(name)).expect("scratch directory");
        }
        Ground { home, dir, count: Cell::new(0) }
    }

    /// The machine, the command, and the peers' versions, as a paragraph.
    pub fn about(&self, small: bool, rounds: usize) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let version: Vec<u32> = kernel.split(['.', '-']).map_while(|w| w.parse().ok()).take(2).collect();
        let version: Vec<String> = version.iter().map(u32::to_string).collect();
        let fuse = Command::new("fuse-overlayfs").arg("--version").output();
        let fuse = fuse.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let fuse = fuse.lines().find(|l| l.starts_with("fuse-overlayfs")).unwrap_or("fuse-overlayfs");
        let small = if small { " --small" } else { "" };
        format!(
            "Measured by `cargo bench --bench peers --{small} --rounds {rounds}` on {cores} cores and {} GiB, Linux {}, on ext4 \
             with mkfs.ext4's defaults; {fuse}.",
            (kib + (1 << 19)) >> 20,
            version.join("."),
        )
    }

    fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Where the tree lies.
    pub fn tree(&self, name: &str) -> PathBuf {
        self.dir.join("trees").join(name)
    }

    /// A directory beside the trees, for what a row needs besides them.
    pub fn aside(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("directory");
        dir
    }

    /// Makes a tree unless it is there, and the version `NAME:1` from it.
    pub fn make(&self, name: &str, fill: impl FnOnce(&Path)) {
        let tree = self.tree(name);
        if tree.exists() {
            return;
        }
        eprintln!("making the tree {name}");
        fs::create_dir(&tree).expect("tree");
        fill(&tree);
        self.reroot(&["import", &format!("dir:{}", tree.display()), &format!("{name}:1")]);
        sync();
    }

    /// Removes a tree and its version.
    pub fn drop_tree(&self, name: &str) {
        if self.tree(name).exists() {
            self.reroot(&["untag", &format!("{name}:1")]);
            self.reroot(&["gc"]);
            remove(&self.tree(name));
        }
    }

    /// Runs a command of ours on the store.
    pub fn reroot(&self, args: &[&str]) -> String {
        self.reroot_on(&self.store(), args)
    }

    /// Runs a command of ours on another store.
    pub fn reroot_on(&self, store: &Path, args: &[&str]) -> String {
        let mut command = Command::new(REROOT);
        command.arg("--store").arg(store).args(args);
        let out = command.output().expect("reroot runs");
        assert!(out.status.success(), "reroot {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Shows a tree through a peer. Without `writes` the native side is the tree itself.
    pub fn show(&self, peer: Peer, tree: &str, writes: bool) -> Show<'_> {
        self.count.set(self.count.get() + 1);
        let id = self.count.get();
        let home = self.dir.join("shows").join(id.to_string());
        for name in ["mnt", "upper", "work"] {
            fs::create_dir_all(home.join(name)).expect("directory");
        }
        let lower = self.tree(tree);
        let mut root = home.join("mnt");
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            home.join("upper").display(),
            home.join("work").display()
        );
        let desktop = format!("d{id}");
        match peer {
            Peer::Native if writes => {
                call(Command::new("cp").arg("-a").arg(lower.join(".")).arg(&root));
                sync();
            }
            Peer::Native => root = lower,
            Peer::Overlay => {
                let options = format!("{layers},redirect_dir=on");
                call(Command::new("mount").args(["-t", "overlay", "peers", "-o", &options]).arg(&root));
            }
            Peer::FuseOverlay => call(Command::new("fuse-overlayfs").args(["-o", &layers]).arg(&root)),
            Peer::Reroot => {
                self.reroot(&["create", &desktop, &format!("{tree}:1")]);
                self.reroot(&["mount", &desktop, &root.display().to_string()]);
            }
            Peer::Inspect => {
                self.reroot(&["inspect", &format!("{tree}:1"), &root.display().to_string()]);
            }
        }
        Show { ground: self, peer, root, home, desktop }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.dir).status();
        remove(&self.home);
    }
}

/// A tree as one peer shows it; goes with what it wrote.
pub struct Show<'a> {
    ground: &'a Ground,
    /// Who shows it.
    pub peer: Peer,
    /// Where.
    pub root: PathBuf,
    home: PathBuf,
    desktop: String,
}

impl Drop for Show<'_> {
    fn drop(&mut self) {
        let point = self.home.join("mnt");
        match self.peer {
            Peer::Native => {}
            Peer::Overlay | Peer::FuseOverlay => {
                // A process that just ended may still be letting go of its files.
                for _ in 0..100 {
                    let done = Command::new("umount").arg(&point).stderr(Stdio::null()).status();
                    if done.is_ok_and(|s| s.success()) {
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            }
            Peer::Reroot => {
                self.ground.reroot(&["umount", &self.desktop]);
                self.ground.reroot(&["rm", &self.desktop]);
            }
            Peer::Inspect => {
                self.ground.reroot(&["umount", &point.display().to_string()]);
            }
        }
        remove(&self.home);
    }
}

/// Runs a command to its end; it must succeed.
pub fn call(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Runs a shell script in a directory; it must succeed.
pub fn sh(dir: &Path, script: &str) {
    call(Command::new("sh").current_dir(dir).args(["-euc", script]));
}

/// Removes a directory, and nothing that is mounted in it.
pub fn remove(dir: &Path) {
    let _ = Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(dir).status();
}

/// Everything written is on the disk.
pub fn sync() {
    rustix::fs::sync();
}

/// Empties the kernel's caches of pages, entries and inodes.
pub fn drop_caches() {
    sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches, as root");
}

/// A descriptor of a directory, for work on its names alone.
pub fn open_dir(dir: &Path) -> rustix::fd::OwnedFd {
    rustix::fs::openat(CWD, dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("directory")
}
