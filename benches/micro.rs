//! What the parts cost by themselves: `cargo bench --bench micro [-- WORD]`; under two minutes, no mount.
//!
//! The view is called as `fuse.rs` calls it, without the kernel: what is measured is the daemon's share of a
//! request. Copy-up writes real files beneath `$TMPDIR`, else `/var/tmp`. Criterion compares each figure with
//! that of the run before.

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use reroot::layer::diff::diff;
use reroot::layer::index::Index;
use reroot::layer::model::{self, Content, Draft, Meta};
use reroot::layer::{encode, merge, stack};
use reroot::store::desktops::Choice;
use reroot::store::objects::Intake;
use reroot::store::{Digest, Store};
use reroot::union::attributes::Change;
use reroot::union::completion::Pieces;
use reroot::union::lower::{Objects, Stack, Tree};
use reroot::union::upper::UserLayer;
use reroot::union::{Caller, Data, Library, Settings, View};

/// Paths of the tree that is looked up, listed, merged and compared: 200 directories of 100 files.
const DIRS: usize = 200;
const FILES: usize = 100;
/// Deltas above it, and how many files each changes.
const DELTAS: usize = 20;
const CHANGED: usize = 50;
/// Files whose attributes are changed in one go, and how many of them are copied up with their contents: the disk is
/// waited for at each.
const TOUCHED: usize = 256;
const COPIED: usize = 16;
/// Their length in bytes, and that of the one that is copied up in pieces.
const SMALL: usize = 4096;
const LARGE: usize = 64 << 20;

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// The view's root.
const TOP: u64 = 1;

/// A store in a scratch directory.
struct Ground {
    dir: PathBuf,
    store: Store,
}

impl Ground {
    fn new(name: &str) -> Ground {
        let top = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = top.join(format!("rrmicro-{name}-{}", std::process::id()));
        let store = Store::open(&dir.join("store")).expect("store");
        Ground { dir, store }
    }

    /// A version that shows a draft whose contents are in the store.
    fn version(&self, parent: Option<&Digest>, full: &Draft) -> Digest {
        let manifest = parent.map(|p| self.store.version(p).expect("version"));
        let parent = parent.zip(manifest.as_ref());
        let published = stack::publish_version(&self.store, parent, full, stack::Words::default());
        published.expect("version").expect("something differs").0
    }

    /// A view of a version, with a new desktop's user layer above it.
    fn view(&self, version: &Digest, number: usize) -> View {
        let choice = Choice { version: *version, tag: None };
        let name = format!("d{number}");
        let desktop =
            self.store.create_desktop(&name, "micro", choice, None, BTreeMap::new()).expect("desktop");
        let user = UserLayer::open(&desktop, libc::MOUNT_ATTR_NOATIME).expect("user layer");
        let objects = Objects::open(&self.store).expect("objects");
        let library = Some(Library { store: self.store.clone(), objects: objects.into() });
        let tree = Tree::open(&self.store, version).expect("tree");
        let settings =
            Settings { read_only: false, data: Data::Auto, metacopy: true, pieces: Pieces::default() };
        let view = View::new(library, Some(user), Stack::Version(tree), 0, settings);
        view.unwrap_or_else(|e| panic!("view: error {}", e.0))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn dir(draft: &mut Draft, name: &str) -> model::InodeId {
    let id = draft.add(Meta { mode: 0o755, ..Meta::default() }, Content::Dir { opaque: false });
    draft.link(model::ROOT, name.as_bytes(), id);
    id
}

fn file(draft: &mut Draft, home: model::InodeId, name: &str, object: Digest, size: usize) {
    let content = Content::File { object, size: size as u64 };
    let id = draft.add(Meta { mode: 0o644, ..Meta::default() }, content);
    draft.link(home, name.as_bytes(), id);
}

/// The tree; `edition` n has the changes of n deltas.
fn wide(edition: usize) -> Draft {
    let mut draft = Draft::default();
    for d in 0..DIRS {
        let home = dir(&mut draft, &format!("d{d:03}"));
        for f in 0..FILES {
            let place = d * FILES + f;
            // The last delta that changed this file. No content is read here, so any digest will do.
            let last = (1..=edition).rev().find(|n| place % (DIRS * FILES / CHANGED) == *n).unwrap_or(0);
            let object = Digest::of(format!("{place} {last}").as_bytes());
            file(&mut draft, home, &format!("file-with-a-name-{f:02}"), object, 1000);
        }
    }
    draft
}

fn index_of(path: &Path, draft: &Draft) -> Index {
    let bytes = encode::tree(draft, Digest::of(b"a stack")).expect("tree");
    fs::write(path, bytes).expect("tree");
    Index::open(&fs::File::open(path).expect("tree")).expect("tree")
}

fn trees(c: &mut Criterion) {
    let ground = Ground::new("trees");
    let (old, new) = (wide(0), wide(DELTAS));
    let (old_tree, new_tree) =
        (index_of(&ground.dir.join("old"), &old), index_of(&ground.dir.join("new"), &new));
    assert_eq!(diff(&old_tree, &new_tree).expect("difference").len(), DELTAS * CHANGED);

    let mut group = c.benchmark_group("lookup");
    let (mut at, len) = (0, DIRS * FILES);
    group.bench_function("a path of two names in a tree of 20,000", |b| {
        b.iter(|| {
            at = (at + 7919) % len;
            let path = format!("d{:03}/file-with-a-name-{:02}", at / FILES, at % FILES);
            assert!(black_box(new_tree.find(path.as_bytes())).expect("tree").is_some());
        });
    });
    group.finish();

    let mut group = c.benchmark_group("difference");
    group.bench_function("1,000 of 20,000 files", |b| {
        b.iter(|| diff(black_box(&old_tree), black_box(&new_tree)).expect("difference").len());
    });
    group.bench_function("none", |b| b.iter(|| diff(&new_tree, &new_tree).expect("difference").len()));
    group.finish();

    // A version's stack, and what a mount needs of it.
    let mut version = ground.version(None, &old);
    for edition in 1..=DELTAS {
        version = ground.version(Some(&version), &wide(edition));
    }
    let manifest = ground.store.version(&version).expect("version");
    assert_eq!(manifest.stack.len(), 1 + DELTAS);
    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Elements(len as u64));
    group.bench_function("a base of 20,000 files and 20 deltas, to a tree", |b| {
        b.iter(|| {
            let merged = stack::merge_layers(&ground.store, &manifest.stack).expect("layers");
            encode::tree(&merged, manifest.stack_digest()).expect("tree").len()
        });
    });
    group.bench_function("the delta between two drafts of 20,000 files", |b| {
        b.iter(|| merge::delta(&old, &new).walk().len());
    });
    group.finish();

    let view = ground.view(&version, 0);
    let mut group = c.benchmark_group("lookup");
    let homes: Vec<u64> = (0..DIRS).map(|d| id_of(&view, TOP, &format!("d{d:03}"))).collect();
    group.bench_function("a request that the kernel did not send before", |b| {
        b.iter(|| {
            at = (at + 7919) % len;
            let pin = view.pin();
            let name = format!("file-with-a-name-{:02}", at % FILES);
            let found = view.lookup(&pin, homes[at / FILES], name.as_bytes()).expect("lookup");
            view.forget(found.expect("there").0.id, 1);
        });
    });
    group.bench_function("a name that is not there", |b| {
        b.iter(|| {
            at = (at + 7919) % len;
            assert!(view.lookup(&view.pin(), homes[at / FILES], b"nothing").expect("lookup").is_none());
        });
    });
    group.finish();
    let mut group = c.benchmark_group("readdir");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("a directory of 100 files, with attributes", |b| {
        b.iter(|| {
            at = (at + 1) % DIRS;
            let pin = view.pin();
            let handle = view.opendir(&pin, homes[at]).expect("opendir");
            let listing = view.readdir(&pin, handle, 0).expect("readdir");
            let mut count = 0;
            // `.` and `..` come first.
            for (_, item) in listing.after(2) {
                let found = view.item(&pin, homes[at], &item.name).expect("item");
                black_box(found.expect("there").1.size);
                count += 1;
            }
            assert_eq!(count, FILES);
            view.releasedir(handle);
        });
    });
    group.finish();
}

fn id_of(view: &View, parent: u64, name: &str) -> u64 {
    let found = view.lookup(&view.pin(), parent, name.as_bytes());
    found.unwrap_or_else(|e| panic!("lookup: error {}", e.0)).expect("there").0.id
}

fn hashing(c: &mut Criterion) {
    let mut group = c.benchmark_group("hashing");
    for (name, size) in [("4 KiB", 4096), ("1 MiB", 1 << 20)] {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(name, |b| b.iter(|| Digest::of(black_box(&bytes))));
    }
    group.finish();
}

/// A version of files with contents, in one directory, and one large one beside it.
fn contents(ground: &Ground) -> Digest {
    let intake = Intake::begin(&ground.store).expect("intake");
    let mut draft = Draft::default();
    let home = dir(&mut draft, "home");
    for f in 0..TOUCHED {
        let mut bytes = vec![b'x'; SMALL];
        write!(&mut bytes[..8], "{f:8}").expect("room");
        let (object, size) = intake.add_reader(&bytes[..], &|_| {}).expect("object").expect("object");
        file(&mut draft, home, &format!("file-{f:04}"), object, size as usize);
    }
    let bytes: Vec<u8> = (0..LARGE).map(|i| (i / 512 % 251 + 1) as u8).collect();
    let (object, size) = intake.add_reader(&bytes[..], &|_| {}).expect("object").expect("object");
    file(&mut draft, model::ROOT, "large", object, size as usize);
    intake.finish().expect("objects");
    ground.version(None, &draft)
}

/// A view whose user layer is empty. What it writes stays until the end: ext4 looks long for a number for a new
/// file where many files were removed within the last minute.
struct Fresh {
    view: View,
    ids: Vec<u64>,
    large: u64,
}

impl Fresh {
    fn new(ground: &Ground, version: &Digest, number: usize) -> Fresh {
        let view = ground.view(version, number);
        let home = id_of(&view, TOP, "home");
        let ids = (0..TOUCHED).map(|f| id_of(&view, home, &format!("file-{f:04}"))).collect();
        let large = id_of(&view, TOP, "large");
        Fresh { view, ids, large }
    }
}

fn copy_up(c: &mut Criterion) {
    let ground = Ground::new("copyup");
    let version = contents(&ground);
    let mut number = 0;
    let mut fresh = || {
        number += 1;
        Fresh::new(&ground, &version, number)
    };
    let open = |view: &View, id: u64| {
        let opened = view.open(&view.pin(), id, libc::O_RDWR, CALLER);
        opened.unwrap_or_else(|e| panic!("open: error {}", e.0)).fh
    };
    let mut group = c.benchmark_group("copy-up");
    group.throughput(Throughput::Elements(COPIED as u64));
    group.bench_function("16 files of 4 KiB at open for write, each brought to the disk", |b| {
        b.iter_batched(
            &mut fresh,
            |fresh| {
                for id in fresh.ids.iter().take(COPIED) {
                    let handle = open(&fresh.view, *id);
                    fresh.view.release(handle).expect("release");
                }
                fresh
            },
            BatchSize::PerIteration,
        );
    });
    group.throughput(Throughput::Elements(TOUCHED as u64));
    group.bench_function("chmod of 256 files: metadata only", |b| {
        b.iter_batched(
            &mut fresh,
            |fresh| {
                let change = Change { mode: Some(0o600), ..Change::default() };
                for id in &fresh.ids {
                    let view = &fresh.view;
                    let set = view.setattr(&view.pin(), *id, &change, CALLER);
                    assert_eq!(set.unwrap_or_else(|e| panic!("setattr: error {}", e.0)).mode & 0o7777, 0o600);
                }
                fresh
            },
            BatchSize::PerIteration,
        );
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("a file of 64 MiB in pieces, to the return of the first write", |b| {
        b.iter_batched(
            &mut fresh,
            |fresh| {
                let handle = open(&fresh.view, fresh.large);
                let view = &fresh.view;
                let written = view.write(&view.pin(), handle, 4096 * 100, &[7; 4096], None, false);
                written.unwrap_or_else(|e| panic!("write: error {}", e.0));
                view.release(handle).expect("release");
                fresh
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
}

criterion_group! {
    name = micro;
    config = quick();
    targets = hashing, trees, copy_up
}
criterion_main!(micro);
