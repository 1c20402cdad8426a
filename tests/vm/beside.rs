//! How long a guest takes to its user space on a desktop, beside the same machine on other roots.

use std::fs;
use std::time::Duration;

use crate::guest::{Guest, Home, LIMIT, signal_if_there};
use crate::machine::{Recipe, Shown};

#[test]
fn the_same_machine_boots_on_a_plain_directory_and_on_other_union_mounts() {
    let home = Home::new();
    // The desktop stays mounted, as the others do.
    let mount = home.program.mount("d", home.scratch.mnt());
    let mut guest = Guest::start(&mut home.command("wait", &[]));
    guest.until("GUEST waits");
    let recipe = Recipe::read(guest.pid(), mount.path(), &home.scratch.join("recipe"));
    while guest.alive() {
        signal_if_there(guest.pid(), "TERM");
        std::thread::sleep(Duration::from_millis(50));
    }

    let tree = home.scratch.join("system-1");
    let overlay = Shown::overlay(&tree, &home.scratch.dir("overlay"));
    let fuse = Shown::fuse_overlay(&tree, &home.scratch.dir("fuse-overlay"));
    for (what, root) in [
        ("a desktop", mount.path()),
        ("a plain directory", &tree),
        ("overlayfs", &overlay.root),
        ("fuse-overlayfs", &fuse.root),
    ] {
        let took = recipe.boot(root, "GUEST waits", LIMIT);
        eprintln!("user space on {what} after {:.2} s", took.as_secs_f64());
    }
    drop((overlay, fuse));
    home.umount(mount);
    home.assert_clean();
    assert!(fs::read_dir(home.scratch.join("overlay/root")).unwrap().next().is_none(), "still mounted");
}
