//! Open files, mappings and directories.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use crate::common::desk::{Desk, desk};
use crate::common::successor::{log, replace_daemon};
use crate::common::tree::{self, Item};

const BIG: usize = 2_000_000;

fn big() -> Vec<u8> {
    (0..BIG).map(|i| (i / 7 % 251) as u8).collect()
}

fn fill(dir: &std::path::Path) {
    let big = big();
    tree::write(
        dir,
        &[
            ("small", Item::File(b"small\n")),
            ("big", Item::File(&big)),
            ("grows", Item::File(&big)),
            ("goes", Item::File(b"goes\n")),
            ("big-goes", Item::File(&big)),
            ("changes", Item::File(b"changes\n")),
            ("dir/a", Item::File(b"a\n")),
            ("dir/b", Item::File(b"b\n")),
        ],
    );
}

fn read(file: &File, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let n = file.read_at(&mut out, 0).unwrap();
    out.truncate(n);
    out
}

fn writable(desk: &Desk, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(desk.at(name)).unwrap()
}

/// Everything that can be open, through several daemons.
#[test]
fn what_is_open_goes_on_under_the_next_daemon() {
    desk("", fill, |desk| {
        let big = big();
        let (small, large) = (File::open(desk.at("small")).unwrap(), File::open(desk.at("big")).unwrap());
        let new = writable(desk, "new");
        new.write_all_at(b"new", 0).unwrap();
        let grows = writable(desk, "grows");
        // Without a name: born here, of the stack, large of the stack, with other attributes, brought up.
        let born = writable(desk, "born");
        born.write_all_at(b"born", 0).unwrap();
        fs::remove_file(desk.at("born")).unwrap();
        let goes = File::open(desk.at("goes")).unwrap();
        fs::remove_file(desk.at("goes")).unwrap();
        let big_goes = File::open(desk.at("big-goes")).unwrap();
        fs::remove_file(desk.at("big-goes")).unwrap();
        let changes = File::open(desk.at("changes")).unwrap();
        fs::set_permissions(desk.at("changes"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(desk.at("dir/b"), desk.at("changes")).unwrap();
        let a = writable(desk, "dir/a");
        a.write_all_at(b"A", 0).unwrap();
        fs::remove_file(desk.at("dir/a")).unwrap();
        // Moved while it is open.
        let moved = writable(desk, "before");
        moved.write_all_at(b"moved", 0).unwrap();
        fs::create_dir(desk.at("elsewhere")).unwrap();
        fs::rename(desk.at("before"), desk.at("elsewhere/after")).unwrap();
        let inodes = [&small, &large, &new, &grows, &born, &goes, &changes, &a, &moved]
            .map(|f| f.metadata().unwrap().ino());
        let mut appends = OpenOptions::new().append(true).create(true).open(desk.at("log")).unwrap();
        for round in 0..4u8 {
            replace_daemon(&desk.program, "d");
            let again = [&small, &large, &new, &grows, &born, &goes, &changes, &a, &moved]
                .map(|f| f.metadata().unwrap().ino());
            assert_eq!(inodes, again, "round {round}");
            assert_eq!(read(&small, 100), b"small\n");
            assert_eq!(read(&large, BIG), big);
            assert_eq!(read(&new, 100), [b"new", &b"xxxx"[..round as usize]].concat());
            new.write_all_at(b"x", 3 + u64::from(round)).unwrap();
            assert_eq!(read(&grows, BIG)[100..], big[100..], "what was not written");
            grows.write_all_at(&[round], u64::from(round)).unwrap();
            assert_eq!(read(&born, 100), b"born");
            born.write_all_at(b"b", 0).unwrap();
            assert_eq!(born.metadata().unwrap().nlink(), 0);
            assert_eq!(read(&goes, 100), b"goes\n");
            assert_eq!(goes.metadata().unwrap().nlink(), 0);
            assert_eq!(read(&big_goes, BIG), big);
            assert_eq!(read(&changes, 100), b"changes\n");
            assert_eq!(changes.metadata().unwrap().mode() & 0o777, 0o600);
            assert_eq!(read(&a, 100), b"A\n");
            a.set_len(2).unwrap();
            assert_eq!(read(&moved, 100), b"moved");
            assert_eq!(fs::read(desk.at("elsewhere/after")).unwrap(), b"moved");
            assert!(fs::metadata(desk.at("born")).is_err());
            assert_eq!(fs::read(desk.at("changes")).unwrap(), b"b\n");
            // The same inode, opened again, travels the same way.
            assert_eq!(fs::read(desk.at("big")).unwrap(), big);
            assert_eq!(fs::read(desk.at("new")).unwrap(), read(&new, 100));
            writeln!(appends, "{round}").unwrap();
            new.sync_all().unwrap();
            born.sync_all().unwrap();
        }
        assert_eq!(fs::read(desk.at("log")).unwrap(), b"0\n1\n2\n3\n");
        assert_eq!(read(&grows, 4), [0, 1, 2, 3]);
        drop((small, large, new, grows, born, goes, big_goes, changes, a, moved, appends));
        // Closed files are not in the way of anything.
        replace_daemon(&desk.program, "d");
        for name in ["small", "big", "grows", "changes"] {
            fs::write(desk.at(name), b"after").unwrap();
            assert_eq!(fs::read(desk.at(name)).unwrap(), b"after");
        }
        desk.remount();
        assert_eq!(fs::read(desk.at("grows")).unwrap(), b"after");
        assert_eq!(fs::read(desk.at("log")).unwrap(), b"0\n1\n2\n3\n");
    });
}

#[test]
fn a_directory_that_is_being_read_is_read_to_its_end_each_name_once() {
    let names = |n: u32| format!("some-name-that-takes-room-{n}");
    desk(
        "",
        move |dir| {
            for n in 0..3000 {
                tree::write(&dir.join("many"), &[(&names(n), Item::File(b""))]);
            }
        },
        move |desk| {
            for n in 3000..4000 {
                fs::write(desk.at("many").join(names(n)), b"").unwrap();
            }
            // Once with the kernel's listing that another reader has begun, once without.
            for round in 0..2 {
                let mut reader = fs::read_dir(desk.at("many")).unwrap();
                let mut seen: Vec<String> = Vec::new();
                for _ in 0..700 {
                    seen.push(reader.next().unwrap().unwrap().file_name().into_string().unwrap());
                }
                replace_daemon(&desk.program, "d");
                if round == 1 {
                    // Whoever made the listing before is not there, and another one makes it anew.
                    fs::write(desk.at("many/one-more"), b"").unwrap();
                }
                seen.extend(reader.map(|e| e.unwrap().file_name().into_string().unwrap()));
                let all: BTreeSet<String> = seen.iter().filter(|n| *n != "one-more").cloned().collect();
                assert_eq!(all, (0..4000).map(names).collect());
                assert_eq!(all.len(), seen.iter().filter(|n| *n != "one-more").count(), "each once");
            }
        },
    );
}

/// Programs run on, and what they map.
#[test]
fn mappings_and_running_programs_go_on() {
    desk("", fill, |desk| {
        fs::copy("/bin/sleep", desk.at("program")).unwrap();
        let mut child = std::process::Command::new(desk.at("program")).arg("1000").spawn().unwrap();
        let file = writable(desk, "mapped");
        file.set_len(1 << 20).unwrap();
        // SAFETY: the file is this test's own and is not cut while it is mapped.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
        // SAFETY: nobody changes the file.
        let stack = unsafe { memmap2::Mmap::map(&File::open(desk.at("big")).unwrap()).unwrap() };
        map[5] = 1;
        for round in 0..3u8 {
            replace_daemon(&desk.program, "d");
            map[4096 * 9] = round;
            map[4096 * (20 + usize::from(round))] = round;
            assert_eq!(&stack[..], &big()[..]);
            let mut fresh = Vec::new();
            File::open(desk.at("mapped")).unwrap().read_to_end(&mut fresh).unwrap();
            assert_eq!((fresh[5], fresh[4096 * 9]), (1, round), "what a mapping wrote is read");
            let busy = OpenOptions::new().write(true).open(desk.at("program"));
            assert_eq!(busy.unwrap_err().raw_os_error(), Some(libc::ETXTBSY), "it runs");
        }
        map.flush().unwrap();
        drop(map);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(OpenOptions::new().write(true).open(desk.at("program")).is_ok());
    });
}

/// Files that nobody has open keep their numbers, and locks stay with their holders.
#[test]
fn numbers_and_locks_stay() {
    desk("", fill, |desk| {
        for n in 0..300 {
            fs::create_dir_all(desk.at(format!("made/{}", n % 7))).unwrap();
            fs::write(desk.at(format!("made/{}/{n}", n % 7)), n.to_string()).unwrap();
        }
        fs::rename(desk.at("made/3"), desk.at("three")).unwrap();
        let before = tree::listing(&desk.mnt);
        let number = |name: &str| fs::metadata(desk.at(name)).unwrap().ino();
        let all = |_| ["small", "big", "dir", "dir/a", "made/0/0", "three", "three/3", "."].map(number);
        let numbers = all(());
        let lock = File::open(desk.at("small")).unwrap();
        lock.lock().unwrap();
        for _ in 0..2 {
            replace_daemon(&desk.program, "d");
            assert_eq!(all(()), numbers);
            let other = File::open(desk.at("small")).unwrap();
            assert!(other.try_lock().is_err(), "descriptor {} holds it", lock.as_raw_fd());
            desk.drop_caches();
            assert_eq!(all(()), numbers);
            tree::assert_same("after a daemon", &before, &tree::listing(&desk.mnt));
        }
    });
}

/// Whatever the kernel knows of the user layer is found again by its number: in one walk, however much it is.
#[test]
fn the_users_files_are_found_again_in_one_walk() {
    const MANY: usize = 2000;
    desk("", fill, |desk| {
        fs::create_dir(desk.at("many")).unwrap();
        let of = |n: usize| desk.at(format!("many/{n}"));
        // What the stack has is moved with its directory, and by itself.
        fs::rename(desk.at("dir"), desk.at("many/dir")).unwrap();
        fs::rename(desk.at("small"), desk.at("many/small")).unwrap();
        // Known by a descriptor that is no handle of the daemon's.
        let known = |path: std::path::PathBuf| {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
            let ino = file.metadata().unwrap().ino();
            (file, ino)
        };
        let mut all: Vec<_> = (0..MANY)
            .map(|n| {
                fs::write(of(n), n.to_string()).unwrap();
                known(of(n))
            })
            .collect();
        all.push(known(desk.at("many/dir/a")));
        all.push(known(desk.at("many/small")));
        fs::rename(of(7), desk.at("seven")).unwrap();
        // Nowhere at all: it costs whoever asks no walk each time.
        fs::write(desk.at("gone"), "gone").unwrap();
        let (gone, _) = known(desk.at("gone"));
        fs::remove_file(desk.at("gone")).unwrap();
        for _ in 0..2 {
            replace_daemon(&desk.program, "d");
            for (file, ino) in &all {
                // A changed mode makes the kernel ask.
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
                assert_eq!(file.metadata().unwrap().ino(), *ino);
            }
            for _ in 0..50 {
                let flags = rustix::fs::AtFlags::EMPTY_PATH | rustix::fs::AtFlags::STATX_FORCE_SYNC;
                let asked = rustix::fs::statx(&gone, "", flags, rustix::fs::StatxFlags::BASIC_STATS);
                assert_eq!(asked.unwrap_err(), rustix::io::Errno::STALE);
            }
        }
        assert_eq!(desk.sh("cat many/0 seven many/dir/a many/small"), "07a\nsmall");
        let walks = log(&desk.program, "d").matches("walking through the user layer").count();
        assert!((2..=6).contains(&walks), "{walks} walks");
    });
}
