//! A desktop's user decides how deep directories lie within each other; nothing of the store or of other desktops
//! may depend on it.

mod common;

use std::fs;

use common::tree::import;
use common::{Program, Scratch, require_root};
use rustix::fs::{Mode, OFlags};

const DEPTH: usize = 6000;

/// Makes directories within each other, deeper than any path can say.
fn dig(top: &std::path::Path) {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let mut at = rustix::fs::open(top, flags, Mode::empty()).expect("top");
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("directory");
        at = rustix::fs::openat(&at, "d", flags, Mode::empty()).expect("directory");
    }
}

#[test]
fn a_deep_user_layer_stops_neither_swaps_nor_other_commands() {
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    import(&scratch, &program, "v:1", None, |dir| {
        fs::create_dir_all(dir.join("home")).unwrap();
        fs::create_dir_all(dir.join("gone")).unwrap();
    });
    import(&scratch, &program, "v:2", Some("v:1"), |dir| fs::create_dir_all(dir.join("home")).unwrap());
    program.ok(&["create", "d", "v:1"]);
    let mount = program.mount("d", scratch.mnt());
    let home = mount.join("home");
    common::within(std::time::Duration::from_secs(120), "digging", move || dig(&home));
    // A whiteout where the target removes a directory: moved directories are looked for.
    fs::remove_dir(mount.join("gone")).unwrap();
    program.ok(&["upgrade", "d", "--to", "v:2"]);
    program.ok(&["rollback", "d"]);
    assert!(mount.join("home/d/d").is_dir());
    program.ok(&["status", "d"]);
    program.ok(&["df"]);
    for command in [&["changes", "d"][..], &["commit", "d", "v:3"]] {
        let refused = program.run(command).expect_code(1);
        assert!(refused.err().contains("directories lie within each other"), "{}", refused.err());
    }
    mount.umount();
    program.ok(&["upgrade", "d", "--to", "v:2"]);
    program.ok(&["rm", "d"]);
    program.ok(&["gc"]);
    program.ok(&["fsck", "--deep"]);
}

#[test]
fn a_damaged_tree_does_not_reach_what_is_made_from_its_version() {
    use std::os::unix::fs::FileExt;
    require_root();
    let scratch = Scratch::new();
    let program = Program::new(&scratch);
    import(&scratch, &program, "v:1", None, |dir| {
        for name in ["f23", "f24", "f25"] {
            fs::write(dir.join(name), name).unwrap();
        }
    });
    let trees = fs::read_dir(scratch.store().join("trees")).unwrap().flatten();
    for tree in trees {
        let bytes = fs::read(tree.path()).unwrap();
        let at = bytes.windows(3).rposition(|w| w == b"f24").expect("the name in the tree");
        let file = fs::File::options().write(true).open(tree.path()).unwrap();
        file.write_all_at(b"fb4", at as u64).unwrap();
    }
    import(&scratch, &program, "v:2", Some("v:1"), |dir| {
        for name in ["f23", "f25"] {
            fs::write(dir.join(name), name).unwrap();
        }
    });
    let out = scratch.join("out");
    program.ok(&["export", "v:2", &format!("dir:{}", out.display())]);
    let mut names: Vec<_> = fs::read_dir(out).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["f23", "f25"]);
}
