//! The same steps on a plain directory and on a view; both must say and show the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::common::desk::{Desk, desk};

/// The user and group that "another user" is in these tests.
pub const OTHER: u32 = 1234;

/// One place where steps are taken, and what they said so far.
pub struct At {
    dir: PathBuf,
    said: Mutex<Vec<String>>,
}

impl At {
    /// A path in this place.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The place itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes something that must be equal in both places.
    pub fn note(&self, what: &str, value: impl Debug) {
        self.said.lock().unwrap().push(format!("{what}: {value:?}"));
    }

    /// Notes how a step ended, its value or its error number, and gives the value on.
    pub fn did<T: Debug, E: Into<io::Error>>(&self, what: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.note(what, &value);
                Some(value)
            }
            Err(e) => {
                self.note(what, e.into());
                None
            }
        }
    }

    /// As [`At::did`] for values that mean nothing to others, such as open files.
    pub fn got<T, E: Into<io::Error>>(&self, what: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.note(what, ());
                Some(value)
            }
            Err(e) => {
                self.note(what, e.into());
                None
            }
        }
    }

    /// Does something in a thread that acts as [`OTHER`], without privileges.
    pub fn as_other<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        as_user(OTHER, OTHER, &[], act)
    }

    /// Notes mode, owner, length and links of a path.
    pub fn look(&self, name: &str) {
        self.note(
            name,
            fs::symlink_metadata(self.path(name))
                .map(|m| {
                    format!("{:o} {}:{} {} bytes {} links", m.mode(), m.uid(), m.gid(), size(&m), m.nlink())
                })
                .map_err(|e| e.raw_os_error()),
        );
    }
}

fn size(m: &fs::Metadata) -> u64 {
    if m.is_dir() { 0 } else { m.len() }
}

/// Does something in a thread with these ids and no privileges. (Linux keeps them for each thread; the C library's
/// calls would change all threads, these do not.)
pub fn as_user<T: Send>(uid: u32, gid: u32, groups: &[u32], act: impl FnOnce() -> T + Send) -> T {
    use rustix::thread as rt;
    let groups: Vec<rt::Gid> = groups.iter().map(|g| rt::Gid::from_raw(*g)).collect();
    let (uid, gid) = (rt::Uid::from_raw(uid), rt::Gid::from_raw(gid));
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            rt::set_thread_groups(&groups).expect("groups");
            rt::set_thread_res_gid(gid, gid, gid).expect("group");
            rt::set_thread_res_uid(uid, uid, uid).expect("user");
            act()
        });
        worker.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    })
}

/// Takes the steps `act` in four places, which `fill` fills alike: in a plain directory and in a view, each on what is
/// there from the begin ("stack") and on what was made later ("born"). What they say, what can be seen afterwards,
/// and what can be seen after a remount must be equal.
#[track_caller]
pub fn twins(fill: fn(&Path), act: fn(&At)) {
    twins_on("", fill, act);
}

/// As [`twins`], mounted with options.
#[track_caller]
pub fn twins_on(options: &str, fill: fn(&Path), act: fn(&At)) {
    let lay = move |base: &Path| {
        let dir = base.join("stack");
        fs::create_dir(&dir).unwrap();
        fill(&dir);
    };
    desk(options, lay, move |d: &Desk| {
        let plain = d.source.with_file_name("plain");
        fs::create_dir(&plain).unwrap();
        lay(&plain);
        for base in [&plain, &d.mnt] {
            fs::create_dir(base.join("born")).unwrap();
            fill(&base.join("born"));
        }
        let mut seen = Vec::new();
        for part in ["stack", "born"] {
            assert_same(&format!("{part}, before the steps"), &state(&plain.join(part)), &state(&d.at(part)));
            let mut said = Vec::new();
            for base in [&plain, &d.mnt] {
                let at = At { dir: base.join(part), said: Mutex::default() };
                act(&at);
                said.push(at.said.into_inner().unwrap());
            }
            let (view, plain_said) = (said.pop().unwrap(), said.pop().unwrap());
            assert_said(part, &plain_said, &view);
            let now = state(&plain.join(part));
            assert_same(part, &now, &state(&d.at(part)));
            seen.push((part, now));
        }
        d.drop_caches();
        for (part, then) in &seen {
            assert_same(&format!("{part}, when the kernel forgot"), then, &state(&d.at(part)));
        }
        d.remount();
        for (part, then) in &seen {
            assert_same(&format!("{part}, after a remount"), then, &state(&d.at(part)));
        }
    });
}

#[track_caller]
fn assert_said(part: &str, plain: &[String], view: &[String]) {
    let mut lines = Vec::new();
    for i in 0..plain.len().max(view.len()) {
        let (p, v) = (plain.get(i), view.get(i));
        if p != v {
            let step = if i > 0 { plain.get(i - 1) } else { None };
            lines.push(format!("after {step:?}\n  ext4: {p:?}\n  view: {v:?}"));
        }
    }
    let (count, all) = (lines.len(), plain.len());
    lines.truncate(20);
    assert!(all > 0, "nothing was said");
    assert!(count == 0, "{part}: {count} of {all} steps differ\n{}", lines.join("\n"));
}

/// What can be seen of a tree: type, mode, owner, links, length and content, extended attributes, and which names are
/// one file.
pub type State = BTreeMap<Vec<u8>, String>;

/// Looks at a tree.
pub fn state(root: &Path) -> State {
    let mut out = State::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(name) = todo.pop() {
        let path = if name.is_empty() { root.to_path_buf() } else { root.join(OsStr::from_bytes(&name)) };
        let m = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut line = format!(
            "{:o} {}:{} {} links {} bytes {:x}",
            m.mode(),
            m.uid(),
            m.gid(),
            m.nlink(),
            size(&m),
            m.rdev()
        );
        if m.is_dir() {
            let mut names: Vec<Vec<u8>> = fs::read_dir(&path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                .map(|e| e.unwrap().file_name().as_bytes().to_vec())
                .collect();
            names.sort();
            for child in names.into_iter().rev() {
                todo.push(if name.is_empty() { child } else { [&name[..], b"/", &child].concat() });
            }
        } else if m.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(&path));
        } else if m.is_file() && m.len() < 64 << 20 {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            line += &format!(
                " {}",
                if bytes.len() < 80 {
                    format!("{:?}", String::from_utf8_lossy(&bytes))
                } else {
                    digest(&bytes)
                }
            );
        }
        if !m.is_dir() && m.nlink() > 1 {
            let leader = first.entry(m.ino()).or_insert_with(|| name.clone());
            line += &format!(" = {:?}", String::from_utf8_lossy(leader));
        }
        for (attribute, value) in attributes(&path) {
            line += &format!(" {attribute}={value:02x?}");
        }
        out.insert(name, line);
    }
    out
}

fn digest(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// The extended attributes of a path, a symbolic link's own.
pub fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let names = list[..n].split(|c| *c == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..])
                .unwrap_or_else(|e| panic!("{}: {}: {e}", path.display(), String::from_utf8_lossy(name)));
            value.truncate(n);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

#[track_caller]
fn assert_same(what: &str, plain: &State, view: &State) {
    let names: std::collections::BTreeSet<&Vec<u8>> = plain.keys().chain(view.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        let (p, v) = (plain.get(name), view.get(name));
        if p != v {
            lines.push(format!("/{}\n  ext4: {p:?}\n  view: {v:?}", String::from_utf8_lossy(name)));
        }
    }
    assert!(lines.is_empty(), "{what}: {} paths differ\n{}", lines.len(), lines.join("\n"));
}
