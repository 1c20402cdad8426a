//! The project's pages are there, and what they say of the program is so.

mod common;
// What the comparison with peers writes, as it knows it itself.
#[allow(dead_code)]
#[path = "../benches/peers/page.rs"]
mod page_of_peers;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn every_page_that_the_readme_lists_is_there() {
    for name in ["README.md", "LICENSE", "CHANGELOG.md", "ARCHITECTURE.md", "FORMAT.md"] {
        assert!(page(name).len() > 200, "{name} is all but empty");
    }
    let readme = page("README.md");
    for (at, _) in readme.match_indices("](") {
        let rest = &readme[at + 2..];
        let target = &rest[..rest.find(')').unwrap_or(0)];
        if target.is_empty() || target.contains("://") || target.starts_with('#') {
            continue;
        }
        let file = target.split('#').next().unwrap_or_default();
        assert!(root().join(file).exists(), "README.md links to {file}, which is not there");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(page("CHANGELOG.md").contains(&format!("## {version}")), "CHANGELOG.md does not know {version}");
}

#[test]
fn the_tour_of_the_readme_works() {
    common::require_root();
    let scratch = common::Scratch::new();
    let program = common::Program::new(&scratch);
    common::tree::small(&scratch.join("desk-1"));
    common::tree::small(&scratch.join("desk-2"));
    fs::write(scratch.join("desk-2/usr/bin/tool"), "#!/bin/sh\necho tool 2\n").unwrap();
    let page = page("README.md");
    let tour = page.split("## A tour").nth(1).and_then(|t| t.split("```").nth(1)).unwrap();
    let run = |call: &str| {
        let at = scratch.path().to_str().unwrap();
        let call = call.replace("/srv/trees", at).replace("/srv/alice", &format!("{at}/mnt"));
        let words: Vec<&str> = call.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"reroot"), "{call}");
        program.ok(words.get(1..).unwrap_or_default());
    };
    for line in tour.lines().filter(|l| !l.trim().is_empty()) {
        run(line);
        let seen = scratch.join("mnt/usr/bin/tool");
        let tool = common::within(common::program::LIMIT, line, move || {
            fs::read_to_string(seen).unwrap_or_default()
        });
        match line.split_whitespace().nth(1) {
            Some("mount" | "rollback") => assert!(tool.contains("tool 1"), "after {line}: {tool}"),
            Some("upgrade") => assert!(tool.contains("tool 2"), "after {line}: {tool}"),
            _ => assert!(tool.is_empty(), "after {line}: {tool}"),
        }
    }
    run("reroot umount alice");
}

/// The lines of README's fenced blocks that call the program.
fn readme_commands() -> Vec<Vec<String>> {
    let mut out = Vec::new();
    let mut inside = false;
    for line in page("README.md").lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside && let Some(at) = line.find("reroot ") {
            let call = line[at..].split('#').next().unwrap_or_default();
            if line[..at].trim().is_empty() || line[..at].trim_end().ends_with(['$', '&', ';', '|', 'o']) {
                out.push(call.split_whitespace().skip(1).map(str::to_string).collect());
            }
        }
    }
    assert!(out.len() >= 5, "README's tour was not found");
    out
}

fn help(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_reroot")).args(args).arg("--help").output().unwrap();
    assert!(
        out.status.success(),
        "reroot {} --help: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn the_readme_uses_commands_and_options_that_exist() {
    let commands: BTreeSet<String> = help(&[])
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next().map(str::to_string))
        .collect();
    for call in readme_commands() {
        let name = call.iter().find(|w| !w.starts_with('-')).cloned().unwrap_or_default();
        assert!(commands.contains(&name), "README.md: there is no `reroot {name}`");
        let text = help(&[&name]);
        for option in call.iter().filter(|w| w.starts_with('-') && w.len() > 1) {
            let option = option.split('=').next().unwrap_or_default();
            assert!(text.contains(option), "README.md: `reroot {name}` has no {option}");
        }
    }
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn every_line_of_semantics_names_a_test_that_exists() {
    let Ok(text) = fs::read_to_string(root().join("SEMANTICS.md")) else {
        eprintln!("SEMANTICS.md is not there yet: nothing to check");
        return;
    };
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let source: String = files.iter().map(|f| fs::read_to_string(f).unwrap_or_default()).collect();
    let known: BTreeSet<&str> = source
        .split("fn ")
        .skip(1)
        .map(|rest| &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())])
        .collect();
    let (mut wrong, mut named) = (Vec::new(), 0);
    // What comes before the first line of the form `- **name** …` explains the page.
    let lines = text.find("\n- **").map_or("", |at| &text[at..]);
    for (at, _) in lines.match_indices("(test: ") {
        let rest = &lines[at + "(test: ".len()..];
        let list = &rest[..rest.find(')').unwrap_or(rest.len())];
        for name in list.split([',', ' ', '\n', '`']).filter(|n| !n.is_empty()) {
            named += 1;
            // A path such as `overlay::marks_are_escaped` names the function at its end.
            let function = name.rsplit("::").next().unwrap_or(name);
            if !known.contains(function) {
                wrong.push(format!("SEMANTICS.md names the test {name}, which is not there"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(named > 0, "SEMANTICS.md names no test");
    // Each promise and each difference is held by a test.
    let bare: Vec<&str> = lines
        .split("\n- **")
        .skip(1)
        .filter(|line| !line.contains("(test: "))
        .map(|line| line.lines().next().unwrap_or_default())
        .collect();
    assert!(bare.is_empty(), "SEMANTICS.md has lines without a test:\n{}", bare.join("\n"));
}

/// The options that a part of the mount helper's page lists, joined with commas, with values where they take some.
fn options_on_page(part: &str) -> String {
    let page = page("docs/mount.fuse.reroot.8");
    let part =
        page.split(&format!("\n.SS {part}")).nth(1).and_then(|rest| rest.split("\n.S").next()).unwrap();
    let lines = part.split("\n.TP\n").skip(1).map(|entry| {
        let line = entry.lines().next().and_then(|l| l.split_once(' ')).unwrap().1;
        let line = line.replace("\"\\fR, \\fB", ",").replace("\", \"", ",").replace(['"', ' '], "");
        let line = line.replace("DISK:VIEW:COUNT", "0:1:1").replace("TOP:...:BOTTOM", "/top:/bottom");
        line.replace("DIR", "/dir").replace("NAME", "name")
    });
    lines.collect::<Vec<_>>().join(",")
}

#[test]
fn the_page_of_the_mount_helper_lists_the_options_that_there_are() {
    use reroot::daemon::{MountOptions, overlay::OverlayOptions};
    let (both, directories) = (options_on_page("For both"), options_on_page("For directories"));
    assert!(both.contains("ro,rw,") && directories.contains(",workdir=/dir,"), "{both} {directories}");
    MountOptions::parse(&both).unwrap();
    OverlayOptions::parse(&format!("{both},{directories}")).unwrap();
    // Who gives a wrong one is told those.
    let known = MountOptions::parse("bogus").unwrap_err().to_string();
    for word in known.split("known are ").nth(1).unwrap().split(", ") {
        let name = word.split(['=', '|']).next().unwrap();
        assert!(both.split(',').any(|o| o.split('=').next() == Some(name)), "{name}: {both}");
    }
}

#[test]
fn the_table_of_peers_is_as_the_program_that_measures_them_makes_it() {
    let faults = page_of_peers::faults(&page("BENCHMARKS.md"));
    assert!(
        faults.is_empty(),
        "BENCHMARKS.md: measure again with `cargo bench --bench peers -- --write BENCHMARKS.md`:\n{}",
        faults.join("\n")
    );
}

#[test]
fn a_table_of_peers_that_the_program_did_not_make_is_noticed() {
    use page_of_peers::{BEGIN, END, HEADS, PEERS, ROWS, faults, ratio, replaced, verdict};
    let empty = format!("# Figures\n\n{BEGIN}\n{END}\n\nThe rest.\n");
    assert!(!faults(&empty).is_empty(), "without heads");
    let lines: Vec<String> = ROWS
        .iter()
        .map(|(work, overlay, fuse)| {
            let text = ratio(0.9, 0.8, 1.2);
            let (to, from) = (verdict(&text, *overlay), verdict(&text, *fuse));
            format!("| {work} | 1 s | 1 s | 1 s | 1 s | {text} | {to} | {text} | {from} |")
        })
        .collect();
    let some = replaced(&empty, "About.", &[(PEERS, lines[3..5].to_vec())]).unwrap();
    assert!(!faults(&some).is_empty(), "rows are missing");
    // The others come to them, in the order of the table; what stands around them stays.
    let all = replaced(&some, "About.", &[(PEERS, lines.clone())]).unwrap();
    assert_eq!(faults(&all), Vec::<String>::new(), "{all}");
    assert!(all.starts_with("# Figures\n") && all.ends_with("The rest.\n"), "{all}");
    assert_eq!(replaced(&all, "About.", &[]).unwrap(), all, "written once more");
    let missed = all.lines().filter(|l| l.contains("**missed**")).count();
    assert_eq!(missed, lines.iter().filter(|l| l.contains("**missed**")).count());
    for (what, other) in [
        ("another head", all.replace("| to overlayfs |", "| against overlayfs |")),
        ("a head that is missing", all.replace(HEADS[1], "")),
        ("a row that nobody measures", all.replace(ROWS[0].0, "walk")),
        ("a row that is gone", all.replace(&format!("{}\n", lines[7]), "")),
        ("a verdict that is wrong", all.replacen("≤ 0.8: **missed**", "≤ 0.8", 1)),
        ("another target", all.replacen("≤ 2 ", "≤ 3 ", 1)),
        ("a ratio that was changed", all.replace(&lines[1], &lines[1].replacen("0.900", "2.900", 1))),
        ("a cell too many", all.replacen("| 1 s |", "| 1 s | 1 s |", 1)),
        ("a quick look", all.replace("About.", "With --small.")),
        ("no end", all.replace(END, "")),
        ("two ends", all.replace(END, &format!("{END}\n{END}"))),
    ] {
        assert_ne!(other, all, "{what}: nothing was changed");
        assert!(!faults(&other).is_empty(), "{what} goes unnoticed");
    }
}
