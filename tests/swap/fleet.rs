//! Swaps as operators make them: targets by default, many desktops, unmounted ones, and crashes in between.

use super::common::{Program, tree, tree::Item};
use super::{Desk, cases};

fn desk() -> Desk {
    Desk::new(&[("v", Item::File(b"1"))], &["printf 2 >v; printf n >n", "printf 3 >v; rm n"])
}

#[test]
fn upgrade_goes_to_latest_and_rollback_to_the_version_before() {
    let desk = desk();
    desk.program.ok(&["tag", "os:3", "latest"]);
    let mount = desk.mount();
    desk.program.run(&["rollback", "pc"]).expect_code(3);
    desk.to("2");
    let up = desk.program.swap(&["upgrade", "pc"]);
    assert_eq!((up["from"]["tag"].as_str(), up["to"]["tag"].as_str()), (Some("2"), Some("latest")), "{up}");
    assert_eq!(mount.sh("cat v"), "3");
    desk.program.run(&["upgrade", "pc"]).expect_code(3);
    desk.program.run(&["upgrade", "pc", "--to", "os:3"]).expect_code(3);
    let back = desk.program.swap(&["rollback", "pc"]);
    assert_eq!(back["to"]["tag"], "2", "{back}");
    assert_eq!(mount.sh("cat v n"), "2n");
    let forward = desk.program.ok(&["rollback", "pc"]);
    assert!(forward.err().contains("goes forward: os:latest ("), "{}", forward.err());
    let back = desk.program.ok(&["rollback", "pc"]);
    assert!(!back.err().contains("forward"), "{}", back.err());
    desk.program.ok(&["rollback", "pc", "--to", "os:1"]);
    assert_eq!(mount.sh("cat v; ls"), "1v");
    desk.program.run(&["upgrade", "pc", "--to", "os:none"]).expect_code(1);
    assert_eq!(mount.sh("cat v"), "1");
}

#[test]
fn the_report_has_every_field_that_scripts_rely_on() {
    let desk = desk();
    for live in [true, false] {
        let mount = live.then(|| desk.mount());
        let report = desk.to(if live { "2" } else { "1" });
        assert_eq!(report["desktop"], "pc");
        assert_eq!(report["live"].as_bool(), Some(live));
        for (field, tag) in [("from", if live { "1" } else { "2" }), ("to", if live { "2" } else { "1" })] {
            assert_eq!(report[field]["tag"], tag, "{report}");
            assert!(report[field]["version"].as_str().unwrap().starts_with("sha384:"), "{report}");
        }
        assert_eq!(report["generation"].as_u64(), Some(if live { 1 } else { 2 }));
        assert_eq!(report["paths_differing"].as_u64(), Some(3), "{report}");
        for number in ["invalidated", "pause_us"] {
            assert!(report[number].is_u64(), "{number}: {report}");
        }
        assert!(report["total_ms"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!(report["conflicts"].as_array().map(Vec::len), Some(0), "{report}");
        drop(mount);
    }
}

#[test]
fn an_unmounted_desktop_shows_the_target_at_its_next_mount() {
    let desk = desk();
    let mount = desk.mount();
    mount.sh("printf mine >v");
    mount.umount();
    let up = desk.to("2");
    assert_eq!(up["live"].as_bool(), Some(false), "{up}");
    assert_eq!(cases(&up), ["v shadows-changed"]);
    assert_eq!(desk.state()["current"]["tag"], "2");
    assert_eq!(desk.state()["previous"]["tag"], "1");
    let mount = desk.mount();
    assert_eq!(mount.sh("cat v n"), "minen");
    // Live again, on top of it.
    let back = desk.program.swap(&["rollback", "pc"]);
    assert_eq!((back["live"].as_bool(), back["generation"].as_u64()), (Some(true), Some(2)), "{back}");
    assert_eq!(mount.sh("cat v; ls"), "minev");
}

#[test]
fn many_desktops_are_swapped_by_name_label_or_all_and_each_answers_for_itself() {
    let desk = desk();
    let program = &desk.program;
    let mut mounts = Vec::new();
    for (name, room) in [("a", "red"), ("b", "red"), ("c", "blue"), ("d", "blue")] {
        program.ok(&["create", name, "os:1", "--label", &format!("room={room}")]);
        if name != "d" {
            mounts.push((name, program.mount(name, desk.scratch.dir(&format!("mnt-{name}")))));
        }
    }
    let seen = || mounts.iter().map(|(_, m)| m.sh("cat v")).collect::<Vec<_>>().concat();
    let list = |args: &[&str]| program.json(args).as_array().unwrap().clone();
    let red = list(&["upgrade", "-l", "room=red", "--to", "os:2"]);
    assert_eq!(red.iter().map(|r| r["desktop"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(seen(), "221");
    let all = list(&["upgrade", "--all", "--to", "os:3", "--jobs", "3"]);
    assert_eq!(all.len(), 5);
    assert_eq!(seen(), "333");
    let live = |name: &str| all.iter().find(|r| r["desktop"] == name).unwrap()["live"].as_bool();
    assert_eq!((live("a"), live("d"), live("pc")), (Some(true), Some(false), Some(false)));
    // "a" and "c" go back to different versions: each to its own.
    let back = list(&["rollback", "a", "c", "d"]);
    assert_eq!(back.iter().map(|r| r["to"]["tag"].as_str().unwrap()).collect::<Vec<_>>(), ["2", "1", "1"]);
    assert_eq!(seen(), "231");
    // One that has nothing to do does not stop the others.
    let mixed = program.run(&["--json", "upgrade", "a", "b", "--to", "os:3"]);
    assert_eq!(mixed.code, Some(3), "{}", mixed.out());
    assert_eq!(seen(), "331");
    program.run(&["upgrade", "-l", "room=none"]).expect_code(3);
    let mixed = program.run(&["upgrade", "a", "nobody", "--to", "os:1"]);
    assert_ne!(mixed.code, Some(0));
    assert_eq!(seen(), "131");
}

#[test]
fn two_commands_at_once_swap_one_after_the_other() {
    let desk = desk();
    let mount = desk.mount();
    let threads: Vec<_> = ["2", "3", "2", "3"]
        .map(|tag| {
            let program = desk.program.clone();
            std::thread::spawn(move || program.run(&["upgrade", "pc", "--to", &format!("os:{tag}")]).code)
        })
        .into_iter()
        .map(|t| t.join().unwrap())
        .collect();
    assert!(threads.iter().all(|c| matches!(c, Some(0 | 3))), "{threads:?}");
    let done = threads.iter().filter(|c| **c == Some(0)).count() as u64;
    assert_eq!(desk.state()["generation"].as_u64(), Some(done));
    let tag = desk.state()["current"]["tag"].as_str().unwrap().to_string();
    assert_eq!(mount.sh("cat v"), tag);
}

#[test]
fn a_crash_after_pending_was_written_comes_up_on_the_target() {
    let desk = desk();
    let mount = desk.mount();
    mount.sh("printf mine >mine; sync -f mine");
    desk.scratch.kill_daemons();
    mount.forget();
    let path = desk.scratch.store().join("desktops/pc/state.json");
    let mut state = desk.state();
    state["pending"] = serde_json::json!({ "version": version(&desk.program, "os:2"), "tag": "2" });
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    let mount = desk.mount();
    assert_eq!(mount.sh("cat v n mine"), "2nmine");
    let state = desk.state();
    assert!(state["pending"].is_null(), "{state}");
    assert_eq!((state["current"]["tag"].as_str(), state["previous"]["tag"].as_str()), (Some("2"), Some("1")));
    assert_eq!(state["generation"].as_u64(), Some(1));
    desk.program.ok(&["rollback", "pc"]);
    assert_eq!(mount.sh("cat v mine"), "1mine");
    mount.umount();
    // Without a mount in between, the next swap starts from the target.
    let mut state = desk.state();
    state["pending"] = serde_json::json!({ "version": version(&desk.program, "os:3"), "tag": "3" });
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    let report = desk.to("2");
    assert_eq!(
        (report["from"]["tag"].as_str(), report["generation"].as_u64()),
        (Some("3"), Some(4)),
        "{report}"
    );
    let mount = desk.mount();
    assert_eq!(mount.sh("cat v n mine"), "2nmine");
}

fn version(program: &Program, name: &str) -> serde_json::Value {
    let shown = program.json(&["show", name]);
    if shown["version"].is_string() { shown["version"].clone() } else { shown["digest"].clone() }
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_swap_comes_up_on_one_of_the_two_versions() {
    let desk = desk();
    for round in 0..12u64 {
        let mount = desk.mount();
        mount.sh(&format!("printf {round} >mine; sync -f mine"));
        let from = desk.state()["current"]["tag"].as_str().unwrap().to_string();
        let tag = if from == "2" { "1" } else { "2" };
        let program = desk.program.clone();
        let swap =
            std::thread::spawn(move || program.run(&["upgrade", "pc", "--to", &format!("os:{tag}")]).code);
        std::thread::sleep(std::time::Duration::from_millis(round * 3));
        desk.scratch.kill_daemons();
        mount.forget();
        let code = swap.join().unwrap();
        let mount = desk.mount();
        let state = desk.state();
        let now = state["current"]["tag"].as_str().unwrap();
        assert!(state["pending"].is_null());
        assert!(now == from || now == tag, "{now}");
        if code == Some(0) {
            assert_eq!(now, tag, "the command said that it was done");
        }
        assert_eq!(mount.sh("cat v mine"), format!("{now}{round}"));
        mount.umount();
    }
}

#[test]
fn a_commit_after_a_swap_takes_what_the_user_changed_on_the_new_version() {
    let desk = desk();
    let mount = desk.mount();
    mount.sh("mkdir own; echo mine >own/f; chmod 600 v");
    desk.to("2");
    mount.sh("rm n; echo more >own/g");
    let seen = tree::listing(mount.path());
    desk.program.ok(&["commit", "pc", "os:made"]);
    let inspected = desk.program.inspect("os:made", desk.scratch.dir("inspect"));
    tree::assert_same("the commit", &seen, &tree::listing(inspected.path()));
    inspected.umount();
    // Onto what was committed: the view is the same, whatever lies where.
    desk.to("made");
    tree::assert_same("on the commit", &seen, &tree::listing(mount.path()));
    desk.to("2");
    tree::assert_same("back", &seen, &tree::listing(mount.path()));
}

#[test]
fn old_versions_are_not_collected_while_an_open_file_needs_them() {
    let desk = desk();
    let mount = desk.mount();
    let point = mount.join("v");
    let held = super::timed(move || std::fs::File::open(point).unwrap());
    desk.to("2");
    desk.to("3");
    for tag in ["1", "2"] {
        desk.program.ok(&["untag", &format!("os:{tag}")]);
    }
    desk.program.ok(&["gc"]);
    let text = super::timed(move || std::io::read_to_string(held).unwrap());
    assert_eq!(text, "1");
    desk.program.ok(&["rollback", "pc"]);
    assert_eq!(mount.sh("cat v"), "2");
}
