//! A base that has everything, a change of every kind to it, and everything that can be seen of a tree.

use std::collections::BTreeMap;
use std::path::Path;

use super::sh;
use super::tree::{self, Item};

/// A base with everything that the changes below need: hard links, attributes, devices, nested directories.
pub fn base(dir: &Path) {
    tree::small(dir);
    let big = vec![b'b'; 300_000];
    tree::write(
        dir,
        &[
            ("usr/share/data/plain", Item::File(b"plain\n")),
            ("usr/share/data/file", Item::File(b"to be renamed\n")),
            ("usr/share/data/big", Item::File(&big)),
            ("usr/share/data/attr", Item::File(b"with attributes\n")),
            ("usr/share/data/one", Item::File(b"hard\n")),
            ("usr/share/data/two", Item::Same("usr/share/data/one")),
            ("usr/share/tree/gone", Item::File(b"gone\n")),
            ("usr/share/tree/deep/x", Item::File(b"x\n")),
            ("usr/share/tree/deep/sub/y", Item::Mode(b"y\n", 0o640)),
            ("usr/share/tree/deep/sub/z", Item::Link("y")),
            ("usr/share/tree/deep/sub/w", Item::Same("usr/share/tree/deep/sub/y")),
            ("usr/share/swap/a", Item::File(b"a\n")),
            ("usr/share/swap/b", Item::File(b"b\n")),
            ("var/cache/old", Item::File(b"old\n")),
            ("var/cache/dir/older", Item::File(b"older\n")),
            ("opt/app/bin", Item::Mode(b"#!/bin/sh\n", 0o755)),
            ("opt/app/lib/1", Item::File(b"1\n")),
        ],
    );
    sh(
        dir,
        "mkdir dev; mknod dev/console c 5 1; mknod dev/sda b 8 0; mkfifo dev/initctl
         setfattr -n user.shipped -v yes usr/share/data/attr usr/share/data/big
         setfattr -n trusted.shipped -v yes usr/share/tree/deep
         setfacl -m u:1000:r usr/share/data/attr; setfacl -d -m u:1000:rwx usr/share/swap
         chown 33:33 opt/app/lib/1; chmod 2775 opt/app
         find . -depth -exec touch -h -d '2020-02-02 02:02:02.123456789' {} +",
    )
    .ok();
}

/// One change of every kind.
pub const CHANGES: &str = "
    mkdir -p home/alice/docs; echo new >home/alice/docs/new; : >home/alice/empty
    ln -s docs home/alice/link; mkfifo home/alice/pipe
    mknod home/alice/null c 1 3; mknod home/alice/disk b 8 1
    chown 1000:1000 home/alice home/alice/docs/new; chmod 2755 home/alice/docs
    ln home/alice/docs/new home/alice/second
    truncate -s 5M home/alice/sparse; echo end >>home/alice/sparse
    echo more >>etc/hostname; truncate -s 0 root/.profile; truncate -s 100000 usr/share/data/big
    chmod 600 etc/passwd; chown 7:8 usr/share/doc/small/README; chmod 700 root
    touch -d '2001-02-03 04:05:06.789' usr/lib/libsmall.so.1; touch -h -d '2002-01-01' usr/lib/libsmall.so
    setfattr -n user.note -v hello etc/shadow; setfattr -x user.shipped usr/share/data/attr
    setfattr -n user.shipped -v mine usr/share/swap/a; setfacl -m u:7:rw usr/share/swap/b
    chmod 711 opt/app/lib; chown 5 dev/console; touch -d '2003-01-01' dev/initctl
    mv usr/share/data/file usr/share/data/renamed; mv usr/share/tree usr/share/moved
    echo more >>usr/share/moved/deep/x; rm usr/share/moved/gone; mv usr/share/moved/deep/sub home/alice/sub
    chmod 444 home/alice/sub/y; mv usr/bin/su home/alice/su
    mv usr/share/swap/a usr/share/swap/t; mv usr/share/swap/b usr/share/swap/a; mv usr/share/swap/t usr/share/swap/b
    ln usr/share/data/one usr/share/data/three; echo tool 2 >>usr/bin/alias
    rm etc/mtab; rm -r var/cache; mkdir var/cache; echo y >var/cache/fresh
    rmdir usr/share/empty; echo file >usr/share/empty
    rm usr/share/data/plain; mkdir usr/share/data/plain; touch usr/share/data/plain/in
    mv opt/app opt/app2; mkdir opt/app; echo other >opt/app/bin; mv dev/sda dev/sdb
    mkdir home/alice/old; mv usr/share/swap home/alice/old/swap; mkdir usr/share/swap; touch usr/share/swap/c
    setfattr -n user.d -v 1 home/alice/docs usr/share; setfattr -n trusted.t -v 2 home/alice/empty
    touch -d '2004-04-04' home usr/share/moved";

/// What can be seen of a tree: the listing, the times and attributes of directories, every extended attribute.
#[derive(Debug)]
pub struct Seen {
    /// Every path, see [`tree::listing`].
    pub listing: tree::Listing,
    /// Modes, owners and times of directories.
    pub directories: tree::Listing,
    /// Extended attributes.
    pub attributes: tree::Listing,
}

/// Looks at a tree; see [`Seen`].
#[track_caller]
pub fn look(root: &Path) -> Seen {
    let lines = |script: &str| sh(root, script).ok().out();
    let directories = lines("find . -type d -printf '%P\\t%m %U:%G %T@\\n'")
        .lines()
        .filter_map(|l| l.split_once('\t'))
        .map(|(path, rest)| (path.as_bytes().to_vec(), rest.to_string()))
        .collect();
    let mut attributes: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    let mut path = String::new();
    for line in lines("getfattr -h -R -d -m - -e hex .").lines() {
        if let Some(name) = line.strip_prefix("# file: ") {
            path = name.to_string();
        } else if !line.is_empty()
            && !line.starts_with("trusted.reroot.")
            && !line.starts_with("trusted.SGI_ACL_")
        {
            // The kernel's overlayfs shows what it does not know: Reroot's own facts, XFS's second names of ACLs.
            let entry = attributes.entry(path.clone().into_bytes()).or_default();
            let mut all: Vec<&str> = entry.split(' ').filter(|w| !w.is_empty()).chain([line]).collect();
            all.sort();
            *entry = all.join(" ");
        }
    }
    Seen { listing: tree::listing(root), directories, attributes }
}

/// Panics with what differs unless two trees look the same.
#[track_caller]
pub fn assert_same(what: &str, left: &Seen, right: &Seen) {
    tree::assert_same(what, &left.listing, &right.listing);
    tree::assert_same(&format!("{what}: directories"), &left.directories, &right.directories);
    tree::assert_same(&format!("{what}: extended attributes"), &left.attributes, &right.attributes);
}
