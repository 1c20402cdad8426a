use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::layer::sample::Sample;
use crate::store::desktops::Choice;
use crate::store::progress::Silent;

fn run(sample: &Sample, deep: bool) -> Checked {
    check(&sample.store, None, deep, &Silent).unwrap()
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o644));
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn one(checked: &Checked, severity: Severity) -> &Finding {
    assert_eq!(checked.findings.len(), 1, "{:?}", checked.findings);
    assert_eq!(checked.findings[0].severity, severity);
    &checked.findings[0]
}

fn two_versions(name: &str) -> (Sample, Digest, Digest) {
    let sample = Sample::new(name);
    let a = sample.version("1", None, &[("a", "one"), ("b", "two")]);
    let b = sample.version("2", Some(&a), &[("a", "one"), ("b", "three")]);
    (sample, a, b)
}

#[test]
fn a_whole_store_has_no_findings() {
    let (sample, a, _) = two_versions("whole");
    sample
        .store
        .create_desktop("pc", "office", Choice { version: a, tag: None }, None, Default::default())
        .unwrap();
    let checked = run(&sample, true);
    assert!(checked.findings.is_empty(), "{:?}", checked.findings);
    assert_eq!((checked.versions, checked.layers, checked.trees, checked.objects), (2, 2, 2, 3));
    assert_eq!(checked.bytes_read, 11);
}

#[test]
fn a_missing_object_and_one_of_another_length_are_found_without_reading() {
    let (sample, ..) = two_versions("object");
    fs::remove_file(sample.object("three")).unwrap();
    let checked = run(&sample, false);
    let finding = one(&checked, Severity::Damaged);
    assert!(finding.what.contains("missing") && finding.what.ends_with("/b"), "{}", finding.what);
    assert_eq!(finding.needed_by, ["office:2".to_string()].into());
    fs::write(sample.object("three"), "three and more").unwrap();
    assert!(one(&run(&sample, false), Severity::Damaged).what.contains("14 bytes"));
}

#[test]
fn changed_content_of_the_same_length_is_found_by_deep_alone() {
    let (sample, ..) = two_versions("content");
    overwrite(&sample.object("one"), b"eno");
    assert!(run(&sample, false).findings.is_empty());
    let checked = run(&sample, true);
    let finding = one(&checked, Severity::Damaged);
    assert_eq!(finding.needed_by, ["office:1".to_string(), "office:2".to_string()].into());
    assert!(finding.path.starts_with("objects/"), "{}", finding.path);
}

#[test]
fn a_damaged_layer_manifest_or_tag_is_found_with_who_needs_it() {
    let (sample, _, b) = two_versions("layer");
    let delta = sample.store.layer_path(sample.store.version(&b).unwrap().stack.last().unwrap());
    let good = fs::read(&delta).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    overwrite(&delta, &bad);
    assert_eq!(one(&run(&sample, false), Severity::Damaged).needed_by, ["office:2".to_string()].into());
    overwrite(&delta, &good);

    let manifest = sample.store.path("versions").join(format!("{}.json", b.hex()));
    let text = fs::read(&manifest).unwrap();
    overwrite(&manifest, b"{}");
    assert!(one(&run(&sample, false), Severity::Damaged).path.starts_with("versions/"));
    overwrite(&manifest, &text);

    overwrite(&sample.store.path("refs/office/2"), b"nonsense");
    assert_eq!(one(&run(&sample, false), Severity::Damaged).path, "refs/office/2");
}

#[test]
fn a_wrong_tree_is_built_again() {
    let (sample, _, b) = two_versions("tree");
    let manifest = sample.store.version(&b).unwrap();
    let path = sample.store.tree_path(&manifest.stack_digest());
    let good = fs::read(&path).unwrap();
    for at in [0, 300, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        overwrite(&path, &bad);
        let checked = run(&sample, false);
        assert_eq!(one(&checked, Severity::Repaired).needed_by, ["office:2".to_string()].into());
        assert!(!checked.is_damaged());
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

#[test]
fn a_desktop_whose_state_or_version_is_gone_is_found() {
    let (sample, a, _) = two_versions("desktop");
    let choice = Choice { version: Digest::of(b"nowhere"), tag: None };
    let lost = sample.store.create_desktop("lost", "office", choice, None, Default::default()).unwrap();
    assert_eq!(one(&run(&sample, false), Severity::Damaged).needed_by, ["desktop lost".to_string()].into());
    overwrite(&lost.dir().join("state.json"), b"{");
    assert_eq!(one(&run(&sample, false), Severity::Damaged).path, "desktops/lost/state.json");
    fs::remove_dir_all(lost.dir()).unwrap();
    let choice = Choice { version: a, tag: None };
    let bare = sample.store.create_desktop("bare", "office", choice, None, Default::default()).unwrap();
    fs::remove_dir_all(bare.user_layer().unwrap()).unwrap();
    assert!(!run(&sample, false).is_damaged());
    assert_eq!(one(&run(&sample, false), Severity::Warning).path, "desktops/bare/user");
}

#[test]
fn one_version_can_be_checked_alone() {
    let (sample, a, _) = two_versions("alone");
    fs::remove_file(sample.object("three")).unwrap();
    let only = check(&sample.store, Some((a, "office:1".into())), true, &Silent).unwrap();
    assert!(only.findings.is_empty());
    assert_eq!(only.versions, 1);
}
