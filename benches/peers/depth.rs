//! What has tables of its own: how cost grows with depth, and who shares a page cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ground::{Ground, call, drop_caches, remove, sync};
use crate::page::{self, DEPTHS};
use crate::table::ratio;
use crate::trees::Scale;
use crate::work::{read_through, timed};

/// Looks at every name of a stack of 1, 10, 100 and 400 layers, from empty caches, against 1 layer.
pub fn lookups(ground: &Ground, rounds: usize) -> Vec<String> {
    let home = ground.aside("depth");
    let deepest = DEPTHS[DEPTHS.len() - 1];
    // Layer 1 has all names; each further one changes one of them. Names are short since the kernel reads
    // them from one page.
    let paths: Vec<PathBuf> = (0..2000).map(|n| PathBuf::from(format!("d{}/f{}", n / 20, n % 20))).collect();
    for path in &paths {
        let path = home.join("1").join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, b"x").expect("file");
    }
    let source = |n: usize| format!("dir:{}", home.join(n.to_string()).display());
    ground.reroot(&["import", &source(1), "deep:1"]);
    for n in 2..=deepest {
        let path = home.join(n.to_string()).join(&paths[n * 5 % 2000]);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, n.to_string()).expect("file");
        let parent = format!("deep:{}", n - 1);
        ground.reroot(&["import", &source(n), &format!("deep:{n}"), "--parent", &parent, "--as-delta"]);
    }
    let mut points: [Vec<PathBuf>; 2] = Default::default();
    for depth in DEPTHS {
        let point = home.join(format!("o{depth}"));
        for name in ["u", "w"] {
            fs::create_dir_all(home.join(format!("{name}{depth}"))).expect("directory");
        }
        fs::create_dir(&point).expect("directory");
        let lowers: Vec<String> = (1..=depth).rev().map(|n| n.to_string()).collect();
        let options = format!("lowerdir={},upperdir=u{depth},workdir=w{depth}", lowers.join(":"));
        call(
            Command::new("mount")
                .current_dir(&home)
                .args(["-t", "overlay", "peers", "-o", &options])
                .arg(&point),
        );
        points[0].push(point);
        let point = home.join(format!("r{depth}"));
        fs::create_dir(&point).expect("directory");
        ground.reroot(&["create", &format!("deep{depth}"), &format!("deep:{depth}")]);
        ground.reroot(&["mount", &format!("deep{depth}"), &point.display().to_string()]);
        points[1].push(point);
    }
    let look = |top: &Path| {
        drop_caches();
        timed(|| assert!(paths.iter().all(|p| top.join(p).symlink_metadata().is_ok())))
    };
    let mut ratios = vec![vec![Vec::new(); DEPTHS.len()]; 2];
    for _ in 0..rounds {
        for (side, points) in points.iter().enumerate() {
            let times: Vec<f64> = points.iter().map(|p| look(p)).collect();
            for (i, time) in times.iter().enumerate() {
                ratios[side][i].push(time / times[0]);
            }
        }
    }
    let line = |(i, depth): (usize, &usize)| {
        let [overlay, ours] = [0, 1].map(|side: usize| ratio(&mut ratios[side][i].clone()));
        let wanted = (i == DEPTHS.len() - 1).then_some(page::FLAT);
        format!("| {depth} layers, against 1 | {overlay} | {ours} | {} |", page::verdict(&ours, wanted))
    };
    let lines = DEPTHS.iter().enumerate().map(line).collect();
    for depth in DEPTHS {
        call(Command::new("umount").arg(home.join(format!("o{depth}"))));
        ground.reroot(&["umount", &format!("deep{depth}")]);
    }
    remove(&home);
    lines
}

/// Mounts of one version that each read the same large file: how much the host's page cache grows.
pub fn sharing(ground: &Ground, scale: &Scale) -> String {
    let home = ground.aside("sharing");
    let (mib, count) = (scale.written, scale.mounts);
    ground.make("shared", |dir| crate::trees::large(&dir.join("file"), mib));
    let cached = || -> u64 {
        sync();
        let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
        let line = text.lines().find_map(|l| l.strip_prefix("Cached:")).expect("Cached");
        line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number of KiB")
    };
    for n in 0..count {
        let point = home.join(format!("m{n}"));
        fs::create_dir(&point).expect("directory");
        ground.reroot(&["create", &format!("shared{n}"), "shared:1"]);
        ground.reroot(&["mount", &format!("shared{n}"), &point.display().to_string()]);
    }
    drop_caches();
    let before = cached();
    for n in 0..count {
        read_through(&home.join(format!("m{n}/file")));
    }
    let grown = cached().saturating_sub(before) / 1024;
    for n in 0..count {
        ground.reroot(&["umount", &format!("shared{n}")]);
        ground.reroot(&["rm", &format!("shared{n}")]);
    }
    ground.drop_tree("shared");
    remove(&home);
    // Once, and a tenth of it for what else the machine reads meanwhile.
    let verdict = if grown <= mib + mib / 10 { "once" } else { "once: **missed**" };
    format!("| {count} mounts of one version read the same file | {mib} MiB each | {grown} MiB | {verdict} |")
}
