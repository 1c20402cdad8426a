//! podman with Reroot as its `mount_program`: a root of its own, no network, no registry.

use std::path::Path;
use std::process::Command;

use super::{LIMIT, Layers, sh};
use crate::common::program::{Answer, run};

/// podman with everything of its own in the scratch directory, so that nothing on the machine is used or changed.
struct Engine<'a> {
    layers: &'a Layers,
    name: &'static str,
}

impl Engine<'_> {
    /// With Reroot beneath it, or with the kernel's overlayfs. `name` tells two engines of one test apart.
    fn new<'a>(layers: &'a Layers, name: &'static str, reroot: bool) -> Engine<'a> {
        let top = layers.scratch.dir(name).display().to_string();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers/reroot-overlay");
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{top}/root\"\nrunroot = \"{top}/run\"\n\
             [storage.options.overlay]\n{}\n",
            if reroot { format!("mount_program = \"{}\"", program.display()) } else { String::new() }
        );
        let containers = format!(
            "[containers]\nlog_driver = \"k8s-file\"\nnetns = \"none\"\npids_limit = 0\ndefault_ulimits = []\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\ntmp_dir = \"{top}/tmp\"\n\
             [network]\nnetwork_config_dir = \"{top}/net\"\n"
        );
        std::fs::write(layers.at(&format!("{name}/storage.conf")), storage).unwrap();
        std::fs::write(layers.at(&format!("{name}/containers.conf")), containers).unwrap();
        layers.scratch.dir(&format!("{name}/tmp"));
        Engine { layers, name }
    }

    fn run(&self, args: &[&str]) -> Answer {
        let at = |file: &str| self.layers.at(self.name).join(file);
        let mut command = Command::new("podman");
        command.args(args).current_dir(self.layers.scratch.path());
        command
            .env("CONTAINERS_STORAGE_CONF", at("storage.conf"))
            .env("CONTAINERS_CONF", at("containers.conf"));
        command
            .env("REROOT", env!("CARGO_BIN_EXE_reroot"))
            .env("REROOT_TEST_SCRATCH", self.layers.scratch.path());
        command.env("TMPDIR", at("tmp")).env("HOME", at("tmp")).env_remove("XDG_RUNTIME_DIR");
        run(&mut command, LIMIT)
    }
}

/// Waits for what podman leaves running to clean up after a container.
#[track_caller]
fn ended(l: &Layers) {
    let path = l.scratch.path().display().to_string();
    let began = std::time::Instant::now();
    let runs = || {
        let pids = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path().join("cmdline"));
        pids.filter_map(|p| std::fs::read(p).ok()).any(|c| String::from_utf8_lossy(&c).contains(&path))
            || !crate::common::scratch::daemons(l.scratch.path()).is_empty()
    };
    while runs() {
        assert!(began.elapsed() < LIMIT, "podman or a daemon of its mounts runs on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Whether this machine lets podman run a container over the kernel's own overlayfs.
fn runs_at_all(l: &Layers) -> bool {
    let plain = Engine::new(l, "p", false);
    plain.run(&["import", "-q", "image.tar", "small:1"]);
    let ran = plain.run(&["run", "--rm", "small:1", "sh", "-c", "echo runs"]);
    if ran.out() != "runs\n" {
        eprintln!("NOT TESTED: podman runs no container here, whatever it mounts with: {}", ran.err());
        return false;
    }
    plain.run(&["rmi", "-f", "small:1"]).ok();
    true
}

#[test]
fn podman_imports_builds_on_runs_compares_and_removes_a_container() {
    // A root with one static program, which is every command.
    let l = Layers::new(&["mkdir -p bin etc tmp proc sys dev; cp /bin/busybox bin/busybox
         for c in sh cat ls rm mv echo chmod mkdir stat; do ln -s busybox bin/$c; done
         echo from the image >etc/motd; mkdir -p data/dir; echo file >data/dir/file; ln etc/motd etc/issue"]);
    sh(l.scratch.path(), "tar -C l0 -cf image.tar .").ok();
    if !runs_at_all(&l) {
        return;
    }
    let engine = Engine::new(&l, "e", true);
    engine.run(&["import", "-q", "image.tar", "small:1"]).ok();
    let script =
        "cat /etc/motd; echo changed >>/etc/motd; cat /etc/issue; rm /data/dir/file; mv /data/dir /data/moved
                  mkdir /data/new; echo new >/data/new/n; ls /data";
    let ran = engine.run(&["run", "--name", "one", "small:1", "sh", "-c", script]).ok();
    assert_eq!(ran.out(), "from the image\nfrom the image\nchanged\nmoved\nnew\n");
    let mut diff: Vec<String> = engine.run(&["diff", "one"]).ok().out().lines().map(str::to_string).collect();
    diff.sort();
    let expected = [
        "A /data/moved",
        "A /data/new",
        "A /data/new/n",
        "C /data",
        "C /etc",
        "C /etc/issue",
        "C /etc/motd",
        "D /data/dir",
    ];
    assert_eq!(diff, expected);
    engine.run(&["commit", "-q", "one", "small:2"]).ok();
    let ran = engine
        .run(&["run", "--rm", "small:2", "sh", "-c", "cat /etc/issue /data/new/n; ls /data/moved; ls /data"])
        .ok();
    assert_eq!(ran.out(), "from the image\nchanged\nnew\nmoved\nnew\n");
    engine.run(&["start", "-a", "one"]);
    engine.run(&["rm", "-f", "one"]).ok();
    engine.run(&["rmi", "-f", "small:2", "small:1"]).ok();
    ended(&l);
    assert!(crate::common::scratch::mounts_beneath(l.scratch.path()).iter().all(|m| !m.ends_with("merged")));
}
