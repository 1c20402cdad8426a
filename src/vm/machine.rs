//! QEMU: the machine that a guest runs on.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::part::Part;
use super::{Accelerator, Guest};
use crate::error::{Error, Result};

/// The name of the program.
const QEMU: &str = "qemu-system-x86_64";

/// How long a machine with nothing to boot may take to find that out.
const TRIAL: Duration = Duration::from_secs(10);

/// The tag of the root's device, and so its name on the kernel's command line.
pub const TAG: &str = "rootfs";

/// The words of the kernel's command line that every guest gets.
///
/// A kernel that panics resets the machine at once: nobody is there to look at it.
pub const COMMAND_LINE: &str = "rootfstype=virtiofs root=rootfs rw console=ttyS0 panic=-1";

/// QEMU on this machine.
pub fn find() -> Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Failed("`reroot vm` knows machines of x86-64 only".into()));
    }
    super::in_path(QEMU).next().ok_or_else(|| {
        Error::Failed(format!("there is no {QEMU} in $PATH; install it (with Debian: qemu-system-x86)"))
    })
}

/// The accelerator to use: KVM where it works, and otherwise QEMU's own translation.
///
/// That there is a /dev/kvm says little: on a machine that is virtual itself it may not answer, and QEMU does not fall back by
/// itself once it has started.
pub fn accelerator(qemu: &Path, log: &Path) -> Accelerator {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let able = has_virtualization(&cpu)
        && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
        && trial(qemu, Accelerator::Kvm, log);
    if able { Accelerator::Kvm } else { Accelerator::Tcg }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|l| l.starts_with("flags")).flat_map(str::split_whitespace);
    flags.any(|f| f == "vmx" || f == "svm")
}

/// Whether a machine without a disk runs its firmware to the end, which resets it since there is nothing to boot.
fn trial(qemu: &Path, accelerator: Accelerator, log: &Path) -> bool {
    let mut command = Command::new(qemu);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-m",
        "64",
        "-accel",
        accelerator.word(),
    ]);
    command.args(["-machine", "q35", "-boot", "reboot-timeout=0", "-action", "reboot=shutdown"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let Ok(mut part) = Part::start("QEMU", command, Vec::new(), log) else { return false };
    part.wait(TRIAL).is_some_and(|s| s.success())
}

/// What a machine is made of, besides what the guest asks for.
#[derive(Debug)]
pub struct Pieces<'a> {
    /// QEMU.
    pub qemu: &'a Path,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs, where one is needed.
    pub initrd: Option<&'a Path>,
    /// How instructions are executed.
    pub accelerator: Accelerator,
    /// Where virtiofsd listens.
    pub socket: &'a Path,
}

/// Starts the machine. Its serial console is on the part's standard output, and on this process's standard input
/// where `guest` is to be spoken to.
pub fn start(guest: &Guest, pieces: &Pieces<'_>, monitor: OwnedFd, log: &Path) -> Result<Part> {
    let mut command = Command::new(pieces.qemu);
    command.args(arguments(guest, pieces, monitor.as_raw_fd())?);
    command.stdout(Stdio::piped());
    if guest.interactive {
        // In the terminal's own process group, since only that may read from it. The terminal is raw then.
        command.stdin(Stdio::inherit());
    } else {
        command.stdin(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
    }
    Part::start("QEMU", command, vec![monitor], log)
}

fn arguments(guest: &Guest, pieces: &Pieces<'_>, monitor: i32) -> Result<Vec<OsString>> {
    let mut out: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: &str| out.extend([option.into(), value.into()]);
    add("-machine", "q35,memory-backend=memory");
    add("-accel", pieces.accelerator.word());
    // What translates instructions translates all that it knows; only the fifth level of page tables costs.
    add("-cpu", if pieces.accelerator == Accelerator::Kvm { "host" } else { "max,la57=off" });
    add("-smp", &guest.cpus.to_string());
    add("-m", &format!("{}M", guest.memory));
    // virtiofsd reads and writes the guest's memory, so that is shared.
    add("-object", &format!("memory-backend-memfd,id=memory,size={}M,share=on", guest.memory));
    add("-chardev", &format!("socket,id=root,path={}", option_value(pieces.socket)?));
    add("-device", &format!("vhost-user-fs-pci,chardev=root,tag={TAG},queue-size=1024"));
    add("-chardev", &format!("socket,id=monitor,fd={monitor}"));
    add("-mon", "chardev=monitor,mode=control");
    add("-device", "pvpanic-pci");
    add("-action", "reboot=shutdown,panic=shutdown");
    add("-display", "none");
    if guest.interactive {
        // With QEMU's own keys: Ctrl-A h lists them.
        add("-serial", "mon:stdio");
    } else {
        add("-chardev", "stdio,id=console,signal=on");
        add("-serial", "chardev:console");
    }
    out.extend(["-nodefaults".into(), "-no-user-config".into()]);
    out.extend(["-kernel".into(), pieces.kernel.into()]);
    if let Some(initrd) = pieces.initrd {
        out.extend(["-initrd".into(), initrd.into()]);
    }
    out.extend(["-append".into(), command_line(&guest.append).into()]);
    out.extend(guest.options.iter().cloned());
    Ok(out)
}

/// The kernel's command line; where a word is said twice the kernel takes the last.
pub fn command_line(append: &[String]) -> String {
    std::iter::once(COMMAND_LINE).chain(append.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}

/// A path as the value of one of QEMU's options, in which a comma is written twice.
fn option_value(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::Usage(format!("{} is not UTF-8", path.display())))?;
    Ok(text.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_flag_of_the_processor() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu vme svm sse\n"));
        assert!(has_virtualization("flags : vmx\n"));
        assert!(!has_virtualization("flags : fpu\nvmx flags : svm\nmodel name : svm\n"));
    }

    #[test]
    fn the_users_words_come_last() {
        let line = command_line(&["quiet".into(), "panic=0".into()]);
        assert!(
            line.starts_with("rootfstype=virtiofs root=rootfs rw ") && line.ends_with(" quiet panic=0"),
            "{line}"
        );
        assert!(COMMAND_LINE.contains(&format!("root={TAG} ")));
        assert_eq!(option_value(Path::new("/a,b")).unwrap(), "/a,,b");
    }
}
