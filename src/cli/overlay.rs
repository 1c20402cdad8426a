//! `overlay`, and what mount(8) and umount(8) run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Done;
use super::args::{Global, Helper, Overlay};
use super::ui::Ui;
use crate::daemon::overlay::{OverlayOptions, check};
use crate::daemon::{self, MountOptions, MountRequest, Subject};
use crate::error::{Doing, Error, Result};
use crate::store::Store;

/// The exit status of a mount helper that failed (mount(8), "EXIT STATUS").
const MOUNT_FAILED: u8 = 32;

pub fn overlay(ui: &Ui, args: &Overlay) -> Done {
    let options = OverlayOptions::parse(&args.options.join(","))?;
    for warning in &options.warnings {
        ui.note(warning);
    }
    if options.remount {
        daemon::remount(&args.mountpoint, &options.mount)?;
        return Ok(0);
    }
    let request = request(&options, &args.mountpoint)?;
    let entry = daemon::mount(&request, args.foreground)?;
    // Silent, as the command that it stands for.
    ui.answer(|| serde_json::to_value(&entry).unwrap_or_default(), |_| {})?;
    Ok(0)
}

fn request(options: &OverlayOptions, at: &Path) -> Result<MountRequest> {
    // Here, and again by the daemon, which does not know the working directory.
    let layers = check(&options.layers)?;
    Ok(MountRequest {
        store: PathBuf::new(),
        subject: Subject::Directories(layers),
        mountpoint: std::path::absolute(at).at("finding the mount point", at)?,
        options: options.mount.clone(),
    })
}

/// What mount(8) gives a helper: the source, the mount point, and options.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    places: Vec<OsString>,
    options: Vec<String>,
    /// Do everything but the mount (`-f` of mount(8)).
    fake: bool,
    /// Detach at once (`-l` of umount(8)).
    lazy: bool,
}

impl Call {
    fn of(arguments: &[OsString], unmounts: bool) -> Result<Call> {
        let mut out = Call::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let text = argument.to_str().unwrap_or_default();
            match text {
                "-o" | "-t" | "-N" => {
                    let value = arguments
                        .next()
                        .and_then(|v| v.to_str())
                        .ok_or_else(|| Error::Usage(format!("{text} needs a value in UTF-8")))?;
                    if text == "-o" {
                        out.options.push(value.into());
                    }
                }
                _ if text.len() > 1 && text.starts_with('-') => {
                    out.fake |= text.contains('f') && !unmounts;
                    out.lazy |= text.contains('l') && unmounts;
                }
                _ => out.places.push(argument.clone()),
            }
        }
        Ok(out)
    }
}

/// A helper's errors go to mount(8) with its own exit status.
fn helped(global: &Global, result: Result<()>) -> Done {
    match result {
        Ok(()) => Ok(0),
        Err(e) => {
            Ui::new(global).error(&e);
            Ok(if matches!(e, Error::Usage(_)) { 1 } else { MOUNT_FAILED })
        }
    }
}

pub fn mount_helper(global: &Global, args: &Helper) -> Done {
    helped(global, helped_mount(global, &args.arguments))
}

fn helped_mount(global: &Global, arguments: &[OsString]) -> Result<()> {
    let call = Call::of(arguments, false)?;
    let [source, point] = &call.places[..] else {
        return Err(Error::Usage(
            "mount.fuse.reroot SOURCE MOUNTPOINT -o lowerdir=…,upperdir=…,workdir=…".into(),
        ));
    };
    let source = source.to_str().ok_or_else(|| Error::Usage(format!("{source:?} is not UTF-8")))?;
    let (point, list) = (Path::new(point), call.options.join(","));
    let words = || list.split(',');
    if call.fake {
        return Ok(());
    }
    if words().any(|w| w == "remount") {
        return daemon::remount(point, &OverlayOptions::parse(&list)?.mount);
    }
    if words().any(|w| w.starts_with("lowerdir")) {
        let mut options = OverlayOptions::parse(&list)?;
        options.warnings.iter().for_each(|w| Ui::new(global).note(w));
        options.mount.source.get_or_insert_with(|| source.into());
        daemon::mount(&request(&options, point)?, false)?;
        return Ok(());
    }
    let store = Store::open(&super::store_path(global)?)?;
    let request = MountRequest {
        store: store.root().to_path_buf(),
        subject: Subject::Desktop(store.desktop(source)?.name),
        mountpoint: std::path::absolute(point).at("finding the mount point", point)?,
        options: MountOptions::parse(&list)?,
    };
    daemon::mount(&request, false)?;
    Ok(())
}

pub fn umount_helper(global: &Global, args: &Helper) -> Done {
    helped(global, helped_umount(global, &args.arguments))
}

fn helped_umount(global: &Global, arguments: &[OsString]) -> Result<()> {
    let call = Call::of(arguments, true)?;
    let [point] = &call.places[..] else {
        return Err(Error::Usage("umount.fuse.reroot MOUNTPOINT".into()));
    };
    let point = Path::new(point);
    if call.lazy {
        return daemon::detach_lazily(point);
    }
    let path = super::store_path(global)?;
    // The store of a desktop's mount need not be there for one of plain directories.
    let store = if path.is_dir() { Some(Store::open(&path)?) } else { None };
    daemon::unmount_path(store.as_ref(), point)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_is_called_as_mount_does_it() {
        let call = |words: &str, unmounts| {
            Call::of(&words.split(' ').map(OsString::from).collect::<Vec<_>>(), unmounts).unwrap()
        };
        let c = call("none /mnt -sv -o rw,lowerdir=/a -t fuse.reroot", false);
        assert_eq!(c.places, ["none", "/mnt"]);
        assert_eq!(c.options, ["rw,lowerdir=/a"]);
        assert!(!c.fake && call("none /mnt -f", false).fake);
        assert!(call("/mnt -l", true).lazy && !call("/mnt -f -v", true).fake);
        assert!(Call::of(&["-o".into()], false).is_err());
    }
}
