//! The time from the start of a machine until its user space says so: on a desktop, and on the same tree as a plain
//! directory, through the kernel's overlayfs and through fuse-overlayfs.
//!
//! QEMU and virtiofsd get the same words for each. The roots stay mounted and keep what guests write; a first boot of each
//! is not counted. A ratio is taken within a round.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Host;
use super::machine::{Recipe, Shown};

/// What is waited for.
const MARKER: &str = "GUEST is up";

/// Says so at once.
const INIT: &str = "#!/bin/sh
echo '<2>GUEST is up' >/dev/kmsg
while :; do sleep 60; done
";

/// Says so once systemd has started everything.
const UNIT: &str = "[Unit]
Description=Says that the system is up
[Service]
ExecStart=/bin/sh -c 'systemctl is-system-running --wait; echo \"<2>GUEST is up\" >/dev/kmsg'
[Install]
WantedBy=multi-user.target
";

/// Each kind of start, and what `vm run` is told for it.
const STARTS: [(&str, &[&str]); 3] = [
    ("a shell, `--cache always`", &["--cache", "always", "--append", "quiet init=/sbin/bench-init"]),
    ("systemd, `--cache always`", &["--cache", "always", "--append", "quiet"]),
    ("systemd, `--cache auto`", &["--cache", "auto", "--append", "quiet"]),
];

pub fn measure(mut host: Host, rounds: usize, words: &[String]) {
    let chosen = |what: &str| words.iter().any(|w| what.contains(w.as_str()));
    let all = !STARTS.iter().any(|(what, _)| chosen(what));
    let tree = host.unpack(INIT);
    fs::write(tree.join("etc/systemd/system/up.service"), UNIT).expect("unit");
    std::os::unix::fs::symlink(
        "../up.service",
        tree.join("etc/systemd/system/multi-user.target.wants/up.service"),
    )
    .expect("unit");
    host.run(&["import", "dir:system", "debian:1"]);
    host.run(&["create", "d", "debian:1"]);
    let point = host.dir.join("desktop");
    fs::create_dir(&point).expect("directory");
    host.run(&["mount", "d", "desktop"]);
    let overlay = Shown::overlay(&tree, &host.dir.join("overlay"));
    let fuse = Shown::fuse_overlay(&tree, &host.dir.join("fuse-overlay"));
    // Below the two others the tree must not change.
    let plain = host.dir.join("plain");
    let copied = std::process::Command::new("cp").arg("-a").arg(&tree).arg(&plain).status();
    assert!(copied.is_ok_and(|s| s.success()), "a copy of the tree");
    let roots: [&Path; 4] = [&plain, &overlay.root, &fuse.root, &point];

    println!(
        "| start of | plain directory | overlayfs | fuse-overlayfs | Reroot | to the plain directory | to overlayfs | to fuse-overlayfs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (number, (what, args)) in STARTS.into_iter().enumerate().filter(|(_, s)| all || chosen(s.0)) {
        host.start("d", args);
        let recipe = Recipe::read(host.guests[0].id(), &point, &host.dir.join(format!("recipe-{number}")));
        host.end();
        let boot = |root: &Path| recipe.boot(root, MARKER, Duration::from_secs(600)).as_secs_f64();
        for root in roots {
            boot(root);
        }
        let times: Vec<[f64; 4]> = (0..rounds).map(|_| roots.map(boot)).collect();
        let seconds = (0..4).map(|n| format!("{:.2} s", spread(times.iter().map(|t| t[n]))[1]));
        let ratios = (0..3).map(|n| {
            let [least, median, most] = spread(times.iter().map(|t| t[3] / t[n]));
            format!("{median:.2} ({least:.2}–{most:.2})")
        });
        let cells: Vec<String> = std::iter::once(what.to_string()).chain(seconds).chain(ratios).collect();
        println!("| {} |", cells.join(" | "));
    }
    drop((overlay, fuse));
    host.run(&["umount", "d"]);
}

/// The least, the median and the most.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    [all[0], all[all.len() / 2], all[all.len() - 1]]
}
