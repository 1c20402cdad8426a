//! virtiofsd: the program that serves a directory of the host to a guest.
//!
//! There are two: QEMU's own, in C, which came with it until version 8, and the one in Rust that stands alone. Which
//! one it is, its help says.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Cache;
use super::part::Part;
use crate::error::{Doing, Error, Result};
use crate::store::Store;
use crate::sys::process;

/// Where it is looked for. It is a program of other programs and stands outside `$PATH` with most distributions.
const PLACES: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/local/libexec/virtiofsd",
];

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    C,
    Rust,
}

/// A virtiofsd of this machine.
#[derive(Debug)]
pub struct Virtiofsd {
    program: PathBuf,
    kind: Kind,
}

impl Virtiofsd {
    /// The one that is given, else this machine's.
    pub fn find(given: Option<&Path>) -> Result<Virtiofsd> {
        let program = match given {
            Some(path) => path.to_path_buf(),
            None => PLACES
                .iter()
                .map(PathBuf::from)
                .chain(super::in_path("virtiofsd"))
                .find(|p| p.is_file())
                .ok_or_else(|| {
                    Error::Failed(
                        "there is no virtiofsd on this machine; install the package virtiofsd (with Debian 12: \
                         qemu-system-common), or name one with --virtiofsd PATH"
                            .into(),
                    )
                })?,
        };
        let help = Command::new(&program).arg("--help").stdin(Stdio::null()).output();
        let help = help.doing(format!("starting {}", program.display()))?;
        let help = [help.stdout, help.stderr].concat();
        let kind = kind_of(&String::from_utf8_lossy(&help)).ok_or_else(|| {
            Error::Failed(format!(
                "{} does not seem to be a virtiofsd: its --help has other words",
                program.display()
            ))
        })?;
        Ok(Virtiofsd { program, kind })
    }

    /// Its path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Serves `dir` to the one who connects to `socket`; ends when that connection does.
    pub fn start(&self, dir: &Path, cache: Cache, socket: UnixListener, log: &Path) -> Result<Part> {
        // It holds a descriptor for each file that the guest knows.
        process::raise_descriptor_limit();
        let socket = OwnedFd::from(socket);
        let mut command = Command::new(&self.program);
        command.arg(format!("--fd={}", socket.as_raw_fd())).args(arguments(self.kind, dir, cache)?);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Away from the terminal's interrupt key: the guest's last writes go through it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Part::start("virtiofsd", command, vec![socket], log)
    }
}

/// Becomes a virtiofsd that serves a mounted desktop on the socket that the service manager passes as descriptor 3
/// (sd_listen_fds(3)). Returns only what stands in the way.
pub fn share(store: &Store, desktop: &str, program: Option<&Path>, cache: Cache) -> Error {
    /// The first descriptor that is passed.
    const PASSED: u32 = 3;
    let prepared = || -> Result<Command> {
        let set = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
        if set("LISTEN_PID") != Some(std::process::id()) || set("LISTEN_FDS") != Some(1) {
            return Err(Error::Usage(
                "no socket was passed; start reroot-virtiofsd@DESKTOP.socket, or use `reroot vm run`".into(),
            ));
        }
        let desktop = store.desktop(desktop)?;
        let entry = store.mounted(&desktop.name)?.ok_or_else(|| {
            Error::Nothing(format!("{0} is not mounted; run `systemctl start reroot@{0}`", desktop.name))
        })?;
        let found = Virtiofsd::find(program)?;
        let mut command = Command::new(&found.program);
        command.arg(format!("--fd={PASSED}")).args(arguments(found.kind, &entry.mountpoint, cache)?);
        Ok(command)
    };
    match prepared() {
        // Only the program is another one: descriptor 3 has been left open by the service manager.
        Ok(mut command) => {
            let e = std::os::unix::process::CommandExt::exec(&mut command);
            Error::Io(format!("starting {}", command.get_program().display()), e)
        }
        Err(e) => e,
    }
}

fn kind_of(help: &str) -> Option<Kind> {
    if help.contains("--shared-dir") {
        Some(Kind::Rust)
    } else if help.contains("-o source=") {
        Some(Kind::C)
    } else {
        None
    }
}

fn arguments(kind: Kind, dir: &Path, cache: Cache) -> Result<Vec<String>> {
    let path = dir.to_str().ok_or_else(|| Error::Usage(format!("{} is not UTF-8", dir.display())))?;
    let words: &[String] = &match kind {
        Kind::Rust => vec![
            format!("--shared-dir={path}"),
            "--sandbox=chroot".into(),
            format!("--cache={}", cache.word()),
            "--xattr".into(),
            "--posix-acl".into(),
        ],
        Kind::C => {
            // Commas separate its options.
            if path.contains([',', '\\']) {
                return Err(Error::Usage(format!(
                    "{path}: this virtiofsd takes no path with a comma or a backslash; mount the desktop elsewhere"
                )));
            }
            vec!["-o".into(), format!("source={path},sandbox=chroot,cache={},xattr,posix_acl", cache.word())]
        }
    };
    Ok(words.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_virtiofsd_is_spoken_to_in_its_own_words() {
        assert_eq!(kind_of("    -o source=PATH             shared directory tree\n"), Some(Kind::C));
        assert_eq!(kind_of("      --shared-dir <SHARED_DIR>\n"), Some(Kind::Rust));
        assert_eq!(kind_of("usage: ls"), None);
        let words = |kind| arguments(kind, Path::new("/a b"), Cache::Always).unwrap().join(" ");
        assert_eq!(words(Kind::C), "-o source=/a b,sandbox=chroot,cache=always,xattr,posix_acl");
        assert!(words(Kind::Rust).starts_with("--shared-dir=/a b --sandbox=chroot --cache=always"));
        assert!(arguments(Kind::C, Path::new("/a,b"), Cache::Auto).is_err());
        assert!(arguments(Kind::Rust, Path::new("/a,b"), Cache::Auto).is_ok());
    }
}
