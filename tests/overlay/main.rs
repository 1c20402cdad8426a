//! Plain directories as layers: `reroot overlay`, the helpers of mount(8), podman's mount program.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod engine;
mod helper;
mod hostile;
mod ordinary;
mod scale;
mod turns;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::program::{Answer, run};
use common::{Program, Scratch, require_root, sh};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Directories to mount, beneath one scratch directory.
#[derive(Debug)]
struct Layers {
    scratch: Scratch,
    program: Program,
    /// Names of the lower directories, the topmost first.
    lower: Vec<String>,
}

impl Layers {
    /// One lower directory for each script, which fills it; the topmost first. With `u` and `w` to write in.
    #[track_caller]
    fn new(scripts: &[&str]) -> Layers {
        require_root();
        let scratch = Scratch::new();
        let program = Program::new(&scratch);
        let mut lower = Vec::new();
        for (i, script) in scripts.iter().enumerate() {
            let name = format!("l{i}");
            sh(&scratch.dir(&name), script).ok();
            lower.push(name);
        }
        scratch.dir("u");
        scratch.dir("w");
        Layers { scratch, program, lower }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.scratch.mnt()
    }

    /// `lowerdir=…`, with absolute paths.
    fn lowerdir(&self) -> String {
        let paths: Vec<String> = self.lower.iter().map(|l| self.at(l).display().to_string()).collect();
        format!("lowerdir={}", paths.join(":"))
    }

    /// `lowerdir=…,upperdir=…,workdir=…`.
    fn all(&self) -> String {
        format!("{},upperdir={},workdir={}", self.lowerdir(), self.at("u").display(), self.at("w").display())
    }

    /// Runs `reroot overlay -o OPTIONS MNT`, in the scratch directory.
    #[track_caller]
    fn overlay(&self, options: &str) -> Answer {
        let mnt = self.mnt();
        let args: [&OsStr; 4] = ["overlay".as_ref(), "-o".as_ref(), options.as_ref(), mnt.as_ref()];
        run(self.program.command(&args).current_dir(self.scratch.path()), LIMIT)
    }

    /// Mounts, lets `act` do something in the view, and unmounts.
    #[track_caller]
    fn mounted<T: Send + 'static>(&self, options: &str, act: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        self.overlay(options).ok();
        let mnt = self.mnt();
        let out = common::within(LIMIT, "the view", move || act(&mnt));
        self.program.umount(&self.mnt());
        out
    }

    /// The same with the kernel's overlayfs.
    #[track_caller]
    fn kernel<T: Send + 'static>(&self, options: &str, act: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        let mnt = self.mnt();
        run(Command::new("mount").args(["-t", "overlay", "k", "-o", options]).arg(&mnt), LIMIT).ok();
        let out = common::within(LIMIT, "the kernel's view", move || act(&mnt));
        common::disk::unmount(&self.mnt());
        out
    }

    /// Runs a script in the view of a mount with these options, and gives back what it wrote.
    #[track_caller]
    fn seen(&self, options: &str, script: &str) -> String {
        let script = script.to_string();
        self.mounted(options, move |mnt| sh(mnt, &script).ok().out())
    }
}
