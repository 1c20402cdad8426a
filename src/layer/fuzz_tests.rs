//! Damaged index files: an error is fine, a panic or an endless loop is not.

use std::fs::{self, File};

use super::index::Index;
use super::model::{Content, DEPTH_MAX, Draft, Meta, ROOT};
use super::{diff, encode, merge};
use crate::store::Digest;

fn sample() -> Draft {
    let mut draft = Draft::default();
    let meta = |n: u32| Meta {
        mode: 0o640 + n,
        uid: n,
        xattrs: [(b"user.a".to_vec(), vec![n as u8; 5])].into(),
        ..Meta::default()
    };
    let dir = draft.add(meta(1), Content::Dir { opaque: false });
    let deep = draft.add(meta(2), Content::Dir { opaque: false });
    let file = draft.add(meta(3), Content::File { object: Digest::of(b"x"), size: 1 });
    let link = draft.add(meta(4), Content::Symlink(b"target".to_vec()));
    let device = draft.add(meta(5), Content::Char(1, 3));
    draft.link(ROOT, b"dir", dir);
    draft.link(dir, b"deep", deep);
    draft.link(deep, b"file", file);
    draft.link(dir, b"other", file);
    draft.link(ROOT, b"third", file);
    draft.link(ROOT, b"link", link);
    draft.link(deep, b"null", device);
    draft
}

/// Calls everything that an index answers.
fn visit(index: &Index, other: &Index) {
    for at in 0..index.len() {
        let Ok(node) = index.node(at) else { continue };
        let _ = (index.name(&node), index.path(&node), index.children(&node), index.group(&node));
        let _ = (index.leader(&node), index.object(&node), index.dir_digest(&node), index.target(&node));
        let _ = (index.xattrs(&node), index.xattr(&node, b"user.a"), index.has_xattrs(&node));
        let _ = (index.lookup(&node, b"deep"), index.by_number(node.number), node.rdev());
        let _ = index.holds_links(&node);
        let _ = (encode::meta_of(index, &node), encode::content_of(index, &node));
    }
    let _ = (index.node(u32::MAX), index.by_number(7), index.find(b"dir/deep/file"));
    let _ = (diff::diff(index, other), diff::diff(other, index));
    if let Ok(draft) = encode::decode(index) {
        let _ = (encode::layer(&draft), encode::tree(&draft, Digest([0; 48])));
    }
}

fn each_damage(name: &str, good: &[u8], damage: impl FnOnce(&mut dyn FnMut(&[u8]))) {
    let path = std::env::temp_dir().join(format!("reroot-index-{name}-{}", std::process::id()));
    fs::write(&path, good).unwrap();
    let whole = Index::open(&File::open(&path).unwrap()).unwrap();
    let bad = path.with_extension("bad");
    let mut count = 0u32;
    damage(&mut |bytes| {
        // Each in a file of its own: a mapped file must not change.
        let _ = fs::remove_file(&bad);
        fs::write(&bad, bytes).unwrap();
        if let Ok(index) = Index::open(&File::open(&bad).unwrap()) {
            visit(&index, &whole);
        }
        count += 1;
    });
    assert!(count > 100);
    fs::remove_file(&path).unwrap();
    fs::remove_file(&bad).unwrap();
}

#[test]
fn a_flipped_or_missing_byte_gives_an_error_or_a_value_never_a_panic() {
    let draft = sample();
    for (name, good) in [
        ("layer", encode::layer(&draft).unwrap()),
        ("tree", encode::tree(&draft, Digest::of(b"stack")).unwrap()),
    ] {
        each_damage(name, &good, |try_it| {
            for at in 0..good.len() {
                if (112..256).contains(&at) {
                    continue; // The header's reserve.
                }
                for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                    let mut bytes = good.clone();
                    bytes[at] ^= value;
                    bytes[at] = if value == 0 { 0 } else { bytes[at] };
                    try_it(&bytes);
                }
                try_it(&good[..at]);
            }
            // Whole words, where one byte alone is caught by a bound.
            for at in (256..good.len().saturating_sub(4)).step_by(4) {
                for value in [0u32, 1, 2, 3, 5, u32::MAX] {
                    let mut bytes = good.clone();
                    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    try_it(&bytes);
                }
            }
        });
    }
}

#[test]
fn directories_that_share_their_children_do_not_multiply_a_walk() {
    // A chain of directories d0 > d1 > …, each made to claim all that come after it: 2^60 paths if believed.
    let mut draft = Draft::default();
    let mut at = ROOT;
    for _ in 0..60 {
        let dir = draft.add(Meta::default(), Content::Dir { opaque: false });
        draft.link(at, b"d", dir);
        at = dir;
    }
    for bytes in [encode::layer(&draft).unwrap(), encode::tree(&draft, Digest::of(b"s")).unwrap()] {
        let mut bad = bytes.clone();
        for node in 0..61usize {
            let start = 256 + node * 80;
            bad[start + 52..start + 56].copy_from_slice(&(node as u32 + 1).to_le_bytes());
            bad[start + 56..start + 60].copy_from_slice(&(60 - node as u32).to_le_bytes());
        }
        let path = std::env::temp_dir().join(format!("reroot-index-shared-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        fs::write(&path, &bad).unwrap();
        let index = Index::open(&File::open(&path).unwrap()).unwrap();
        assert!(encode::decode(&index).is_err());
        let empty = encode::tree(&Draft::default(), Digest::of(b"e")).unwrap();
        let _ = fs::remove_file(&path);
        fs::write(&path, empty).unwrap();
        let empty = Index::open(&File::open(&path).unwrap()).unwrap();
        assert!(diff::diff(&empty, &index).is_err());
        fs::remove_file(&path).unwrap();
    }
}

fn chain(depth: usize) -> Draft {
    let mut draft = Draft::default();
    let mut at = ROOT;
    for _ in 0..depth {
        let dir = draft.add(Meta::default(), Content::Dir { opaque: false });
        draft.link(at, b"d", dir);
        at = dir;
    }
    draft
}

#[test]
fn the_deepest_tree_that_is_taken_needs_no_large_stack() {
    let (deep, empty) = (chain(DEPTH_MAX), Draft::default());
    deep.check_depth().unwrap();
    assert!(chain(DEPTH_MAX + 1).check_depth().is_err());
    // Threads of a test have 2 MiB, as those of the daemon.
    let mut merged = empty.clone();
    merge::apply(&mut merged, &merge::delta(&empty, &deep));
    let path = std::env::temp_dir().join(format!("reroot-index-deep-{}", std::process::id()));
    let open = |draft: &Draft| {
        let _ = fs::remove_file(&path);
        fs::write(&path, encode::tree(draft, Digest::of(b"s")).unwrap()).unwrap();
        Index::open(&File::open(&path).unwrap()).unwrap()
    };
    let (a, b) = (open(&empty), open(&merged));
    assert_eq!(diff::diff(&a, &b).unwrap().len(), DEPTH_MAX);
    let mut bottom = merged.clone();
    let last = bottom.walk().len() - 1;
    let (_, id) = bottom.walk()[last];
    bottom.get_mut(id).meta.uid = 7;
    assert_eq!(diff::diff(&b, &open(&bottom)).unwrap().len(), 1);
    encode::decode(&b).unwrap();
    fs::remove_file(&path).unwrap();
}
