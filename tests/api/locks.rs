//! Locks of every kind, between two processes and within one.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::agent::Agent;
use crate::common::desk::desk;
use crate::common::tree::{self, Item};
use crate::sys;
use crate::twins::{At, twins};

fn fill(dir: &Path) {
    let large = vec![7; 2 << 20];
    tree::write(dir, &[("file", Item::Mode(b"content", 0o666)), ("large", Item::File(&large))]);
}

/// Gives both agents their orders and notes the answers.
fn run(at: &At, orders: &[&str]) {
    let mut agents = [Agent::start(), Agent::start()];
    for order in orders {
        let (who, order) = order.split_once(' ').unwrap();
        let order = order.replace('@', &format!("{}/", at.dir().display()));
        let answer = agents[usize::from(who == "b")].ask(&order);
        at.note(&format!("{who} {}", order.rsplit('/').next().unwrap()), answer);
    }
}

#[test]
fn locks_of_two_processes_stand_in_each_others_way() {
    twins(fill, |at| {
        for name in ["file", "large"] {
            for kind in ["flock", "posix", "ofd"] {
                let text = [
                    format!("a open f @{name}"),
                    format!("b open f @{name}"),
                    format!("a {kind} f sh"),
                    format!("b {kind} f sh"),
                    format!("a {kind} f ex"),
                    format!("b {kind} f un"),
                    format!("a {kind} f ex"),
                    format!("b {kind} f sh"),
                    format!("b {kind} f ex"),
                    format!("a {kind} f sh"),
                    format!("b {kind} f sh"),
                    format!("a {kind} f un"),
                    format!("b {kind} f ex"),
                    // Released by the close alone.
                    "b close f".into(),
                    format!("a {kind} f ex"),
                    format!("b open f @{name}"),
                    format!("b {kind} f sh"),
                    "a close f".into(),
                    format!("b {kind} f ex"),
                ];
                run(at, &text.each_ref().map(String::as_str));
            }
        }
    });
}

#[test]
fn a_posix_lock_goes_with_any_close_and_an_ofd_lock_with_its_own() {
    twins(fill, |at| {
        run(
            at,
            &[
                "a open f @file",
                "a open g @file",
                "b open f @file",
                "a posix f ex",
                "b posix f ex",
                "a close g",
                "b posix f ex",
                "b posix f un",
                "a open g @file",
                "a ofd f ex",
                "a ofd g ex",
                "b posix f ex",
                "a close g",
                "b ofd f ex",
                "b flock f ex",
                "a flock f ex",
                "a close f",
                "b ofd f ex",
            ],
        );
    });
}

#[test]
fn ranges_and_questions() {
    twins(fill, |at| {
        let open = || OpenOptions::new().read(true).write(true).open(at.path("file")).unwrap();
        let (a, b) = (open(), open());
        let set =
            |f: &File, kind, start, len| sys::ofd_lock(f, libc::F_OFD_SETLK, kind, start, len).map(drop);
        let ask = |f: &File, kind, start, len| sys::ofd_lock(f, libc::F_OFD_GETLK, kind, start, len);
        at.did("a 0+10", set(&a, libc::F_WRLCK, 0, 10));
        at.did("b 10+10", set(&b, libc::F_WRLCK, 10, 10));
        at.did("b 9+1", set(&b, libc::F_RDLCK, 9, 1));
        at.did("who 9", ask(&b, libc::F_WRLCK, 9, 1));
        at.did("who 20", ask(&a, libc::F_WRLCK, 20, 0));
        at.did("to the end", set(&a, libc::F_WRLCK, 5, 0));
        at.did("unlock the middle", set(&a, libc::F_UNLCK, 3, 4));
        at.did("b 3+4", set(&b, libc::F_WRLCK, 3, 4));
        at.did("b 7", set(&b, libc::F_WRLCK, 7, 1));
        at.did("negative", set(&b, libc::F_WRLCK, -1, 1));
        at.did("far", set(&b, libc::F_WRLCK, i64::MAX, 1));
        let reader = File::open(at.path("file")).unwrap();
        at.did("write lock by a reader", set(&reader, libc::F_WRLCK, 100, 1));
        at.did("read lock by a reader", set(&reader, libc::F_RDLCK, 100, 1));
    });
}

#[test]
fn a_lock_that_is_waited_for_is_given() {
    desk("", fill, |d| {
        for name in ["file", "large"] {
            let path = d.at(name);
            let holder = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            sys::ofd_lock(&holder, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0).unwrap();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
                    sys::ofd_lock(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 0).unwrap();
                });
                // Whether it waits already or not, the lock is there for it afterwards.
                sys::ofd_lock(&holder, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0).unwrap();
                waiter.join().unwrap();
            });
        }
    });
}
