//! The rows of the table: which tree, which work, which state of the caches, what is wanted.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ground::{Ground, Peer, call, drop_caches, sh, sync};
use crate::page;
use crate::table::Measured;
use crate::trees::{self, Scale};
use crate::work::{self, timed};

/// What a row needs to measure itself.
struct Run<'a> {
    ground: &'a Ground,
    scale: &'a Scale,
    rounds: usize,
    row: &'a page::Row,
}

/// Measures a row; its line in the table.
pub fn measure(row: &page::Row, ground: &Ground, scale: &Scale, rounds: usize) -> String {
    let run = &Run { ground, scale, rounds, row };
    match row.0 {
        "walk + stat, cold" => {
            run.walked();
            run.reading("walked", Cold, Peer::Reroot, &|root| timed(|| assert!(work::walk(root) > 0)))
        }
        "walk + stat, warm" => {
            run.walked();
            run.reading("walked", Warm, Peer::Reroot, &|root| timed(|| assert!(work::walk(root) > 0)))
        }
        "open + read + close, small base files, warm" => run.small(Warm, Peer::Reroot),
        "open + read + close, on an inspect mount, warm" => run.small(Warm, Peer::Inspect),
        "open + read + close, small base files, cold" => run.small(Cold, Peer::Reroot),
        "sequential read of a large base file, warm" => {
            run.large();
            run.reading("large", Warm, Peer::Reroot, &|root| timed(|| work::read_through(&root.join("read"))))
        }
        "sequential read of a large base file, cold" => {
            run.large();
            run.reading("large", Cold, Peer::Reroot, &|root| timed(|| work::read_through(&root.join("read"))))
        }
        "random 4 KiB reads, 4 threads" => {
            run.large();
            let job = [
                "--filename=read",
                "--rw=randread",
                "--bs=4k",
                "--ioengine=psync",
                "--numjobs=4",
                TIMED,
                FOR,
            ];
            run.reading("large", Warm, Peer::Reroot, &|root| work::fio(root, &job))
        }
        "random 4 KiB reads through mmap" => {
            run.large();
            let job = ["--filename=read", "--rw=randread", "--bs=4k", "--ioengine=mmap", TIMED, FOR];
            run.reading("large", Warm, Peer::Reroot, &|root| work::fio(root, &job))
        }
        "sequential write, user layer" => {
            let size = format!("--size={}m", run.scale.written);
            let job = ["--filename=new", "--rw=write", "--bs=1m", "--ioengine=psync", "--end_fsync=1", &size];
            run.empty();
            run.writing("empty", &|root| timed(|| assert!(work::fio(root, &job) > 0.0)))
        }
        "random write, user layer" => {
            let size = format!("--size={}m", run.scale.written / 4);
            let job =
                ["--filename=new", "--rw=randwrite", "--bs=4k", "--ioengine=psync", "--end_fsync=1", &size];
            run.empty();
            run.writing("empty", &|root| timed(|| assert!(work::fio(root, &job) > 0.0)))
        }
        "append with fsync, 4 KiB" => {
            let job = [
                "--filename=log",
                "--rw=write",
                "--bs=4k",
                "--ioengine=psync",
                "--fsync=1",
                "--size=64m",
                TIMED,
                FOR,
            ];
            run.empty();
            run.writing("empty", &|root| work::fio(root, &job))
        }
        "create small files" => {
            run.empty();
            run.writing("empty", &|root| timed(|| work::create(root, run.scale.small)))
        }
        "delete a tree of base files" => {
            run.small_tree();
            run.writing("small", &|root| {
                timed(|| work::command(root, &["find", ".", "-mindepth", "1", "-delete"]))
            })
        }
        "first write to a large base file" => {
            run.large();
            run.writing("large", &|root| timed(|| work::first_write(&root.join("write"))))
        }
        "chown -R over base files" => {
            run.small_tree();
            run.writing("small", &|root| timed(|| work::command(root, &["chown", "-R", "1234:1234", "."])))
        }
        "chmod -R over base files" => {
            run.small_tree();
            run.writing("small", &|root| timed(|| work::command(root, &["chmod", "-R", "go-r", "."])))
        }
        "rename of a large base directory" => {
            let count = run.scale.renamed;
            run.ground.make("renamed", |dir| {
                fs::create_dir(dir.join("from")).expect("directory");
                for n in 0..count {
                    fs::write(dir.join(format!("from/{n}")), b"").expect("file");
                }
            });
            // fuse-overlayfs answers EXDEV.
            run.writing_with(&[Peer::Native, Peer::Overlay, Peer::Reroot], "renamed", &|root| {
                timed(|| fs::rename(root.join("from"), root.join("to")).expect("rename"))
            })
        }
        "git status" => {
            let count = run.scale.repository;
            run.ground.make("repository", |dir| trees::repository(dir, count));
            run.reading("repository", Warm, Peer::Reroot, &|root| {
                // The trees belong to whoever made them; git asks for that.
                timed(|| work::command(root, &["git", "-c", "safe.directory=*", "status", "--porcelain"]))
            })
        }
        "make -j2 of a C project" => {
            run.ground.make("project", trees::project);
            run.writing("project", &|root| timed(|| work::command(root, &["make", "-s", "-j2"])))
        }
        "apt-get install in a chroot" => {
            run.ground.make("debian", debian);
            run.writing("debian", &|root| {
                let install = "mount -t proc proc proc; trap 'umount proc' EXIT; chroot . env DEBIAN_FRONTEND=noninteractive \
                               apt-get install -y -qq --no-download --no-install-recommends less file bc jq";
                timed(|| sh(root, install))
            })
        }
        other => panic!("nobody measures {other:?}"),
    }
}

const TIMED: &str = "--time_based";
const FOR: &str = "--runtime=3";

/// A small Debian whose package cache holds what is installed later.
fn debian(dir: &Path) {
    let make = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/debian-root");
    call(Command::new(make).arg(dir));
    let fetch = "chroot . apt-get update -qq
        chroot . apt-get install -y -qq --download-only --no-install-recommends less file bc jq >/dev/null";
    sh(dir, fetch);
}

/// What the kernel has in its caches when the clock starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caches {
    /// What the work needs, from doing it once.
    Warm,
    /// Nothing.
    Cold,
}
use Caches::{Cold, Warm};

impl Run<'_> {
    fn walked(&self) {
        self.ground.make("walked", |dir| trees::files(dir, self.scale.walked, 100));
    }

    fn small_tree(&self) {
        self.ground.make("small", |dir| trees::files(dir, self.scale.small, 1000));
    }

    fn empty(&self) {
        self.ground.make("empty", |dir| fs::write(dir.join("there"), b"").expect("file"));
    }

    fn large(&self) {
        self.ground.make("large", |dir| {
            trees::large(&dir.join("read"), self.scale.read);
            trees::large(&dir.join("write"), self.scale.written);
        });
    }

    fn small(&self, caches: Caches, ours: Peer) -> String {
        self.small_tree();
        let count = self.scale.small;
        self.reading("small", caches, ours, &|root| {
            let names = work::names(root, count);
            timed(|| work::read_each(&names))
        })
    }

    /// All peers show the tree at once and only read, so each is shown once.
    fn reading(&self, tree: &str, caches: Caches, ours: Peer, work: &dyn Fn(&Path) -> f64) -> String {
        let peers = [Peer::Native, Peer::Overlay, Peer::FuseOverlay, ours];
        let shows: Vec<_> = peers.iter().map(|peer| self.ground.show(*peer, tree, false)).collect();
        let mut measured = Measured::default();
        if caches == Warm {
            for show in &shows {
                work(&show.root);
            }
        }
        for _ in 0..self.rounds {
            let round = shows.iter().map(|show| {
                if caches == Cold {
                    drop_caches();
                }
                (show.peer, work(&show.root))
            });
            measured.round(round.collect());
        }
        measured.line(self.row, ours)
    }

    fn writing(&self, tree: &str, work: &dyn Fn(&Path) -> f64) -> String {
        self.writing_with(&[Peer::Native, Peer::Overlay, Peer::FuseOverlay, Peer::Reroot], tree, work)
    }

    /// Each round begins with a tree that nobody has written to.
    fn writing_with(&self, peers: &[Peer], tree: &str, work: &dyn Fn(&Path) -> f64) -> String {
        let mut measured = Measured::default();
        for _ in 0..self.rounds {
            let round = peers.iter().map(|peer| {
                let show = self.ground.show(*peer, tree, true);
                // Known names and pages, and nothing left to write from what came before.
                work::walk(&show.root);
                sync();
                (*peer, work(&show.root))
            });
            measured.round(round.collect());
        }
        measured.line(self.row, Peer::Reroot)
    }
}
