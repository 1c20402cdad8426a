//! Daemons that end in the middle of a swap, and swaps by daemons that were not there when the kernel learned the names
//! that differ.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use crate::common::scratch::is_dead;
use crate::common::successor::{daemon, log, replace_daemon};
use crate::common::tree::{self, Item, Listing};
use crate::common::{Mount, Program, Scratch, require_root};

const MANY: usize = 300;

/// What version `v` has: names that come and go, content, attributes, types and directories that differ.
fn fill(dir: &Path, v: usize) {
    for n in 0..MANY {
        let text = format!("{n} of {v}\n");
        tree::write(dir, &[(&format!("changes/{n}"), Item::File(text.as_bytes()))]);
        tree::write(dir, &[(&format!("same/{n}"), Item::File(b"same\n"))]);
        if (n + v).is_multiple_of(2) {
            tree::write(dir, &[(&format!("some/{n}"), Item::File(text.as_bytes()))]);
            tree::write(dir, &[(&format!("dirs/{n}/deep/f"), Item::File(text.as_bytes()))]);
        }
        let mode = dir.join(format!("mode/{n}"));
        tree::write(dir, &[(&format!("mode/{n}"), Item::File(b"mode\n"))]);
        fs::set_permissions(mode, fs::Permissions::from_mode(if v == 1 { 0o644 } else { 0o600 })).unwrap();
    }
    let large = vec![b'0' + v as u8; 1_500_000];
    tree::write(dir, &[("large", Item::File(&large)), ("held", Item::File(format!("held {v}").as_bytes()))]);
}

struct Place {
    scratch: Scratch,
    program: Program,
    /// What each version shows, without the user's.
    shows: BTreeMap<String, Listing>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", log(&self.program, "d"));
        }
    }
}

impl Place {
    fn new() -> Place {
        require_root();
        let scratch = Scratch::new();
        let program = Program::new(&scratch);
        tree::import(&scratch, &program, "os:1", None, |dir| fill(dir, 1));
        tree::import(&scratch, &program, "os:2", Some("os:1"), |dir| fill(dir, 2));
        let mut shows = BTreeMap::new();
        for tag in ["1", "2"] {
            let mount = program.inspect(&format!("os:{tag}"), scratch.dir("inspect"));
            shows.insert(tag.to_string(), tree::listing(mount.path()));
            mount.umount();
        }
        program.ok(&["create", "d", "os:1"]);
        Place { scratch, program, shows }
    }

    /// The version that the desktop runs on.
    fn tag(&self) -> String {
        // A command is answered when a swap that is being finished is done; this one may have read the state before.
        self.program.json(&["status", "d"]);
        self.program.json(&["status", "d"])["tag"].as_str().unwrap().to_string()
    }

    /// Whether a swap is noted that has not been finished.
    fn is_pending(&self) -> bool {
        let state = fs::read(self.scratch.store().join("desktops/d/state.json")).unwrap_or_default();
        serde_json::from_slice(&state).is_ok_and(|s: serde_json::Value| !s["pending"].is_null())
    }

    /// The view shows the desktop's version, wherever the kernel has it from.
    #[track_caller]
    fn check(&self, mount: &Mount, what: &str) {
        let version = &self.shows[&self.tag()];
        let shown = tree::listing(mount.path());
        tree::assert_same(what, version, &shown);
        for n in (0..MANY).step_by(17) {
            // By its name too, and not only from a listing.
            let wanted = version.contains_key(format!("some/{n}").as_bytes());
            assert_eq!(mount.join(format!("some/{n}")).exists(), wanted, "{what}: {n}");
        }
    }
}

/// Kills a daemon at once; returns when it is dead.
fn end(pid: u32) {
    let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    while !is_dead(pid) {
        std::thread::yield_now();
    }
}

fn other(tag: &str) -> &'static str {
    if tag == "1" { "2" } else { "1" }
}

/// The kernel knows names and attributes of everything from daemons that are not there any more.
#[test]
fn a_swap_reaches_what_an_earlier_daemon_told_the_kernel() {
    let place = Place::new();
    let mount = place.program.mount("d", place.scratch.mnt());
    for round in 0..3 {
        place.check(&mount, "before");
        let mut held = File::open(mount.join("held")).unwrap();
        let number = held.metadata().unwrap().ino();
        let was = place.tag();
        replace_daemon(&place.program, "d");
        let report = place.program.swap(&["upgrade", "d", "--to", &format!("os:{}", other(&place.tag()))]);
        assert_eq!(report["live"], true);
        place.check(&mount, &format!("after swap {round}"));
        // What was open keeps its content, also under a daemon that never saw that version.
        replace_daemon(&place.program, "d");
        place.check(&mount, &format!("under the next daemon, {round}"));
        let mut text = String::new();
        held.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("held {was}"));
        assert_eq!((held.metadata().unwrap().ino(), held.metadata().unwrap().nlink()), (number, 0));
    }
    mount.umount();
}

/// Killed at any moment of a swap, the next daemon finishes it, and the kernel shows nothing of the other version.
#[test]
fn a_swap_that_its_daemon_did_not_finish_is_finished_by_the_next() {
    let place = Place::new();
    let mount = place.program.mount("d", place.scratch.mnt());
    let (mut finished, mut resumed) = (0, 0);
    const RESUMED: &str = "telling the kernel of the swap";
    for round in 0..24u64 {
        // Of what differs the kernel knows all in every other round.
        if round % 2 == 0 {
            place.check(&mount, "before");
        }
        // Late enough for the daemons not to be given up.
        std::thread::sleep(Duration::from_millis(1100 * u64::from(round % 4 == 0)));
        let (before, pid) = (place.tag(), daemon(&place.program, "d"));
        let program = place.program.clone();
        let to = format!("os:{}", other(&before));
        let swap = std::thread::spawn(move || program.run(&["upgrade", "d", "--to", &to]).code);
        if round % 2 == 0 {
            // The command takes about as long as this goes.
            std::thread::sleep(Duration::from_millis(round * 2));
        } else {
            // From the moment when it cannot be taken back, or when it was too quick to be seen.
            while !swap.is_finished() && !place.is_pending() {}
            std::thread::sleep(Duration::from_micros(round * 300));
        }
        end(pid);
        let code = swap.join().unwrap();
        place.check(&mount, &format!("round {round}"));
        let state = place.program.json(&["status", "d"]);
        assert!(state["pending"].is_null(), "{state}");
        if code == Some(0) {
            assert_ne!(place.tag(), before, "the command said that it was done");
            finished += 1;
        }
    }
    resumed += log(&place.program, "d").matches(RESUMED).count();
    assert!(resumed > 0, "no daemon found a swap that was not finished");
    println!("{finished} swaps were finished by the command, {resumed} by the next daemon");
    mount.umount();
}
