//! The command line's definition and nothing else, so that the build script can include it and make man pages
//! and completions of it. Names of versions stay text here; the commands read them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};

const AFTER: &str = "\
IMAGE:TAG names a version; IMAGE@sha384:HEX (12 digits or more) names one by digest; IMAGE alone means IMAGE:latest.

Exit status: 0 done, 1 failed and nothing changed unless the message says so, 2 wrong usage, 3 nothing to do, \
4 refused by policy or trust, 5 damaged content found.";

/// Layered system images as one root file system, with layers that can be swapped while it is mounted.
#[derive(Debug, Parser)]
#[command(name = "reroot", version, after_help = AFTER, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// The store's directory [default: $REROOT_STORE, else /var/lib/reroot for root and
    /// $XDG_DATA_HOME/reroot for others]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
    /// Answer with one JSON document on standard output, also for errors
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a version of a directory or an archive
    ///
    /// SOURCE is dir:PATH or tar:FILE (also compressed by gzip, zstd or xz; - is standard input). Without
    /// --parent the result is a base. With it, SOURCE is the complete new tree, and the version stores one
    /// delta: exactly what differs from the parent.
    Import(Import),
    /// Make what a desktop's user layer changed the next delta of an image
    Commit(Commit),
    /// List images and their tags
    Images,
    /// Show a version: its layers, sizes and annotations
    Show(Show),
    /// Show an image's history, the newest version first
    Log(Image),
    /// Show what differs between two versions, one line a path
    ///
    /// A added, M content, m metadata only, D removed, T type changed.
    Diff(Diff),
    /// Give a version a further tag
    Tag(NewTag),
    /// Remove a tag; `reroot gc` then removes what nothing else names
    Untag(Version),
    /// Make a version with the same content in one layer
    Squash(NewTag),
    /// Write a version's tree to a directory or an archive
    Export(Export),
    /// Mount a version read-only, as plain files
    Inspect(Inspect),
    /// Check the store, or what one version needs of it
    Fsck(Fsck),
    /// Remove what no tag, desktop, pin or mount needs
    Gc(Gc),
    /// Show what the store takes on disk, and what it would without sharing
    Df,
    /// Make a desktop on a version
    Create(Create),
    /// Mount a desktop; returns when the view answers
    Mount(Mount),
    /// Unmount a desktop, or whatever of reroot's is mounted at a path
    Umount(Umount),
    /// Mount plain directories as layers, with the options of overlayfs and fuse-overlayfs
    ///
    /// No store is needed: the directories are read as they are. Without upperdir= nothing can be changed.
    #[command(version)]
    Overlay(Overlay),
    /// List desktops
    Desktops(Desktops),
    /// Show a desktop's state
    Status(Desktop),
    /// Remove a desktop and its user layer
    Rm(Rm),
    /// Complete what is lazy in a user layer: afterwards it is plain overlayfs format
    Settle(Desktop),
    /// Show what a user layer holds against its version, one line a path
    Changes(Desktop),
    /// Swap desktops to a newer version, mounted or not
    ///
    /// Without --to, to the image's `latest`. User files win where they meet what the new version ships.
    Upgrade(Swap),
    /// Swap desktops back, mounted or not; what their users wrote stays
    ///
    /// Without --to, to the version that each ran on before.
    Rollback(Swap),
    /// Run virtual machines whose root is a desktop
    #[command(subcommand)]
    Vm(Vm),
    /// Run one mount's daemon
    #[command(hide = true)]
    Serve,
    /// Start one mount's daemon, and another one when it ends
    #[command(hide = true)]
    Supervise,
    /// What an initramfs runs: put the desktop that the kernel's command line names in the place of the disk with its store
    #[command(hide = true)]
    BootRoot(BootRoot),
    /// Run the daemon of a machine's root
    #[command(hide = true)]
    BootServe,
    /// What mount(8) runs as mount.fuse.reroot
    #[command(hide = true, disable_help_flag = true)]
    MountHelper(Helper),
    /// What umount(8) runs as umount.fuse.reroot
    #[command(hide = true, disable_help_flag = true)]
    UmountHelper(Helper),
    /// Hold a user name space for an id-mapped mount
    #[command(hide = true, name = "hold-user-namespace")]
    HoldUserNamespace,
}

/// `import`
#[derive(Debug, Args)]
pub struct Import {
    /// Where the tree comes from: dir: or tar:
    pub source: String,
    /// What the version is called
    #[arg(value_name = "IMAGE:TAG")]
    pub name: String,
    /// Store only what differs from this version
    #[arg(long, value_name = "IMAGE:TAG")]
    pub parent: Option<String>,
    /// SOURCE is itself a delta, in OCI whiteout form
    #[arg(long, requires = "parent")]
    pub as_delta: bool,
    /// Its message and annotations.
    #[command(flatten)]
    pub words: Words,
}

/// What can be said of a new version.
#[derive(Debug, Args)]
pub struct Words {
    /// What is new in it
    #[arg(short, long, default_value = "")]
    pub message: String,
    /// A free word, kept with the version
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = pair)]
    pub annotations: Vec<(String, String)>,
}

/// `commit`
#[derive(Debug, Args)]
pub struct Commit {
    /// The desktop
    pub desktop: String,
    /// What the new version is called
    #[arg(value_name = "IMAGE:TAG")]
    pub name: String,
    /// What is new in it
    #[arg(short, long, default_value = "")]
    pub message: String,
    /// Take only paths that match; can be given several times
    #[arg(long, value_name = "GLOB")]
    pub only: Vec<String>,
    /// Clear from the user layer what was taken, and put the desktop on the new version
    #[arg(long)]
    pub reset: bool,
}

/// `show`
#[derive(Debug, Args)]
pub struct Show {
    /// The version
    #[arg(value_name = "IMAGE:TAG")]
    pub version: String,
    /// List every path
    #[arg(long)]
    pub files: bool,
}

/// An image's name.
#[derive(Debug, Args)]
pub struct Image {
    /// The image
    pub image: String,
}

/// A version's name.
#[derive(Debug, Args)]
pub struct Version {
    /// The version
    #[arg(value_name = "IMAGE:TAG")]
    pub version: String,
}

/// `diff`
#[derive(Debug, Args)]
pub struct Diff {
    /// The first version
    #[arg(value_name = "IMAGE:TAG")]
    pub old: String,
    /// The second version
    #[arg(value_name = "IMAGE:TAG")]
    pub new: String,
}

/// `tag` and `squash`
#[derive(Debug, Args)]
pub struct NewTag {
    /// The version
    #[arg(value_name = "IMAGE:TAG")]
    pub version: String,
    /// A tag of the same image; one that exists is moved
    #[arg(value_name = "NEWTAG")]
    pub tag: String,
}

/// `export`
#[derive(Debug, Args)]
pub struct Export {
    /// The version
    #[arg(value_name = "IMAGE:TAG")]
    pub version: String,
    /// Where it goes: dir: or tar:
    pub dest: String,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// The version
    #[arg(value_name = "IMAGE:TAG")]
    pub version: String,
    /// Where it is attached
    #[arg(value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// How it is mounted.
    #[command(flatten)]
    pub how: MountHow,
}

/// How something is mounted.
#[derive(Debug, Args)]
pub struct MountHow {
    /// Options as for mount(8), joined with commas
    #[arg(short, value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Stay until it is unmounted
    #[arg(long)]
    pub foreground: bool,
}

/// `fsck`
#[derive(Debug, Args)]
pub struct Fsck {
    /// Read every object and check its digest
    #[arg(long)]
    pub deep: bool,
    /// Only what this version needs
    #[arg(value_name = "IMAGE:TAG")]
    pub version: Option<String>,
}

/// `gc`
#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// `create`
#[derive(Debug, Args)]
pub struct Create {
    /// Its name
    pub desktop: String,
    /// The version that it runs on
    #[arg(value_name = "IMAGE:TAG")]
    pub version: String,
    /// Keep the user layer in this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub user_layer: Option<PathBuf>,
    /// A word to choose desktops by
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// `mount`
#[derive(Debug, Args)]
pub struct Mount {
    /// The desktop
    pub desktop: String,
    /// Where it is attached
    #[arg(value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// How it is mounted.
    #[command(flatten)]
    pub how: MountHow,
}

/// `overlay`
#[derive(Debug, Args)]
pub struct Overlay {
    /// lowerdir=TOP:…:BOTTOM, upperdir=DIR and workdir=DIR, userxattr, oci_whiteouts, and options as for mount(8), joined
    /// with commas
    #[arg(short, value_name = "OPTIONS", required = true)]
    pub options: Vec<String>,
    /// Stay until it is unmounted
    #[arg(short, long)]
    pub foreground: bool,
    /// Log more
    #[arg(short, long)]
    pub debug: bool,
    /// Where it is attached
    #[arg(value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
}

/// `boot-root`
#[derive(Debug, Args)]
pub struct BootRoot {
    /// Where the disk is mounted, and then the desktop
    pub mountpoint: PathBuf,
}

/// The arguments of a mount helper, which mount(8) makes.
#[derive(Debug, Args)]
pub struct Helper {
    /// As they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// `umount`
#[derive(Debug, Args)]
pub struct Umount {
    /// A desktop's name, or where it is attached
    #[arg(value_name = "DESKTOP|MOUNTPOINT", value_hint = ValueHint::DirPath)]
    pub target: OsString,
}

/// `desktops`
#[derive(Debug, Args)]
pub struct Desktops {
    /// Only those with this label; with several, all of them
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// A desktop's name.
#[derive(Debug, Args)]
pub struct Desktop {
    /// The desktop
    pub desktop: String,
}

/// `rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// The desktop
    pub desktop: String,
    /// Leave its files where they are
    #[arg(long)]
    pub keep_user_layer: bool,
}

/// `upgrade` and `rollback`
#[derive(Debug, Args)]
pub struct Swap {
    /// The desktops
    #[arg(value_name = "DESKTOP", required_unless_present_any = ["labels", "all"], conflicts_with_all = ["labels", "all"])]
    pub desktops: Vec<String>,
    /// The version to go to
    #[arg(long, value_name = "IMAGE:TAG")]
    pub to: Option<String>,
    /// Show what would happen and where user files stand in the way; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse (exit status 4) where there are conflicts
    #[arg(long)]
    pub strict: bool,
    /// Every desktop with this label; with several, all of them
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Every desktop
    #[arg(long, conflicts_with = "labels")]
    pub all: bool,
    /// How many desktops at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: u16,
}

/// `vm`
#[derive(Debug, Subcommand)]
pub enum Vm {
    /// Run a virtual machine on a desktop until it ends
    ///
    /// Mounts the desktop if it is not mounted, starts virtiofsd on it and QEMU, and takes all of it down when the guest
    /// powers off. Kernel and modules come from the image. The guest's serial console is standard output, and on a terminal
    /// standard input too (Ctrl-A X ends the machine, Ctrl-A H shows more keys). SIGTERM presses the guest's power button; a
    /// second one, or 20 seconds, end it.
    ///
    /// Exit status: 0 if the guest powered off by itself, 1 if it did anything else.
    Run(Box<VmRun>),
    /// Show what libvirt and a boot loader need to know of a mounted desktop
    Snippet(VmSnippet),
    /// Serve a mounted desktop to one guest, on the socket that systemd passes; becomes virtiofsd
    ///
    /// What reroot-virtiofsd@DESKTOP.service runs. The socket is that of reroot-virtiofsd@DESKTOP.socket (sd_listen_fds(3)).
    Share(VmShare),
}

/// `vm run`
#[derive(Debug, Args)]
pub struct VmRun {
    /// The desktop
    pub desktop: String,
    /// Boot this kernel [default: the newest in the image]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// Boot with this initramfs, which must mount the virtiofs device rootfs [default: one made of the image's modules]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// What its kernel is told.
    #[command(flatten)]
    pub line: VmLine,
    /// The guest's memory, in MiB or with a unit: M, G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = mebibytes)]
    pub memory: u64,
    /// The guest's processors [default: 2, or what this machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub cpus: Option<u16>,
    /// How instructions are executed [default: kvm where it works]
    #[arg(long, value_name = "HOW", value_parser = ["kvm", "tcg"])]
    pub accel: Option<String>,
    /// End the machine after this time; exit status 1
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub timeout: Option<u64>,
    /// Mount the desktop here [default: a directory of this run's own]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: Option<PathBuf>,
    /// How the guest gets it as its root.
    #[command(flatten)]
    pub root: VmRoot,
    /// More options for QEMU, after --
    #[arg(last = true, value_name = "QEMU OPTIONS")]
    pub qemu: Vec<OsString>,
}

/// `vm snippet`
#[derive(Debug, Args)]
pub struct VmSnippet {
    /// The desktop
    pub desktop: String,
    /// Where it will be mounted [default: where it is]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: Option<PathBuf>,
    /// How the guest gets it as its root.
    #[command(flatten)]
    pub root: VmRoot,
    /// What its kernel is told.
    #[command(flatten)]
    pub line: VmLine,
}

/// `vm share`
#[derive(Debug, Args)]
pub struct VmShare {
    /// The desktop
    pub desktop: String,
    /// How the guest gets it as its root.
    #[command(flatten)]
    pub root: VmRoot,
}

/// How a guest gets its root.
#[derive(Debug, Args)]
pub struct VmRoot {
    /// The virtiofsd to use [default: this machine's; in a snippet, libvirt's own choice]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub virtiofsd: Option<PathBuf>,
    /// What the guest remembers: with auto it sees an upgrade or rollback of its running root within a second or so; always
    /// is faster, and it sees one at its next boot
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = ["auto", "always"])]
    pub cache: String,
}

/// What a guest's kernel is told.
#[derive(Debug, Args)]
pub struct VmLine {
    /// More words for the kernel's command line; can be given several times
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
}

/// A size in MiB: `512`, `512M`, `2G`.
fn mebibytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let size = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    // Less does not hold a kernel; more is no machine.
    size.filter(|n| (64..=16 << 20).contains(n))
        .ok_or_else(|| "a size is 64M to 16384G, such as 512M or 2G".into())
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE".into()),
    }
}
