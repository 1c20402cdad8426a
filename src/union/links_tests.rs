//! What a large hard-link group costs, counted in looks at its paths.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::layer::model::{self, Content, Draft, Meta};
use crate::layer::stack;
use crate::store::desktops::{Choice, Desktop};
use crate::store::objects::Intake;
use crate::store::{Digest, Store};
use crate::union::attributes::Change;
use crate::union::completion::Pieces;
use crate::union::lower::{Objects, Stack, Tree};
use crate::union::upper::UserLayer;
use crate::union::{Caller, Data, Library, Settings, View};

const TOP: u64 = crate::union::node::ROOT;
const LINKS: usize = 5000;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

struct Ground {
    dir: PathBuf,
    store: Store,
}

impl Ground {
    fn new(name: &str) -> Ground {
        let top = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = top.join(format!("rrlinks-{}-{}", std::process::id(), name));
        let store = Store::open(&dir.join("store")).unwrap();
        Ground { dir, store }
    }

    /// A version with `LINKS` names in two directories. Apart from the first, they are links to one file.
    fn version(&self, parent: Option<&Digest>, first_is_linked: bool) -> Digest {
        let intake = Intake::begin(&self.store).unwrap();
        let (object, _) = intake.add_reader(&b"content"[..], &|_| {}).unwrap().unwrap();
        intake.finish().unwrap();
        let mut draft = Draft::default();
        let file = |draft: &mut Draft| {
            let content = Content::File { object, size: 7 };
            draft.add(Meta { mode: 0o644, ..Meta::default() }, content)
        };
        let linked = file(&mut draft);
        for home in ["a", "b"] {
            let dir = draft.add(Meta { mode: 0o755, ..Meta::default() }, Content::Dir { opaque: false });
            draft.link(model::ROOT, home.as_bytes(), dir);
            for n in 0..LINKS / 2 {
                let alone = (home, n) == ("a", 0) && !first_is_linked;
                let inode = if alone { file(&mut draft) } else { linked };
                draft.link(dir, format!("{n:04}").as_bytes(), inode);
            }
        }
        let manifest = parent.map(|p| self.store.version(p).unwrap());
        let parent = parent.zip(manifest.as_ref());
        stack::publish_version(&self.store, parent, &draft, stack::Words::default()).unwrap().unwrap().0
    }

    fn desktop(&self, version: &Digest) -> Desktop {
        let choice = Choice { version: *version, tag: None };
        self.store.create_desktop("d", "links", choice, None, BTreeMap::new()).unwrap()
    }

    fn view(&self, desktop: &Desktop, version: &Digest) -> View {
        let user = UserLayer::open(desktop, libc::MOUNT_ATTR_NOATIME).unwrap();
        let objects = Objects::open(&self.store).unwrap();
        let library = Some(Library { store: self.store.clone(), objects: objects.into() });
        let stack = Stack::Version(Tree::open(&self.store, version).unwrap());
        let settings =
            Settings { read_only: false, data: Data::Coherent, metacopy: true, pieces: Pieces::default() };
        View::new(library, Some(user), stack, 0, settings).unwrap()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Lists both directories and looks at each name: number and links of all but `a/0000`.
fn look(view: &View) -> Vec<(u64, u32)> {
    let pin = view.pin();
    let mut out = Vec::new();
    for home in [&b"a"[..], b"b"] {
        let (dir, _) = view.lookup(&pin, TOP, home).unwrap().unwrap();
        let items = {
            let _names = view.names.read();
            view.list(&pin, &dir).unwrap()
        };
        for item in items {
            let (node, attributes) = view.lookup(&pin, dir.id, &item.name).unwrap().unwrap();
            assert_eq!(node.id, item.id);
            if (home, &item.name[..]) != (b"a", b"0000") {
                out.push((node.id, attributes.nlink));
            }
        }
    }
    out
}

fn work(view: &View, what: &str, most: usize, work: impl FnOnce()) {
    let before = view.looks_at_groups();
    work();
    let looks = view.looks_at_groups() - before;
    assert!(looks <= (most * LINKS) as u64, "{what}: {looks} looks at {LINKS} paths");
}

#[test]
fn a_large_hard_link_group_is_listed_looked_at_and_removed_in_linear_time() {
    let ground = Ground::new("whole");
    let one = ground.version(None, false);
    let two = ground.version(Some(&one), true);
    let desktop = ground.desktop(&two);
    let view = ground.view(&desktop, &two);
    let pin = view.pin();
    let (a, _) = view.lookup(&pin, TOP, b"a").unwrap().unwrap();
    work(&view, "looking at it", 3, || {
        let seen = look(&view);
        assert_eq!(seen.len(), LINKS - 1);
        assert!(seen.iter().all(|s| *s == (seen[0].0, LINKS as u32)));
    });
    work(&view, "the same after something else was made beside it", 8, || {
        view.make(&pin, a.id, b"new", crate::union::names::Make::File, 0o644, 0, CALLER).unwrap();
        let pin = view.pin();
        let (b, _) = view.lookup(&pin, TOP, b"b").unwrap().unwrap();
        assert_eq!(view.lookup(&pin, b.id, b"0001").unwrap().unwrap().1.nlink, LINKS as u32);
    });
    let (first, _) = view.lookup(&pin, a.id, b"0000").unwrap().unwrap();
    work(&view, "changing and removing it", 12, || {
        let change = Change { mode: Some(0o600), ..Change::default() };
        view.setattr(&pin, first.id, &change, CALLER).unwrap();
        for home in [&b"a"[..], b"b"] {
            let (dir, _) = view.lookup(&pin, TOP, home).unwrap().unwrap();
            for n in 0..LINKS / 2 {
                view.unlink(&pin, dir.id, format!("{n:04}").as_bytes()).unwrap();
            }
        }
    });
}

#[test]
fn what_is_left_of_a_large_group_is_looked_at_in_linear_time() {
    let ground = Ground::new("left");
    let one = ground.version(None, false);
    let two = ground.version(Some(&one), true);
    let desktop = ground.desktop(&one);
    {
        let view = ground.view(&desktop, &one);
        let pin = view.pin();
        let (a, _) = view.lookup(&pin, TOP, b"a").unwrap().unwrap();
        let (first, _) = view.lookup(&pin, a.id, b"0000").unwrap().unwrap();
        let opened = view.open(&pin, first.id, libc::O_WRONLY, CALLER).unwrap();
        view.write(&pin, opened.fh, 0, b"changed", None, false).unwrap();
        view.release(opened.fh).unwrap();
        view.close().unwrap();
    }
    let view = ground.view(&desktop, &two);
    work(&view, "what is left", 6, || {
        let seen = look(&view);
        assert_eq!(seen.len(), LINKS - 1);
        assert!(seen.iter().all(|s| *s == (seen[0].0, LINKS as u32 - 1)), "{:?}", &seen[..3]);
    });
}
