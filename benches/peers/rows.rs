//! The rows of the table: which tree, which work, which state of the caches, what is wanted.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ground::{Ground, Peer, call, drop_caches, sh, sync};
use crate::table::Measured;
use crate::trees::{self, Scale};
use crate::work::{self, timed};

/// What a row needs to measure itself.
pub struct Run<'a> {
    /// Where.
    pub ground: &'a Ground,
    /// How much.
    pub scale: &'a Scale,
    /// How often.
    pub rounds: usize,
    row: &'a Row,
}

/// A row.
pub struct Row {
    /// What is done.
    pub name: &'static str,
    /// The largest ratios to overlayfs and to fuse-overlayfs that are wanted.
    wanted: (Option<f64>, Option<f64>),
    measure: fn(&Run),
}

impl Row {
    /// Measures and prints it.
    pub fn run(&self, ground: &Ground, scale: &Scale, rounds: usize) {
        (self.measure)(&Run { ground, scale, rounds, row: self });
    }
}

const fn row(name: &'static str, wanted: (Option<f64>, Option<f64>), measure: fn(&Run)) -> Row {
    Row { name, wanted, measure }
}

/// All of them, in the order of the table.
pub const ROWS: &[Row] = &[
    row("walk + stat, cold", (Some(0.8), Some(0.3)), |run| {
        run.walked();
        run.reading("walked", Cold, Peer::Reroot, &|root| timed(|| assert!(work::walk(root) > 0)));
    }),
    row("walk + stat, warm", (Some(1.0), Some(1.0)), |run| {
        run.walked();
        run.reading("walked", Warm, Peer::Reroot, &|root| timed(|| assert!(work::walk(root) > 0)));
    }),
    row("open + read + close, small base files, warm", (Some(2.0), Some(0.6)), |run| {
        run.small(Warm, Peer::Reroot);
    }),
    row("open + read + close, on an inspect mount, warm", (Some(0.8), Some(0.3)), |run| {
        run.small(Warm, Peer::Inspect);
    }),
    row("open + read + close, small base files, cold", (Some(1.1), Some(0.6)), |run| {
        run.small(Cold, Peer::Reroot);
    }),
    row("sequential read of a large base file, warm", (Some(1.02), Some(0.9)), |run| {
        run.large();
        run.reading("large", Warm, Peer::Reroot, &|root| timed(|| work::read_through(&root.join("read"))));
    }),
    row("sequential read of a large base file, cold", (Some(1.02), Some(0.9)), |run| {
        run.large();
        run.reading("large", Cold, Peer::Reroot, &|root| timed(|| work::read_through(&root.join("read"))));
    }),
    row("random 4 KiB reads, 4 threads", (Some(1.05), Some(0.5)), |run| {
        run.large();
        let job =
            ["--filename=read", "--rw=randread", "--bs=4k", "--ioengine=psync", "--numjobs=4", TIMED, FOR];
        run.reading("large", Warm, Peer::Reroot, &|root| work::fio(root, &job));
    }),
    row("random 4 KiB reads through mmap", (Some(1.05), Some(0.5)), |run| {
        run.large();
        let job = ["--filename=read", "--rw=randread", "--bs=4k", "--ioengine=mmap", TIMED, FOR];
        run.reading("large", Warm, Peer::Reroot, &|root| work::fio(root, &job));
    }),
    row("sequential write, user layer", (Some(1.05), Some(0.5)), |run| {
        let size = format!("--size={}m", run.scale.written);
        let job = ["--filename=new", "--rw=write", "--bs=1m", "--ioengine=psync", "--end_fsync=1", &size];
        run.empty();
        run.writing("empty", &|root| timed(|| assert!(work::fio(root, &job) > 0.0)));
    }),
    row("random write, user layer", (Some(1.05), Some(0.5)), |run| {
        let size = format!("--size={}m", run.scale.written / 4);
        let job = ["--filename=new", "--rw=randwrite", "--bs=4k", "--ioengine=psync", "--end_fsync=1", &size];
        run.empty();
        run.writing("empty", &|root| timed(|| assert!(work::fio(root, &job) > 0.0)));
    }),
    row("append with fsync, 4 KiB", (Some(1.1), Some(0.9)), |run| {
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
        run.writing("empty", &|root| work::fio(root, &job));
    }),
    row("create small files", (Some(2.0), Some(0.5)), |run| {
        run.empty();
        run.writing("empty", &|root| timed(|| work::create(root, run.scale.small)));
    }),
    row("delete a tree of base files", (Some(1.5), Some(0.5)), |run| {
        run.small_tree();
        run.writing("small", &|root| {
            timed(|| work::command(root, &["find", ".", "-mindepth", "1", "-delete"]))
        });
    }),
    row("first write to a large base file", (Some(0.01), Some(0.01)), |run| {
        run.large();
        run.writing("large", &|root| timed(|| work::first_write(&root.join("write"))));
    }),
    row("chown -R over base files", (Some(1.0), Some(0.3)), |run| {
        run.small_tree();
        run.writing("small", &|root| timed(|| work::command(root, &["chown", "-R", "1234:1234", "."])));
    }),
    row("chmod -R over base files", (Some(1.0), Some(0.3)), |run| {
        run.small_tree();
        run.writing("small", &|root| timed(|| work::command(root, &["chmod", "-R", "go-r", "."])));
    }),
    row("rename of a large base directory", (Some(1.0), None), |run| {
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
        });
    }),
    row("git status", (Some(1.1), Some(0.7)), |run| {
        let count = run.scale.repository;
        run.ground.make("repository", |dir| trees::repository(dir, count));
        run.reading("repository", Warm, Peer::Reroot, &|root| {
            // The trees belong to whoever made them; git asks for that.
            timed(|| work::command(root, &["git", "-c", "safe.directory=*", "status", "--porcelain"]))
        });
    }),
    row("make -j2 of a C project", (Some(1.1), Some(0.7)), |run| {
        run.ground.make("project", trees::project);
        run.writing("project", &|root| timed(|| work::command(root, &["make", "-s", "-j2"])));
    }),
    row("apt-get install in a chroot", (Some(1.1), Some(0.7)), |run| {
        run.ground.make("debian", debian);
        run.writing("debian", &|root| {
            let install = "mount -t proc proc proc; trap 'umount proc' EXIT; chroot . env DEBIAN_FRONTEND=noninteractive \
                           apt-get install -y -qq --no-download --no-install-recommends less file bc jq";
            timed(|| sh(root, install))
        });
    }),
];

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

    fn small(&self, caches: Caches, ours: Peer) {
        self.small_tree();
        let count = self.scale.small;
        self.reading("small", caches, ours, &|root| {
            let names = work::names(root, count);
            timed(|| work::read_each(&names))
        });
    }

    /// All peers show the tree at once and only read, so each is shown once.
    fn reading(&self, tree: &str, caches: Caches, ours: Peer, work: &dyn Fn(&Path) -> f64) {
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
        self.print(&measured, ours);
    }

    fn writing(&self, tree: &str, work: &dyn Fn(&Path) -> f64) {
        self.writing_with(&[Peer::Native, Peer::Overlay, Peer::FuseOverlay, Peer::Reroot], tree, work);
    }

    /// Each round begins with a tree that nobody has written to.
    fn writing_with(&self, peers: &[Peer], tree: &str, work: &dyn Fn(&Path) -> f64) {
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
        self.print(&measured, Peer::Reroot);
    }

    fn print(&self, measured: &Measured, ours: Peer) {
        println!("{}", measured.line(self.row.name, ours, self.row.wanted));
    }
}
