//! What a running program sees of a swap.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::common::{self, tree::Item};
use super::{Desk, ino, timed};

/// A program that is asked line by line.
struct Asked {
    child: Child,
}

impl Asked {
    fn start(command: &mut Command) -> Asked {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Asked { child }
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        let mut to = self.child.stdin.take().unwrap();
        let mut from = BufReader::new(self.child.stdout.take().unwrap());
        let line = format!("{line}\n");
        let (to, from, answer) = timed(move || {
            to.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            from.read_line(&mut answer).unwrap();
            (to, from, answer)
        });
        self.child.stdin = Some(to);
        self.child.stdout = Some(from.into_inner());
        answer.trim_end().to_string()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell whose working directory is `dir`; each line that it is asked is run there.
fn shell_in(dir: &Path) -> Asked {
    let script = "cd \"$0\"; while IFS= read -r l; do eval \"$l\" 2>&1 | tr '\\n' ' '; echo; done";
    Asked::start(Command::new("bash").arg("-c").arg(script).arg(dir))
}

#[test]
fn a_program_runs_on_with_the_library_that_it_mapped() {
    common::require_root();
    let build = common::Scratch::new();
    let library = |n: u32| {
        format!(
            "const unsigned char far[4 << 20] = {{ [0 ... (4 << 20) - 1] = {n} }};\n\
             int value(int at) {{ return {n} * 1000 + far[at]; }}"
        )
    };
    for n in [1, 2] {
        std::fs::write(build.join(format!("lib{n}.c")), library(n)).unwrap();
        common::sh(build.path(), &format!("mkdir l{n}; gcc -shared -fPIC -o l{n}/libvalue.so lib{n}.c")).ok();
    }
    let main = r#"#include <stdio.h>
        int value(int at);
        int main(void) { int at; while (scanf("%d", &at) == 1) { printf("%d\n", value(at)); fflush(stdout); } }"#;
    std::fs::write(build.join("main.c"), main).unwrap();
    common::sh(build.path(), "gcc -o ask main.c -Ll1 -lvalue -Wl,-rpath,'$ORIGIN/../lib'").ok();
    let read = |name: &str| std::fs::read(build.join(name)).unwrap();
    let (ask, first, second) = (read("ask"), read("l1/libvalue.so"), read("l2/libvalue.so"));
    let desk = Desk::new(
        &[("bin/ask", Item::Mode(&ask, 0o755)), ("lib/libvalue.so", Item::Mode(&first, 0o755))],
        &[&format!("cp --remove-destination {}/l2/libvalue.so lib/libvalue.so", build.path().display())],
    );
    assert_ne!(first, second);
    let mount = desk.mount();
    let mut old = Asked::start(&mut Command::new(mount.join("bin/ask")));
    assert_eq!(old.ask("5"), "1001");
    desk.to("2");
    // Pages that nobody has touched before the swap are the old ones too.
    for at in ["0", "1000000", "4194303"] {
        assert_eq!(old.ask(at), "1001");
    }
    let mut new = Asked::start(&mut Command::new(mount.join("bin/ask")));
    assert_eq!(new.ask("4194303"), "2002");
    desk.to("1");
    assert_eq!(new.ask("2000000"), "2002");
    assert_eq!(old.ask("3000000"), "1001");
}

#[test]
fn an_open_file_has_its_old_bytes_to_the_end_and_a_new_open_the_new() {
    let (small, large) = (vec![b'a'; 200_000], vec![b'A'; 3 << 20]);
    let desk = Desk::new(
        &[("small", Item::File(&small)), ("large", Item::File(&large))],
        &["head -c 100000 /dev/zero | tr '\\0' b >small; head -c 4000000 /dev/zero | tr '\\0' B >large"],
    );
    let mount = desk.mount();
    let point = mount.path().to_path_buf();
    let mut held = timed(move || {
        let open = |name: &str| {
            let mut file = File::open(point.join(name)).unwrap();
            file.read_exact(&mut [0; 1000]).unwrap();
            file
        };
        [open("small"), open("large")]
    });
    for round in 0..3 {
        desk.to(if round % 2 == 0 { "2" } else { "1" });
        let point = mount.path().to_path_buf();
        held = timed(move || {
            for (file, want) in held.iter_mut().zip([&small_is(b'a', 200_000), &small_is(b'A', 3 << 20)]) {
                let mut bytes = Vec::new();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_end(&mut bytes).unwrap();
                assert!(bytes == *want, "{} bytes of {:?}", bytes.len(), bytes.first());
                assert_eq!(file.metadata().unwrap().len(), want.len() as u64);
            }
            let now = |name: &str| std::fs::read(point.join(name)).unwrap();
            if round % 2 == 0 {
                assert!(now("small") == small_is(b'b', 100_000) && now("large") == small_is(b'B', 4_000_000));
            } else {
                assert!(now("small") == small_is(b'a', 200_000) && now("large") == small_is(b'A', 3 << 20));
            }
            held
        });
    }
}

fn small_is(byte: u8, len: usize) -> Vec<u8> {
    vec![byte; len]
}

#[test]
fn every_kind_of_change_shows_at_once_also_where_the_kernel_knew_a_name_as_missing() {
    let desk = Desk::new(
        &[
            ("d/file-to-dir", Item::File(b"f")),
            ("d/file-to-link", Item::File(b"f")),
            ("d/dir-to-file/inner", Item::File(b"i")),
            ("d/dir-to-link/inner", Item::File(b"i")),
            ("d/link-to-file", Item::Link("content")),
            ("d/link-to-dir", Item::Link("content")),
            ("d/link", Item::Link("content")),
            ("d/content", Item::File(b"one")),
            ("d/mode", Item::File(b"same")),
            ("d/removed", Item::File(b"r")),
            ("d/removed-dir/sub/f", Item::File(b"r")),
            ("d/fifo-to-file", Item::File(b"x")),
        ],
        &["cd d; rm -r file-to-dir file-to-link dir-to-file dir-to-link link-to-file link-to-dir link removed removed-dir
           mkdir file-to-dir link-to-dir; echo n >file-to-dir/new; echo n >link-to-dir/new; ln -s mode file-to-link
           ln -s content dir-to-link; echo n >dir-to-file; echo n >link-to-file; ln -s mode link; printf two >content
           chmod 600 mode; echo n >added; mkdir -p added-dir/sub; echo n >added-dir/sub/f; rm fifo-to-file; mkfifo fifo-to-file"],
    );
    let mount = desk.mount();
    for round in 0..4 {
        let tag = if round % 2 == 0 { "1" } else { "2" };
        common::tree::assert_same(
            &format!("round {round}"),
            &desk.source(tag),
            &common::tree::listing(mount.path()),
        );
        // Every name that either version has is asked for, so that the kernel knows each as there or as missing.
        let known = mount.sh("cd d; for n in added added-dir added-dir/sub removed removed-dir removed-dir/sub \
            file-to-dir/new dir-to-file/inner dir-to-link/inner link-to-dir/new; do test -e $n && echo $n; done; true");
        let want = if tag == "1" {
            "removed\nremoved-dir\nremoved-dir/sub\ndir-to-file/inner\ndir-to-link/inner"
        } else {
            "added\nadded-dir\nadded-dir/sub\nfile-to-dir/new\nlink-to-dir/new"
        };
        assert_eq!(known, want);
        desk.to(if tag == "1" { "2" } else { "1" });
    }
}

#[test]
fn a_number_stays_where_only_metadata_differ_and_changes_with_the_content() {
    let desk = Desk::new(
        &[
            ("same", Item::File(b"same")),
            ("mode", Item::File(b"mode")),
            ("content", Item::File(b"one")),
            ("dir/a", Item::File(b"a")),
            ("link", Item::Link("same")),
        ],
        &["chmod 600 mode; touch -d 2001-01-01 mode; setfattr -n user.v -v 2 mode; printf two >content
           echo b >dir/b; chmod 700 dir; ln -sfn mode link"],
    );
    let mount = desk.mount();
    let numbers = || ["same", "mode", "content", "dir", "dir/a", "link", "."].map(|n| ino(&mount.join(n)));
    let first = numbers();
    let held = timed({
        let path = mount.join("mode");
        move || File::open(path).unwrap()
    });
    desk.to("2");
    let second = numbers();
    for (i, same) in [true, true, false, true, true, false, true].into_iter().enumerate() {
        assert_eq!(first[i] == second[i], same, "number {i}");
    }
    // The open file is the same inode: it shows the new attributes.
    let mode =
        timed(move || std::os::unix::fs::PermissionsExt::mode(&held.metadata().unwrap().permissions()));
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        mount.sh("stat -c '%a %Y' mode; stat -c %a dir; getfattr --only-values -n user.v mode"),
        "600 978307200\n700\n2"
    );
    assert_eq!(mount.sh("readlink link; cat content; stat -c %h ."), "mode\ntwo3");
    desk.to("1");
    assert_eq!(numbers(), first, "back on the first version everything has its first number");
    assert_eq!(
        mount.sh("stat -c %a mode dir; getfattr -n user.v mode 2>&1 | grep -c 'No such attribute'"),
        "644\n755\n1"
    );
}

#[test]
fn cached_pages_stay_where_the_content_is_the_same() {
    let bytes = vec![7; 900_000];
    let desk = Desk::new(&[("f", Item::File(&bytes)), ("g", Item::File(b"g"))], &["chmod 600 f; echo h >g"]);
    let mount = desk.mount();
    let cached = || {
        let out = mount.sh("fincore -b -n -o RES f 2>/dev/null || echo none");
        out.trim().to_string()
    };
    // Somebody may empty the caches of the whole machine meanwhile: then again.
    let mut seen = Vec::new();
    for round in 0..10 {
        mount.sh("cat f >/dev/null");
        let before = cached();
        let (tag, shows) = if round % 2 == 0 { ("2", "600\nh") } else { ("1", "644\ng") };
        desk.to(tag);
        assert_eq!(mount.sh("stat -c %a f; cat g"), shows);
        seen.push((before, cached()));
        if seen.last().is_some_and(|(before, after)| before == after) {
            return;
        }
    }
    panic!("pages of a file whose content is the same were dropped: {seen:?}");
}

#[test]
fn working_directories_stay_valid_and_a_removed_one_is_as_after_rmdir() {
    let desk = Desk::new(
        &[
            ("same/f", Item::File(b"f\n")),
            ("changed/old", Item::File(b"old\n")),
            ("removed/sub/f", Item::File(b"f\n")),
            ("replaced/f", Item::File(b"f\n")),
        ],
        &["rm -r changed/old removed replaced; echo new >changed/new; echo file >replaced"],
    );
    let mount = desk.mount();
    let top = mount.path().display().to_string();
    let mut same = shell_in(&mount.join("same"));
    let mut changed = shell_in(&mount.join("changed"));
    let mut removed = shell_in(&mount.join("removed"));
    let mut deep = shell_in(&mount.join("removed/sub"));
    let mut replaced = shell_in(&mount.join("replaced"));
    assert_eq!(removed.ask("ls; cat sub/f"), "sub f");
    assert_eq!(changed.ask("cat old; cat new"), "old cat: new: No such file or directory");
    desk.to("2");
    assert_eq!(same.ask("/bin/pwd; cat f"), format!("{top}/same f"));
    assert_eq!(
        changed.ask("/bin/pwd; cat new; cat old"),
        format!("{top}/changed new cat: old: No such file or directory")
    );
    for gone in [&mut removed, &mut deep, &mut replaced] {
        let pwd = gone.ask("readlink /proc/self/cwd");
        assert!(pwd.contains("(deleted)"), "its path is as after rmdir: {pwd}");
        assert_eq!(gone.ask("ls"), "", "it is empty");
        assert_eq!(
            gone.ask("cat f sub/f"),
            "cat: f: No such file or directory cat: sub/f: No such file or directory"
        );
        assert!(gone.ask("touch x").contains("No such file or directory"), "nothing can be made in it");
        assert!(gone.ask("mkdir x").contains("No such file or directory"), "nothing can be made in it");
        assert_eq!(gone.ask("stat -c %h .").trim(), "0", "it has no links left");
    }
    assert_eq!(mount.sh("ls; cat replaced"), "changed\nreplaced\nsame\nfile");
    desk.to("1");
    assert_eq!(same.ask("/bin/pwd; cat f"), format!("{top}/same f"));
    assert_eq!(changed.ask("cat old"), "old");
    // The directory is there again, and whoever stood in it stands in it.
    assert_eq!(mount.sh("cat removed/sub/f replaced/f"), "f\nf");
    assert_eq!(removed.ask("cat sub/f"), "f");
    assert_eq!(deep.ask("cat f"), "f");
    drop([same, changed, removed, deep, replaced]);
}

#[test]
fn a_hundred_swaps_in_a_row_show_each_version_at_once() {
    let desk = Desk::new(
        &[("d/a", Item::File(b"1")), ("d/gone", Item::File(b"1")), ("keep", Item::File(b"k"))],
        &["printf 2 >d/a; rm d/gone; printf 2 >d/new; ln -s d link"],
    );
    let mount = desk.mount();
    let pids = |d: &Desk| d.program.json(&["status", "pc"])["pid"].clone();
    let pid = pids(&desk);
    for n in 1..=100u64 {
        let (tag, want) =
            if n % 2 == 1 { ("2", "22\nd/a d/new keep link") } else { ("1", "11\nd/a d/gone keep") };
        let report = desk.to(tag);
        assert_eq!(report["generation"].as_u64(), Some(n));
        let point = mount.path().to_path_buf();
        let seen = timed(move || {
            let read = |n: &str| std::fs::read_to_string(point.join(n)).unwrap_or_default();
            let there = |n: &&str| std::fs::symlink_metadata(point.join(n)).is_ok();
            let names: Vec<&str> =
                ["d/a", "d/gone", "d/new", "keep", "link"].into_iter().filter(there).collect();
            format!("{}{}{}\n{}", read("d/a"), read("d/gone"), read("d/new"), names.join(" "))
        });
        assert_eq!(seen, want, "swap {n}");
    }
    assert_eq!(pids(&desk), pid, "the same daemon serves all along");
}

#[test]
fn what_the_user_changed_stays_with_an_open_file_that_a_swap_displaces() {
    let desk = Desk::new(
        &[
            ("f", Item::File(b"one")),
            ("pipe", Item::File(b"")),
            ("a", Item::File(b"group")),
            ("b", Item::Same("a")),
        ],
        &["printf two >f; rm pipe; mkfifo pipe; printf own >b.new; mv b.new b"],
    );
    desk.to("2");
    let mount = desk.mount();
    mount.sh("chmod 711 f; setfattr -n user.mine -v kept f; chown 77:78 pipe; setfattr -n trusted.mine -v kept pipe");
    // The name is hidden where the first version links it with `a`.
    mount.sh("mv b c");
    let script = "cd \"$0\"; exec 5<f 6<>pipe 7<a; while IFS= read -r l; do eval \"$l\" 2>&1 | tr '\\n' ' '; echo; done";
    let mut shell = Asked::start(Command::new("bash").arg("-c").arg(script).arg(mount.path()));
    let facts = "cd /proc/self/fd; stat -L -c '%a %u:%g %h' 5 6 7; getfattr --only-values -n user.mine 5; getfattr --only-values -n trusted.mine 6";
    assert_eq!(shell.ask(facts), "711 0:0 1 644 77:78 1 644 0:0 1 keptkept");
    desk.to("1");
    // What the kernel opens by itself is not known to have lost its name before it is changed.
    assert_eq!(shell.ask(facts), "711 0:0 0 644 77:78 0 644 0:0 0 keptkept");
    shell.ask("touch -d @5 /proc/self/fd/5 /proc/self/fd/6");
    assert_eq!(shell.ask(facts), "711 0:0 0 644 77:78 0 644 0:0 0 keptkept");
    assert_eq!(mount.sh("stat -c '%a %u:%g %h' f pipe a; cat f"), "711 0:0 1\n644 0:0 1\n644 0:0 1\none");
}
