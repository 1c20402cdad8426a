use std::fs;
use std::time::Duration;

use super::*;
use crate::error::Error;
use crate::layer::sample::Sample;
use crate::store::desktops::Choice;
use crate::store::mounts::MountEntry;

fn run(sample: &Sample, dry_run: bool) -> Result<Collected> {
    collect(&sample.store, Collection { dry_run, patience: Duration::ZERO }, &|_| {})
}

fn all_files(sample: &Sample) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![sample.store.root().to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                todo.push(entry.path());
            } else if entry.file_name() != "lock" {
                out.push(entry.path());
            }
        }
    }
    out.sort();
    out
}

#[test]
fn what_a_tag_names_stays_and_the_rest_goes() {
    let sample = Sample::new("gc");
    let a = sample.version("1", None, &[("a", "one"), ("b", "two")]);
    let b = sample.version("2", Some(&a), &[("a", "one"), ("b", "three")]);
    sample.version("3", Some(&b), &[("a", "four")]);
    assert_eq!(run(&sample, false).unwrap(), Collected::default());
    sample.store.remove_ref("office", "3").unwrap();
    sample.store.remove_ref("office", "1").unwrap();
    let would = run(&sample, true).unwrap();
    assert!(sample.object("four").exists());
    let did = run(&sample, false).unwrap();
    assert_eq!(Collected { dry_run: false, ..would }, did);
    // Version 1 goes; its layer and objects stay, since version 2 stands on them.
    assert_eq!((did.versions, did.trees, did.layers, did.objects), (2, 2, 1, 1));
    assert!(did.bytes > 0);
    assert!(sample.store.version(&a).is_err() && sample.store.version(&b).is_ok());
    assert!(sample.object("two").exists() && !sample.object("four").exists());
    assert_eq!(run(&sample, false).unwrap(), Collected::default());
}

#[test]
fn desktops_keep_current_previous_pending_and_pins() {
    let sample = Sample::new("gc-desktop");
    let versions: Vec<_> =
        ["c", "p", "n", "pin", "none"].iter().map(|t| sample.version("", None, &[("f", t)])).collect();
    let choice = |i: usize| Choice { version: versions[i], tag: None };
    let desktop = sample.store.create_desktop("pc", "office", choice(0), None, Default::default()).unwrap();
    let held = desktop.lock().unwrap();
    let mut state = desktop.state().unwrap();
    (state.previous, state.pending) = (Some(choice(1)), Some(choice(2)));
    desktop.write_state(&state, &held).unwrap();
    fs::write(desktop.dir().join("pins"), "sha384:12ab").unwrap(); // A line that a crash cut off.
    desktop.pin(&versions[3]).unwrap();
    assert_eq!(run(&sample, false).unwrap().versions, 1);
    assert!(!sample.object("none").exists() && sample.object("pin").exists());
    // A kept user layer keeps its pins.
    fs::remove_file(desktop.dir().join("state.json")).unwrap();
    assert_eq!(run(&sample, false).unwrap().versions, 3);
    assert!(sample.object("pin").exists());
    fs::write(desktop.dir().join("pins"), "garbage\n").unwrap();
    assert!(matches!(run(&sample, false), Err(Error::Damaged(_))));
}

#[test]
fn a_running_mount_keeps_its_versions() {
    let sample = Sample::new("gc-mount");
    let version = sample.version("", None, &[("f", "seen")]);
    let claim = sample.store.claim_mount("m").unwrap().unwrap();
    assert!(matches!(run(&sample, false), Err(Error::Failed(_))), "it does not say yet what it needs");
    let entry = MountEntry {
        id: "m".into(),
        desktop: false,
        mountpoint: "/nowhere".into(),
        pid: std::process::id(),
        socket: "/nowhere".into(),
        versions: [version].into(),
        supervisor: None,
        restarts: 0,
    };
    claim.describe(&entry).unwrap();
    assert_eq!(run(&sample, false).unwrap(), Collected::default());
    drop(claim);
    assert_eq!(run(&sample, false).unwrap().objects, 1);
}

#[test]
fn damage_to_anything_needed_stops_it_before_it_removes_anything() {
    let sample = Sample::new("gc-damage");
    let a = sample.version("1", None, &[("a", "one")]);
    sample.version("", None, &[("a", "garbage")]);
    let layer = sample.store.layer_path(&sample.store.version(&a).unwrap().stack[0]);
    let manifest = sample.store.path("versions").join(format!("{}.json", a.hex()));
    for path in [layer, manifest, sample.store.path("refs/office/1")] {
        let good = fs::read(&path).unwrap();
        let mut damages = vec![Some(b"x".to_vec())];
        if !path.ends_with("refs/office/1") {
            damages.push(None);
        }
        for damage in damages {
            match damage {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let before = all_files(&sample);
            assert!(matches!(run(&sample, false), Err(Error::Damaged(_))), "{}", path.display());
            assert_eq!(all_files(&sample), before);
        }
        fs::write(&path, good).unwrap();
    }
    assert_eq!(run(&sample, false).unwrap().versions, 1);
}

#[test]
fn it_waits_for_users_and_clears_what_dead_programs_left() {
    let sample = Sample::new("gc-wait");
    let used = sample.store.in_use().unwrap();
    let told = std::sync::Mutex::new(0);
    let how = Collection { dry_run: false, patience: Duration::from_millis(120) };
    let result = collect(&sample.store, how, &|_| *told.lock().unwrap() += 1);
    assert!(matches!(result, Err(Error::Failed(_))));
    assert_eq!(*told.lock().unwrap(), 1);
    drop(used);
    // No process has a number above 2^22.
    fs::write(sample.store.path("layers/.tmp-4194999-0"), "x").unwrap();
    fs::create_dir(sample.store.path("desktops/.tmp-4194999-1")).unwrap();
    let alive = sample.store.path("layers").join(crate::sys::publish::temporary_name());
    fs::write(&alive, "x").unwrap();
    fs::create_dir(sample.store.path("objects/.intake.tmp-4194999-0")).unwrap();
    let done = run(&sample, false).unwrap();
    assert_eq!(done.leftovers, 3);
    assert!(alive.exists());
    assert!(!sample.store.path("objects/.intake.tmp-4194999-0").exists());
}
