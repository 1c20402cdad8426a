//! The view behaves as a local file system: contents, handles, mappings, locks.
#![allow(unsafe_code)] // Mappings, and file handles, which no library here wraps.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::desk::{Desk, desk};
use common::tree::{self, Item};
use rustix::fs::{self as rfs, FallocateFlags, FlockOperation};

const LARGE: usize = 3 << 20;

fn stack(dir: &Path) {
    let pattern: Vec<u8> = (0..LARGE).map(|i| (i / 4096) as u8).collect();
    tree::write(
        dir,
        &[
            ("small", Item::File(b"stack content")),
            ("large", Item::File(&pattern)),
            ("dir/x", Item::File(b"x")),
        ],
    );
    fs::copy("/usr/bin/sleep", dir.join("sleep")).unwrap();
}

fn update(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_removed_file_lives_on_in_its_handles() {
    desk("", stack, |d| {
        fs::write(d.at("mine"), "user content").unwrap();
        for (name, content) in [("mine", "user content"), ("small", "stack content")] {
            let (mut reader, writer) = (File::open(d.at(name)).unwrap(), update(&d.at(name)));
            let number = reader.metadata().unwrap().ino();
            fs::remove_file(d.at(name)).unwrap();
            assert_eq!(reader.metadata().unwrap().nlink(), 0);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, content);
            writer.write_all_at(b"XX", 0).unwrap();
            let mut two = [0; 2];
            reader.read_exact_at(&mut two, 0).unwrap();
            assert_eq!((&two, reader.metadata().unwrap().ino()), (b"XX", number));
            rfs::fchmod(&writer, rfs::Mode::from_raw_mode(0o600)).unwrap();
            writer.set_len(1).unwrap();
            assert_eq!(
                (reader.metadata().unwrap().mode() & 0o777, reader.metadata().unwrap().len()),
                (0o600, 1)
            );
            // A new file of that name is another one.
            fs::write(d.at(name), "new").unwrap();
            assert_ne!(fs::metadata(d.at(name)).unwrap().ino(), number);
            assert_eq!(reader.metadata().unwrap().len(), 1);
        }
    });
}

#[test]
fn a_handle_on_a_removed_stack_file_or_directory_can_still_change_it() {
    desk("", stack, |d| {
        let file = File::open(d.at("small")).unwrap();
        let dir = File::open(d.at("dir")).unwrap();
        fs::remove_file(d.at("small")).unwrap();
        fs::remove_dir_all(d.at("dir")).unwrap();
        for handle in [&file, &dir] {
            rfs::fchmod(handle, rfs::Mode::from_raw_mode(0o700)).unwrap();
            rfs::fchown(handle, Some(rfs::Uid::from_raw(7)), None).unwrap();
            rfs::fsetxattr(handle, "user.x", b"1", rfs::XattrFlags::empty()).unwrap();
            let meta = handle.metadata().unwrap();
            assert_eq!((meta.mode() & 0o777, meta.uid(), meta.nlink()), (0o700, 7, 0));
        }
        let made = rfs::mkdirat(&dir, "x", rfs::Mode::from_raw_mode(0o700));
        assert_eq!(made.unwrap_err(), rustix::io::Errno::NOENT);
        let mut text = String::new();
        (&file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "stack content");
    });
}

#[test]
fn holes_stay_holes() {
    let fill = |dir: &Path| {
        let sparse = File::create(dir.join("sparse")).unwrap();
        sparse.write_all_at(b"end", (5 << 30) - 3).unwrap();
    };
    desk("", fill, |d| {
        let check = |file: &File| {
            assert_eq!(rfs::seek(file, rfs::SeekFrom::Hole(0)).unwrap(), 0);
            let data = rfs::seek(file, rfs::SeekFrom::Data(0)).unwrap();
            assert!(data > 4 << 30, "data at {data}");
            let mut end = [0; 3];
            file.read_exact_at(&mut end, (5 << 30) - 3).unwrap();
            assert_eq!(&end, b"end");
        };
        let from_stack = File::open(d.at("sparse")).unwrap();
        check(&from_stack);
        let past = rfs::seek(&from_stack, rfs::SeekFrom::Data(5 << 30)).unwrap_err();
        assert_eq!(past, rustix::io::Errno::NXIO);
        drop(from_stack);
        let file = update(&d.at("sparse"));
        file.write_all_at(b"START", 6 << 30).unwrap();
        check(&file);
        assert_eq!(file.metadata().unwrap().len(), (6 << 30) + 5);
        drop(file);
        let meta = fs::metadata(d.at("sparse")).unwrap();
        assert!(meta.blocks() < 1000, "{} blocks", meta.blocks());
        let new = File::create(d.at("new")).unwrap();
        new.write_all_at(b"end", (5 << 30) - 3).unwrap();
        check(&update(&d.at("new")));
    });
}

#[test]
fn space_is_allocated_punched_and_zeroed() {
    desk("", stack, |d| {
        for name in ["large", "new"] {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(d.at(name))
                .unwrap();
            let size = file.metadata().unwrap().len();
            rfs::fallocate(&file, FallocateFlags::KEEP_SIZE, size, 1 << 20).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size);
            rfs::fallocate(&file, FallocateFlags::empty(), size, 1 << 20).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size + (1 << 20));
            file.write_all_at(&[9; 16384], 0).unwrap();
            rfs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096)
                .unwrap();
            rfs::fallocate(&file, FallocateFlags::ZERO_RANGE, 9000, 100).unwrap();
            let mut bytes = [1; 16384];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let zero = |i: usize| (4096..8192).contains(&i) || (9000..9100).contains(&i);
            assert!(bytes.iter().enumerate().all(|(i, b)| *b == if zero(i) { 0 } else { 9 }));
            // FUSE carries no other mode.
            let collapsed = rfs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
            assert_eq!(collapsed.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
        }
    });
}

#[test]
fn ranges_are_copied_between_files() {
    desk("", stack, |d| {
        let from = File::open(d.at("large")).unwrap();
        let to = File::create(d.at("copy")).unwrap();
        let (mut at, mut to_at) = (0u64, 0u64);
        while at < LARGE as u64 {
            let n = rfs::copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), LARGE).unwrap();
            assert!(n > 0);
        }
        assert!(fs::read(d.at("copy")).unwrap() == fs::read(d.source.join("large")).unwrap());
        let both = update(&d.at("copy"));
        let (mut a, mut b) = (0u64, LARGE as u64);
        rfs::copy_file_range(&both, Some(&mut a), &both, Some(&mut b), 4096).unwrap();
        assert_eq!(both.metadata().unwrap().len(), LARGE as u64 + 4096);
    });
}

#[test]
fn a_mapping_and_a_handle_see_the_same_bytes() {
    desk("", stack, |d| {
        fs::write(d.at("mine"), vec![1; 8192]).unwrap();
        for name in ["mine", "small", "large"] {
            let file = update(&d.at(name));
            file.set_len(8192).unwrap();
            // SAFETY: nobody truncates the file while it is mapped.
            let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
            map[..6].copy_from_slice(b"mapped");
            map.flush().unwrap();
            let mut bytes = [0; 6];
            File::open(d.at(name)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"mapped", "{name}");
            file.write_all_at(b"through the handle", 4096).unwrap();
            assert_eq!(&map[4096..4114], b"through the handle", "{name}");
            // What is written after the last close is not lost either.
            drop(file);
            map[100..104].copy_from_slice(b"late");
            map.flush().unwrap();
            drop(map);
            d.remount();
            assert_eq!(&fs::read(d.at(name)).unwrap()[100..104], b"late", "{name}");
        }
        assert_eq!(fs::read(d.source.join("small")).unwrap(), b"stack content");
    });
}

#[test]
fn a_stack_file_is_emptied_without_a_trace_of_its_old_content() {
    desk("", stack, |d| {
        for name in ["small", "large"] {
            let mut file = OpenOptions::new().write(true).truncate(true).open(d.at(name)).unwrap();
            file.write_all(b"new").unwrap();
            drop(file);
            assert_eq!(fs::read(d.at(name)).unwrap(), b"new");
            d.remount();
            assert_eq!(fs::read(d.at(name)).unwrap(), b"new");
        }
    });
}

#[test]
fn appends_of_many_processes_do_not_overwrite_each_other() {
    desk("", stack, |d| {
        for name in ["small", "new", "large"] {
            d.sh(&format!(": >{name}; for p in 1 2 3 4; do (for i in $(seq 200); do echo $p-$i >>{name}; done) & done; wait"));
            let text = fs::read_to_string(d.at(name)).unwrap();
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            lines.dedup();
            assert_eq!(lines.len(), 800, "{name}");
        }
    });
}

#[test]
fn programs_run_and_are_busy_while_they_run() {
    desk("", stack, |d| {
        fs::copy("/usr/bin/sleep", d.at("mine")).unwrap();
        for name in ["sleep", "mine"] {
            // `sh` in the view, since entering it could hang this process.
            let mut child = Command::new(d.at(name)).arg("30").spawn().unwrap();
            let busy = OpenOptions::new().write(true).open(d.at(name)).map(drop);
            // Opened for reading, and yet it would be emptied.
            let emptied =
                OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(d.at(name)).map(drop);
            assert_eq!(emptied.unwrap_err().raw_os_error(), Some(libc::ETXTBSY), "{name}");
            assert!(child.try_wait().unwrap().is_none(), "{name} goes on running");
            assert!(fs::read(d.at(name)).unwrap() == fs::read("/usr/bin/sleep").unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(busy.unwrap_err().raw_os_error(), Some(libc::ETXTBSY), "{name}");
            let writer = OpenOptions::new().append(true).open(d.at(name)).unwrap();
            let busy = Command::new(d.at(name)).arg("0").spawn().map(drop);
            assert_eq!(busy.unwrap_err().raw_os_error(), Some(libc::ETXTBSY), "{name}");
            drop(writer);
            assert!(Command::new(d.at(name)).arg("0").status().unwrap().success(), "{name}");
        }
        // A replaced program goes on running.
        let mut child = Command::new(d.at("sleep")).arg("1").spawn().unwrap();
        fs::copy("/usr/bin/true", d.at("next")).unwrap();
        fs::rename(d.at("next"), d.at("sleep")).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(Command::new(d.at("sleep")).status().unwrap().success());
    });
}

/// The other process of the locks' test: takes what it is told to and says how that went.
#[test]
fn another_process() {
    let Ok(path) = std::env::var("REROOT_TEST_LOCK") else { return };
    let file = update(Path::new(&path));
    let flock = rfs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    let posix = rfs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    println!("flock {flock} posix {posix}");
}

fn ask(path: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "another_process", "--nocapture"]).env("REROOT_TEST_LOCK", path);
    let answer = common::program::run(&mut command, common::program::LIMIT).ok().out();
    answer.lines().find(|l| l.contains("flock")).unwrap_or_else(|| panic!("{answer}")).to_string()
}

#[test]
fn locks_hold_between_processes() {
    desk("", stack, |d| {
        fs::write(d.at("mine"), "").unwrap();
        for name in ["mine", "small"] {
            let path = d.at(name);
            assert!(ask(&path).contains("flock true posix true"));
            let file = update(&path);
            rfs::flock(&file, FlockOperation::LockExclusive).unwrap();
            assert!(ask(&path).contains("flock false posix true"));
            rfs::flock(&file, FlockOperation::Unlock).unwrap();
            rfs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
            assert!(ask(&path).contains("flock true posix false"));
            drop(file);
            assert!(ask(&path).contains("flock true posix true"));
        }
    });
}

#[test]
fn readers_of_a_small_stack_file_see_what_is_written_to_it() {
    desk("", stack, |d| {
        let reader = File::open(d.at("small")).unwrap();
        let mut first = [0; 5];
        reader.read_exact_at(&mut first, 0).unwrap();
        let number = reader.metadata().unwrap().ino();
        let writer = update(&d.at("small"));
        writer.write_all_at(b"WRITE", 0).unwrap();
        let mut now = [0; 5];
        reader.read_exact_at(&mut now, 0).unwrap();
        assert_eq!((&first, &now), (b"stack", b"WRITE"));
        assert_eq!(writer.metadata().unwrap().ino(), number);
    });
}

fn old_bytes_stay(d: &Desk, reader: &File) {
    let mut first = [1; 4];
    reader.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 4], "the reader keeps the old bytes");
    assert!(fs::read(d.source.join("large")).unwrap()[..4] == [0; 4]);
}

#[test]
fn a_large_stack_file_is_written_while_it_is_read_past_the_daemon() {
    desk("", stack, |d| {
        let reader = File::open(d.at("large")).unwrap();
        old_bytes_stay(d, &reader);
        let writer = update(&d.at("large"));
        writer.write_all_at(b"NEW!", 0).unwrap();
        old_bytes_stay(d, &reader);
        let again = File::open(d.at("large")).unwrap();
        let mut bytes = [0; 4];
        again.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"NEW!");
        assert_eq!(writer.metadata().unwrap().ino(), fs::metadata(d.at("large")).unwrap().ino());
        assert_eq!(fs::metadata(d.at("large")).unwrap().len(), LARGE as u64);
        drop((writer, again));
        let mut rest = Vec::new();
        (&reader).read_to_end(&mut rest).unwrap();
        assert!(rest == fs::read(d.source.join("large")).unwrap());
        d.program.ok(&["fsck", "--deep"]);
    });
}

#[test]
fn a_large_stack_file_is_opened_for_writing_while_others_come_and_read() {
    let fill = |dir: &Path| {
        for i in 0..6 {
            fs::write(dir.join(format!("large-{i}")), vec![i; 16 << 20]).unwrap();
        }
    };
    desk("", fill, |d| {
        for i in 0..6u8 {
            let path = d.at(format!("large-{i}"));
            if i % 2 == 1 {
                d.sh(&format!("chmod 640 large-{i}"));
            }
            let done = Arc::new(AtomicBool::new(false));
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let (path, done) = (path.clone(), done.clone());
                    std::thread::spawn(move || {
                        let mut bytes = [0; 4];
                        while !done.load(Ordering::Relaxed) {
                            File::open(&path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
                            std::thread::sleep(Duration::from_millis(3));
                        }
                    })
                })
                .collect();
            let open = OpenOptions::new().write(true).open(&path);
            let written = open.and_then(|f| f.write_all_at(b"NEW!", 0));
            std::thread::sleep(Duration::from_millis(20));
            done.store(true, Ordering::Relaxed);
            readers.into_iter().for_each(|r| r.join().unwrap());
            written.unwrap();
            let bytes = fs::read(&path).unwrap();
            assert!(bytes[..4] == *b"NEW!" && bytes[4..].iter().all(|b| *b == i), "large-{i}");
        }
        d.program.ok(&["fsck", "--deep"]);
    });
}

#[test]
fn a_large_stack_file_is_truncated_and_removed_while_it_is_read_past_the_daemon() {
    desk("", stack, |d| {
        let reader = File::open(d.at("large")).unwrap();
        old_bytes_stay(d, &reader);
        d.sh("truncate -s 10 large; stat -c %s large");
        assert_eq!(d.sh("stat -c %s large"), "10");
        old_bytes_stay(d, &reader);
        d.sh("echo x >large; mv large other; rm other");
        old_bytes_stay(d, &reader);
        assert!(!d.at("large").exists());
    });
}

#[test]
fn every_data_mode_shows_the_same() {
    for mode in ["data=auto", "data=passthrough", "data=coherent"] {
        desk(mode, stack, move |d| {
            for name in ["small", "large", "new"] {
                let path = d.at(name);
                let mut file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)
                    .unwrap();
                file.seek(SeekFrom::Start(5)).unwrap();
                file.write_all(b"written").unwrap();
                let mut bytes = [0; 7];
                File::open(&path).unwrap().read_exact_at(&mut bytes, 5).unwrap();
                assert_eq!(&bytes, b"written", "{mode} {name}");
                assert_eq!(file.metadata().unwrap().len(), fs::metadata(&path).unwrap().len());
            }
            assert_eq!(d.sh("./sleep 0 && cat dir/x"), "x");
        });
    }
}

/// A file handle as `name_to_handle_at(2)` gives it.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount = 0i32;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the structure has room for as many bytes as it says, and all pointers are live.
    let r = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    assert_eq!(r, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    handle
}

fn open_handle(mount: &File, handle: &Handle) -> std::io::Result<File> {
    // SAFETY: the handle is one that the kernel filled in.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            std::ptr::from_ref(handle),
            libc::O_RDONLY,
        )
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

#[test]
fn file_handles_are_found_again_after_the_kernel_forgot() {
    desk("", stack, |d| {
        d.sh("mkdir -p mine/deep; echo user >mine/deep/file; echo changed >>small; mv dir/x mine/x; echo gone >gone");
        let paths = ["mine/deep/file", "small", "mine/x", "sleep", "mine/deep", "dir", "gone"];
        let handles: Vec<Handle> = paths.iter().map(|p| handle_of(&d.at(p))).collect();
        let numbers: Vec<u64> = paths.iter().map(|p| fs::metadata(d.at(p)).unwrap().ino()).collect();
        fs::remove_file(d.at("gone")).unwrap();
        d.drop_caches();
        std::thread::sleep(Duration::from_millis(200));
        let root = File::open(&d.mnt).unwrap();
        for ((path, handle), number) in paths.iter().zip(&handles).zip(numbers) {
            match open_handle(&root, handle) {
                Ok(file) => {
                    assert_ne!(*path, "gone");
                    assert_eq!(file.metadata().unwrap().ino(), number, "{path}");
                }
                Err(e) => {
                    assert_eq!((*path, e.raw_os_error()), ("gone", Some(libc::ESTALE)), "{path}: {e}");
                }
            }
        }
    });
}

#[test]
fn one_of_many_creators_wins() {
    desk("", stack, |d| {
        for name in ["race", "small"] {
            let _ = fs::remove_file(d.at(name));
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let path = d.at(name);
                    std::thread::spawn(move || {
                        OpenOptions::new().write(true).create_new(true).open(path).is_ok()
                    })
                })
                .collect();
            let winners = threads.into_iter().map(|t| t.join().unwrap()).filter(|w| *w).count();
            assert_eq!(winners, 1, "{name}");
        }
    });
}

#[test]
fn many_writers_copy_one_stack_file_up_once() {
    desk("", stack, |d| {
        let before = fs::metadata(d.at("small")).unwrap().ino();
        let threads: Vec<_> = (0..8u64)
            .map(|i| {
                let path = d.at("small");
                std::thread::spawn(move || update(&path).write_all_at(&[b'0' + i as u8], 100 + i).unwrap())
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let bytes = fs::read(d.at("small")).unwrap();
        assert_eq!((&bytes[..13], &bytes[100..]), (&b"stack content"[..], &b"01234567"[..]));
        assert_eq!(fs::metadata(d.at("small")).unwrap().ino(), before);
    });
}

#[test]
fn what_is_written_and_synced_survives_the_daemon() {
    desk("", stack, |d| {
        let mut file =
            OpenOptions::new().append(true).custom_flags(libc::O_DSYNC).open(d.at("small")).unwrap();
        file.write_all(b", and more").unwrap();
        file.sync_all().unwrap();
        let out = Command::new("cat").arg(d.user.join("small")).stdin(Stdio::null()).output().unwrap().stdout;
        assert_eq!(out, b"stack content, and more");
    });
}
