//! One sequence's sides, and what is done and compared step by step.

use std::collections::{BTreeSet, HashSet};
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::mount::{MountFlags, UnmountFlags};

use super::common::tree::{self, Item};
use super::common::{self, Mount, Program, Scratch};
use super::coverage::{Coverage, Event};
use super::operations::{Operation, Outcome, Side};
use super::oracle::{Oracle, Version};
use super::overlay;
use super::snapshot::{self, Fact, Numbers, Tree};

/// Sequences that share one mounted desktop: each has a directory of its own, with the same content.
pub const SLOTS: usize = 32;

/// What the versions hold. Names are few, so that operations meet.
fn base(dir: &Path) {
    tree::write(
        dir,
        &[
            ("a/a", Item::Mode(b"base a/a", 0o2755)),
            ("a/b", Item::Mode(&[b'x'; 10_000], 0o755)),
            ("a/c/a", Item::File(b"deep")),
            ("a/c/b", Item::Dir(0o2775)),
            ("b", Item::File(b"base b")),
            ("c", Item::Link("a/c")),
            ("d/a", Item::Same("a/b")),
            ("d/b", Item::Dir(0o755)),
            ("d/c/a", Item::Same("a/b")),
            ("d/c/b", Item::File(b"to be removed")),
        ],
    );
    common::sh(
        dir,
        "mkfifo d/d; /usr/sbin/setcap cap_net_raw+ep a/b
         setfattr -n user.x -v base a/a; setfattr -n trusted.t -v base d",
    )
    .ok();
    settle_times(dir, 1_500_000_000);
}

/// What the second version is made of the first by, and the third of the second.
const CHANGES: [&str; 2] = [
    "rm d/c/b; mkdir -p d/d2; rm d/d; mkdir d/d; echo delta a/a, longer >a/a; echo new >d/d/a; ln -s ../a d/d2/x
     chmod 640 b; mknod d/d/c c 1 3; setfacl -d -m u:1234:rwx a/c/b; setfacl -m u:77:r d/d/a; mkdir a/d; echo 2 >a/d/a",
    "rm -r d/d2 a/c/a; rm b; mkdir b; echo in b >b/b; rm c; echo c >c; rm d/c/a; echo split >d/c/a
     printf 'third a/a' >a/a; setfattr -n user.x -v third a/a; mknod d/d/d c 0 0; rmdir d/b; echo file >d/b
     mkdir -p c2/a; echo 3 >c2/a/b; chmod 600 a/d/a",
];

/// Old times, so that what is changed later can be told.
fn settle_times(dir: &Path, time: i64) {
    common::sh(dir, &format!("find . -depth -exec touch -h -d @{time}.5 {{}} +")).ok();
}

/// The versions in a store, and in directories.
#[derive(Debug)]
pub struct World {
    pub scratch: Scratch,
    pub program: Program,
    sources: Vec<PathBuf>,
}

impl World {
    /// With the program as `adjust` gives it.
    pub fn new(adjust: impl FnOnce(Program) -> Program) -> World {
        common::require_root();
        let scratch = Scratch::new();
        let program = adjust(Program::new(&scratch));
        let first = scratch.dir("tpl-0");
        base(&first);
        let mut sources = vec![first];
        for (i, script) in CHANGES.iter().enumerate() {
            let dir = scratch.dir(&format!("tpl-{}", i + 1));
            common::sh(&dir, &format!("cp -a {}/. .\n{script}", sources[i].display())).ok();
            touch_changed(&dir, &sources[i], 1_500_000_100 + i as i64);
            sources.push(dir);
        }
        for (i, source) in sources.iter().enumerate() {
            let parent = format!("m:{i}");
            let before = scratch.join(format!("src-m-{i}"));
            tree::import(&scratch, &program, &format!("m:{}", i + 1), (i > 0).then_some(&*parent), |dir| {
                let copy = format!(
                    "for i in $(seq 0 {}); do cp -a {} s$i; done; touch -d @1500000000 .",
                    SLOTS - 1,
                    source.display()
                );
                let _ = &before;
                common::sh(dir, &copy).ok();
            });
        }
        overlay::prepare(&scratch, &CHANGES[..1], SLOTS);
        World { scratch, program, sources }
    }

    /// The versions as the oracle sees them.
    pub fn versions(&self) -> Rc<Vec<Version>> {
        Rc::new(self.sources.iter().map(|s| Version::read(s)).collect())
    }
}

/// Gives what differs from the version before a time of its own.
fn touch_changed(dir: &Path, before: &Path, time: i64) {
    // Files of before keep their times through `cp -a`; what is new is of now.
    common::sh(
        dir,
        &format!(
            "find . -newermt @1600000000 ! -type d -exec touch -h -d @{time}.5 {{}} +
             find . -depth -type d -newermt @1600000000 | while read -r d; do
               if [ -d {0}/\"$d\" ]; then touch -r {0}/\"$d\" \"$d\"; else touch -d @{time}.5 \"$d\"; fi; done",
            before.display()
        ),
    )
    .ok();
}

/// A mounted desktop with an overlay beside it, and directories for plain trees.
#[derive(Debug)]
pub struct Station<'w> {
    world: &'w World,
    versions: Rc<Vec<Version>>,
    desktop: String,
    options: &'static str,
    point: PathBuf,
    plains: PathBuf,
    mount: Option<Mount>,
    overlay: Option<overlay::Overlay>,
    start: usize,
    at: usize,
}

impl<'w> Station<'w> {
    /// `batch` decides on the version, the mount's options and the name.
    pub fn new(world: &'w World, versions: &Rc<Vec<Version>>, batch: u64, name: &str) -> Station<'w> {
        let start = (batch % 3) as usize;
        // Some go through the daemon alone.
        let options = if batch / 3 % 3 == 2 { "data=coherent" } else { "" };
        world.program.ok(&["create", name, &format!("m:{}", start + 1)]);
        let point = world.scratch.dir(&format!("mnt-{name}"));
        let mount = world.program.mount_with(name, &point, options);
        // The third version holds a character device 0:0, which no layer of an overlay can.
        let overlay = (start < 2).then(|| overlay::Overlay::new(&world.scratch, name, start));
        Station {
            world,
            versions: versions.clone(),
            desktop: name.into(),
            options,
            point,
            plains: world.scratch.dir(&format!("plain-{name}")),
            mount: Some(mount),
            overlay,
            start,
            at: start,
        }
    }

    /// A new trial in a directory that was not used yet.
    pub fn trial(&mut self, slot: usize, with_overlay: bool) -> Trial<'_, 'w> {
        if self.at != self.start {
            self.swap(self.start);
        }
        let plain = self.plains.join(format!("s{slot}"));
        fs::create_dir(&plain).unwrap();
        let oracle = Oracle::new(self.versions.clone(), self.start, &plain);
        let name = format!("s{slot}");
        let third = self.overlay.as_ref().filter(|_| with_overlay).map(|o| Side::new(&o.point.join(&name)));
        Trial {
            plain: Side::new(&plain),
            view: Side::new(&self.point.join(&name)),
            third,
            station: self,
            oracle,
            numbers: Numbers::new(),
            third_numbers: Numbers::new(),
            coverage: Coverage::default(),
            displaced: HashSet::new(),
        }
    }

    fn swap(&mut self, to: usize) {
        if to != self.at {
            self.world.program.ok(&["upgrade", &self.desktop, "--to", &format!("m:{}", to + 1)]);
            self.at = to;
        }
    }

    fn remount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.umount();
        }
        self.mount = Some(self.world.program.mount_with(&self.desktop, &self.point, self.options));
    }

    /// Unmounts and removes everything.
    pub fn end(mut self) {
        if let Some(mount) = self.mount.take() {
            mount.umount();
        }
        drop(self.overlay.take());
        self.world.program.ok(&["rm", &self.desktop]);
        let _ = fs::remove_dir_all(&self.plains);
    }
}

/// What is wrong, in words.
pub type Wrong = String;

/// A sequence on its sides.
#[derive(Debug)]
pub struct Trial<'s, 'w> {
    station: &'s mut Station<'w>,
    plain: Side,
    view: Side,
    third: Option<Side>,
    oracle: Oracle,
    numbers: Numbers,
    third_numbers: Numbers,
    pub coverage: Coverage,
    /// Inodes of the plain side that are open and that a swap took the names of.
    displaced: HashSet<u64>,
}

impl Trial<'_, '_> {
    /// Does an operation on all sides and compares the answers, and what it may have changed.
    pub fn step(&mut self, operation: &Operation) -> Result<(), Wrong> {
        match operation {
            Operation::Remount => {
                self.close();
                self.station.remount();
                if self.third.is_some()
                    && let Some(overlay) = &mut self.station.overlay
                    && !overlay.remount()
                {
                    self.coverage
                        .overlay_left("another mount name space holds it, and it cannot be mounted again");
                    (self.third, self.station.overlay) = (None, None);
                }
                self.coverage.remounted();
                return Ok(());
            }
            Operation::DropCaches => {
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                self.coverage.forgot();
                return Ok(());
            }
            Operation::Swap(to) => return self.swap(*to),
            Operation::SwapDuring(to, path, byte) => return self.swap_during(*to, path, *byte),
            _ => {}
        }
        let event = self.coverage.before(operation, &self.plain);
        let before = self.oracle.before(operation, &self.plain);
        let (plain, view) = (self.plain.apply(operation), self.view.apply(operation));
        // Overlayfs has file handles only with `nfs_export`.
        let by_handle = matches!(operation, Operation::Take(..) | Operation::OpenTaken(_));
        let third = self.third.as_mut().filter(|_| !by_handle).map(|t| t.apply(operation));
        if plain != view {
            let also = third.map_or(String::new(), |t| format!("\n  overlayfs: {t:?}"));
            return Err(format!("answers differ\n  plain: {plain:?}\n  view:  {view:?}{also}"));
        }
        if plain.is_ok() {
            self.oracle.after(operation, before);
            self.coverage.after(operation, event);
        }
        if let Operation::Open(slot, _, flags) = operation {
            self.coverage.opened(*slot, self.plain.inode(*slot), flags & libc::O_ACCMODE != libc::O_RDONLY);
        }
        if let Some(third) = third.filter(|t| *t != plain) {
            self.third_differs(operation, &plain, &third)?;
        }
        self.compare_near(operation)
    }

    fn close(&mut self) {
        self.plain.close_all();
        self.view.close_all();
        if let Some(third) = &mut self.third {
            third.close_all();
        }
    }

    /// The third side gave another answer than the other two: it is known to, or it is we who are wrong.
    fn third_differs(
        &mut self,
        operation: &Operation,
        plain: &Outcome,
        third: &Outcome,
    ) -> Result<(), Wrong> {
        match overlay::known_answer(operation, plain, third) {
            Some(known) => {
                self.coverage.overlay_left(known.reason);
                if !known.goes_on {
                    self.third = None;
                }
                Ok(())
            }
            None => Err(format!(
                "overlayfs differs, and nobody says why\n  plain and view: {plain:?}\n  overlayfs: {third:?}"
            )),
        }
    }

    /// Compares what an operation names, and the directories that those lie in.
    fn compare_near(&mut self, operation: &Operation) -> Result<(), Wrong> {
        let mut near = BTreeSet::new();
        for name in operation.names() {
            near.insert(name.to_string());
            near.insert(name.rsplit_once('/').map_or("", |(dir, _)| dir).to_string());
        }
        let (mut plain, mut view, mut third) = (Tree::new(), Tree::new(), Tree::new());
        for name in near {
            let sides = [(&self.plain, &mut plain), (&self.view, &mut view)];
            for (side, tree) in sides.into_iter().chain(self.third.as_ref().map(|t| (t, &mut third))) {
                if let Some(fact) = snapshot::look(&side.root, &name)? {
                    tree.insert(name.clone(), fact);
                }
            }
        }
        self.hold(&plain, &view, self.third.is_some().then_some(&third))
    }

    /// Handles that are open.
    pub fn open_slots(&self) -> Vec<usize> {
        (0..self.plain.handles.len()).filter(|slot| self.plain.handles[*slot].is_some()).collect()
    }

    /// Compares the whole trees; gives back their paths.
    pub fn compare(&mut self) -> Result<Vec<String>, Wrong> {
        let plain = snapshot::snapshot(&self.plain.root).map_err(|e| format!("plain: {e}"))?;
        let view = snapshot::snapshot(&self.view.root).map_err(|e| format!("view: {e}"))?;
        let third = match &self.third {
            Some(third) => Some(snapshot::snapshot(&third.root).map_err(|e| format!("overlayfs: {e}"))?),
            None => None,
        };
        self.hold(&plain, &view, third.as_ref())?;
        Ok(plain.into_keys().collect())
    }

    fn hold(&mut self, plain: &Tree, view: &Tree, third: Option<&Tree>) -> Result<(), Wrong> {
        let equal = |_: &str, a: &Fact, b: &Fact| a.text == b.text;
        let wrong = snapshot::differences(plain, view, &mut self.numbers, equal);
        if !wrong.is_empty() {
            return Err(format!("trees differ\n{}", wrong.join("\n")));
        }
        if let Some(third) = third {
            let wrong = snapshot::differences(plain, third, &mut self.third_numbers, overlay::same);
            if !wrong.is_empty() {
                match overlay::known_tree(plain, third, &wrong) {
                    Some(reason) => {
                        self.coverage.overlay_left(reason);
                        self.third = None;
                    }
                    None => {
                        return Err(format!(
                            "overlayfs's tree differs, and nobody says why\n{}",
                            wrong.join("\n")
                        ));
                    }
                }
            } else {
                self.coverage.overlay_agreed();
            }
        }
        Ok(())
    }

    fn swap(&mut self, to: usize) -> Result<(), Wrong> {
        if to == self.oracle.at {
            return Ok(());
        }
        if !self.oracle.can_swap(to) {
            self.coverage.count(Event::SwapLeftOut);
            return Ok(());
        }
        self.third = None;
        self.close_displaced();
        self.ask()?;
        self.swap_plain(to);
        self.station.swap(to);
        self.coverage.swapped();
        self.ask()?;
        self.compare().map(drop)
    }

    /// What a swap displaced is closed before the next: on the version that it comes from it is what its name leads to
    /// again, and on the plain side another file is.
    fn close_displaced(&mut self) {
        for operation in self.plain.slots_of(&self.displaced) {
            let _ = (self.plain.apply(&operation), self.view.apply(&operation));
            self.coverage.after(&operation, None);
        }
        self.displaced.clear();
    }

    /// Asks for every name that some version has: what is not there the kernel remembers too.
    fn ask(&self) -> Result<(), Wrong> {
        for path in self.oracle.paths() {
            let there = |side: &Side| side.root.join(&path).symlink_metadata().is_ok();
            if there(&self.plain) != there(&self.view) {
                return Err(format!("{path} is there on the plain side: {}", there(&self.plain)));
            }
        }
        Ok(())
    }

    fn swap_plain(&mut self, to: usize) {
        let open = self.plain.open_inodes();
        let named = |i: &u64| !self.oracle.names_of(*i).is_empty();
        let before: Vec<u64> = open.into_iter().filter(named).collect();
        self.swap_names(to);
        self.displaced.extend(before.into_iter().filter(|i| self.oracle.names_of(*i).is_empty()));
    }

    /// Where a name may lead to another inode and need not, who holds the old one may have lost it and need not have.
    fn swap_names(&mut self, to: usize) {
        let mut renumbered = HashSet::new();
        for path in self.oracle.swap(to) {
            if let Ok(meta) = fs::symlink_metadata(&path) {
                self.numbers.remove(&(meta.ino(), meta.created().unwrap_or(std::time::UNIX_EPOCH)));
                renumbered.insert(meta.ino());
            }
        }
        for operation in self.plain.slots_of(&renumbered) {
            let _ = (self.plain.apply(&operation), self.view.apply(&operation));
            self.coverage.after(&operation, None);
        }
    }

    /// A swap while a file is opened for writing: the copy-up is before it or after it, and either is right.
    fn swap_during(&mut self, to: usize, path: &str, byte: u8) -> Result<(), Wrong> {
        if to == self.oracle.at || !self.oracle.can_swap(to) || !self.oracle.is_to_be_copied_up(path, to) {
            return self.swap(to);
        }
        self.third = None;
        self.close_displaced();
        let append = Operation::Append(path.to_string(), byte, 1);
        let old = fs::read(self.plain.root.join(path)).map_err(|e| e.to_string())?;
        let mut writer = Side::new(&self.view.root);
        let operation = append.clone();
        let thread = std::thread::spawn(move || writer.apply(&operation));
        self.station.swap(to);
        let result = thread.join().unwrap_or(Err(-1));
        let now = fs::read(self.view.root.join(path)).ok();
        let first = result.is_ok() && now == Some([&old[..], &[byte]].concat());
        if first {
            let _ = self.plain_alone(&append);
            if !self.oracle.can_swap(to) {
                return Err("a file with one name stands in the way of a swap".into());
            }
            self.swap_plain(to);
        } else {
            self.swap_plain(to);
            let expected = self.plain_alone(&append);
            let gone = |o: &Outcome| matches!(o, Err(libc::ENOENT | libc::ENOTDIR));
            if expected != result && !(gone(&expected) && gone(&result)) {
                return Err(format!("the writer during a swap: {result:?}, and after it: {expected:?}"));
            }
        }
        self.coverage.swapped();
        self.coverage.count(Event::CopyUpDuringSwap);
        self.compare().map(drop)
    }

    fn plain_alone(&mut self, operation: &Operation) -> Outcome {
        let before = self.oracle.before(operation, &self.plain);
        let outcome = self.plain.apply(operation);
        if outcome.is_ok() {
            self.oracle.after(operation, before);
        }
        outcome
    }

    /// Ends it; what was reached on the way.
    pub fn end(mut self) -> Coverage {
        self.close();
        let plain = self.plain.root.clone();
        let _ = fs::remove_dir_all(plain);
        self.coverage
    }
}

/// A mount that this test made itself.
pub fn mount_overlay(point: &Path, options: &str) -> Result<(), rustix::io::Errno> {
    let data = CString::new(options).unwrap();
    for _ in 0..250 {
        match rustix::mount::mount("overlay", point, "overlay", MountFlags::empty(), &*data) {
            // Its directories are still in use: a mount name space that somebody made meanwhile holds the last mount.
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(20)),
            r => return r,
        }
    }
    Err(rustix::io::Errno::BUSY)
}

/// Its end.
pub fn unmount_overlay(point: &Path) {
    for _ in 0..200 {
        match rustix::mount::unmount(point, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(20)),
            _ => return,
        }
    }
    let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
}
