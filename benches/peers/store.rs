//! Import, commit and collection, beside a copy, and beside hashing alone. Everything that is read is in the page
//! cache, and what is written is on the disk when the clock stops.

use std::path::Path;
use std::process::Command;

use crate::ground::{Ground, call, remove, sh, sync};
use crate::table::{median, ratio, seconds};
use crate::trees::{self, Scale};
use crate::work::timed;

/// A line of the table as it is measured: our times, those of what is beside it, those of hashing.
struct Line {
    work: String,
    beside: &'static str,
    bytes: u64,
    times: Vec<[Option<f64>; 3]>,
}

impl Line {
    fn new(work: String, beside: &'static str, bytes: u64) -> Line {
        Line { work, beside, bytes, times: Vec::new() }
    }

    fn text(&self) -> String {
        let time =
            |which: usize| median(&mut self.times.iter().filter_map(|t| t[which]).collect::<Vec<f64>>());
        let to = |which: usize| {
            let both = |t: &[Option<f64>; 3]| Some(t[0]? / t[which]?);
            ratio(&mut self.times.iter().filter_map(both).collect::<Vec<f64>>())
        };
        let ours = time(0).unwrap_or_default();
        let rate = match self.bytes {
            0 => String::new(),
            bytes => format!("{:.0} MB/s", bytes as f64 / 1e6 / ours),
        };
        let beside = time(1).map_or_else(|| "–".into(), seconds);
        let (work, name) = (&self.work, self.beside);
        format!("| {work} | {} | {rate} | {name}: {beside} | {} | {} |", seconds(ours), to(1), to(2))
    }
}

/// The lines of the table.
pub fn lines(ground: &Ground, scale: &Scale, rounds: usize) -> Vec<String> {
    let home = ground.aside("stores");
    let (mixed, single) = (home.join("mixed"), home.join("single"));
    for dir in [&mixed, &single] {
        std::fs::create_dir(dir).expect("directory");
    }
    trees::mixed(&mixed, scale.written);
    trees::large(&single.join("file"), scale.read);
    sync();
    let copied = "`cp -a` and `sync`";
    let size = |dir: &Path| {
        let out = Command::new("du").args(["-sb", "--apparent-size"]).arg(dir).output().expect("du runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number of bytes")
    };
    let mut many = Line::new(format!("import of {} MiB in many files", scale.written), copied, size(&mixed));
    let mut one = Line::new(format!("import of {} MiB in one file", scale.read), copied, size(&single));
    let mut commit =
        Line::new(format!("commit of {} MiB in many files", scale.written), copied, size(&mixed));
    let mut again = Line::new("import of the many files again".into(), copied, 0);
    let mut collect = Line::new("collection of the many files".into(), "`rm -r` and `sync`", 0);
    let mut removals = Vec::new();
    for round in 0..rounds {
        let store = |name: &str| {
            let store = home.join(format!("{name}{round}"));
            // One that is there, as usual.
            ground.reroot_on(&store, &["images"]);
            store
        };
        let import = |store: &Path, dir: &Path, name: &str| {
            ground.reroot_on(store, &["import", &format!("dir:{}", dir.display()), name]);
        };
        let hashed = |tree: &Path| {
            timed(|| sh(tree, "find . -type f -print0 | xargs -0 -P 2 -n 64 sha384sum >/dev/null"))
        };
        let (files, copy) = (store("files"), home.join(format!("copy{round}")));
        let (hash, plain) = (hashed(&mixed), timed(|| copied_to(&mixed, &copy)));
        let first = timed(|| import(&files, &mixed, "tree:1"));
        let second = timed(|| import(&files, &mixed, "tree:2"));
        many.times.push([Some(first), Some(plain), Some(hash)]);
        again.times.push([Some(second), Some(plain), Some(hash)]);

        // A desktop whose user made all of them.
        let desks = store("desks");
        std::fs::create_dir_all(home.join("empty")).expect("directory");
        import(&desks, &home.join("empty"), "empty:1");
        ground.reroot_on(&desks, &["create", "desk", "empty:1"]);
        copied_to(&mixed, &desks.join("desktops/desk/user/made"));
        let ours = timed(|| drop(ground.reroot_on(&desks, &["commit", "desk", "empty:2"])));
        commit.times.push([Some(ours), Some(plain), Some(hash)]);
        remove(&desks);

        let (large, beside) = (store("large"), home.join(format!("beside{round}")));
        let (hash, plain) = (hashed(&single), timed(|| copied_to(&single, &beside)));
        one.times.push([Some(timed(|| import(&large, &single, "tree:1"))), Some(plain), Some(hash)]);
        remove(&large);
        remove(&beside);
        removals.push((files, copy));
    }
    for (store, copy) in removals {
        let removed = timed(|| {
            call(Command::new("rm").arg("-r").arg(&copy));
            sync();
        });
        for tag in ["tree:1", "tree:2"] {
            ground.reroot_on(&store, &["untag", tag]);
        }
        let ours = timed(|| {
            ground.reroot_on(&store, &["gc"]);
            sync();
        });
        collect.times.push([Some(ours), Some(removed), None]);
    }
    [many, one, again, commit, collect].iter().map(Line::text).collect()
}

fn copied_to(from: &Path, to: &Path) {
    call(Command::new("cp").arg("-a").arg(from).arg(to));
    sync();
}
