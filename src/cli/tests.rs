use clap::CommandFactory;

use super::args::Swap;
use super::*;

fn parse(words: &[&str]) -> std::result::Result<Cli, clap::Error> {
    Cli::try_parse_from([&["reroot"][..], words].concat())
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    for words in [["--json", "--store", "/s", "-v", "images"], ["images", "--store", "/s", "-v", "--json"]] {
        let cli = parse(&words).unwrap();
        assert!(cli.global.json && cli.global.verbose == 1 && !cli.global.quiet);
        assert_eq!(cli.global.store, Some("/s".into()));
    }
}

#[test]
fn every_command_of_the_contract_parses() {
    for line in [
        "import dir:/x office:1",
        "import tar:- office:2 --parent office:1 -m words --annotation a=b --annotation c=d",
        "import oci:/d:ref office:2 --parent office:1 --as-delta",
        "commit pc office:2 -m x --only etc/* --only usr --reset",
        "images",
        "show office:1 --files",
        "log office",
        "diff office:1 office:2",
        "tag office:1 stable",
        "untag office:1",
        "squash office:2 flat",
        "export office:1 tar:out.tar.zst",
        "inspect office@sha384:0123456789ab /mnt",
        "fsck",
        "fsck --deep office:1",
        "gc --dry-run",
        "df",
        "create pc office:1 --user-layer /data --label a=b --label c=d",
        "mount pc /mnt -o ro,nosuid -o noatime --foreground",
        "umount pc",
        "umount /mnt/x",
        "desktops -l a=b",
        "status pc",
        "rm pc --keep-user-layer",
        "settle pc",
        "changes pc",
        "upgrade pc pc2 --to office:2 --dry-run",
        "rollback pc",
        "rollback --all --jobs 4 --strict",
        "rollback -l a=b --to office:1",
        "serve",
        "hold-user-namespace",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        parse(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    for line in [
        "",
        "bogus",
        "import dir:/x",
        "import dir:/x office:1 --as-delta",
        "create pc office:1 --label nope",
        "rollback",
        "rollback pc --all",
        "rollback pc -l a=b",
        "rollback --all -l a=b",
        "rollback pc --jobs 0",
        "status",
    ] {
        let words: Vec<&str> = line.split(' ').filter(|w| !w.is_empty()).collect();
        assert!(parse(&words).is_err(), "{line}");
    }
}

#[test]
fn several_only_and_labels_are_kept_in_order() {
    let Command::Rollback(Swap { labels, jobs, .. }) =
        parse(&["rollback", "-l", "a=b", "-l", "c=d=e"]).unwrap().command
    else {
        panic!()
    };
    assert_eq!(labels, [("a".into(), "b".into()), ("c".into(), "d=e".into())]);
    assert_eq!(jobs, 8);
}

#[test]
fn the_store_is_found_where_the_contract_says() {
    let with = |vars: &'static [(&'static str, &'static str)], given: Option<&str>, root| {
        let set = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
        choose_store(given.map(PathBuf::from), None, root, &set).map(|p| p.display().to_string())
    };
    let booted = |name: &str| {
        let set = |n: &str| (n == name).then(|| PathBuf::from("/env"));
        choose_store(None, Some("/run/disk".into()), true, &set).unwrap().display().to_string()
    };
    assert_eq!([booted("REROOT_STORE"), booted("HOME")], ["/env", "/run/disk"]);
    let all: &[_] = &[("REROOT_STORE", "/env"), ("XDG_DATA_HOME", "/xdg"), ("HOME", "/home/u")];
    assert_eq!(with(all, Some("/given"), true).unwrap(), "/given");
    assert_eq!(with(all, None, true).unwrap(), "/env");
    assert_eq!(with(&[("HOME", "/root")], None, true).unwrap(), "/var/lib/reroot");
    assert_eq!(with(&[("XDG_DATA_HOME", "/xdg"), ("HOME", "/home/u")], None, false).unwrap(), "/xdg/reroot");
    assert_eq!(
        with(&[("XDG_DATA_HOME", "relative"), ("HOME", "/home/u")], None, false).unwrap(),
        "/home/u/.local/share/reroot"
    );
    assert_eq!(with(&[], None, false).unwrap_err().exit_status(), 2);
}
