//! `mount`, `umount`, `inspect`.

use std::path::Path;

use serde_json::Value;

use super::Done;
use super::args::{Inspect, Mount, MountHow, Umount};
use super::ui::Ui;
use crate::daemon::{self, MountOptions, MountRequest, Subject};
use crate::error::{Doing, Error, Result};
use crate::store::Store;
use crate::store::mounts::MountEntry;
use crate::store::versions::VersionName;

pub fn mount(ui: &Ui, store: &Store, args: &Mount) -> Done {
    let options = MountOptions::parse(&args.how.options.join(","))?;
    let desktop = store.desktop(&args.desktop)?;
    attach(ui, store, Subject::Desktop(desktop.name), &args.mountpoint, options, &args.how)
}

pub fn inspect(ui: &Ui, store: &Store, args: &Inspect) -> Done {
    let name: VersionName = args.version.parse()?;
    let mut options = MountOptions::parse(&args.how.options.join(","))?;
    options.read_only = true;
    let version = store.resolve(&name)?;
    let subject = Subject::Version { version, name: name.to_string() };
    attach(ui, store, subject, &args.mountpoint, options, &args.how)
}

fn attach(
    ui: &Ui,
    store: &Store,
    subject: Subject,
    at: &Path,
    options: MountOptions,
    how: &MountHow,
) -> Done {
    // Only made absolute: a look at it could wait for a mount whose daemon is dead.
    let mountpoint = std::path::absolute(at).at("finding the mount point", at)?;
    let request = MountRequest { store: store.root().to_path_buf(), subject, mountpoint, options };
    let entry = daemon::mount(&request, how.foreground)?;
    let verb = if how.foreground { "was mounted at" } else { "is mounted at" };
    answer(ui, &entry, verb)?;
    Ok(0)
}

pub fn umount(ui: &Ui, store: &Store, args: &Umount) -> Done {
    let Some(target) = args.target.to_str() else {
        return Err(Error::Usage(format!(
            "{:?} is not UTF-8; give the desktop's name (`reroot desktops` lists them)",
            args.target
        )));
    };
    let entry = if target.contains('/') || store.desktop(target).is_err() && Path::new(target).is_dir() {
        daemon::unmount_path(Some(store), Path::new(target))?
    } else {
        daemon::unmount(store, target)?
    };
    answer(ui, &entry, "is not mounted any more at")?;
    Ok(0)
}

fn answer(ui: &Ui, entry: &MountEntry, verb: &str) -> Result<()> {
    ui.answer(
        || {
            let mut out = serde_json::to_value(entry).unwrap_or_default();
            if let Value::Object(out) = &mut out {
                out.insert("name".into(), Value::String(entry.id.clone()));
            }
            out
        },
        |out| {
            let nameless = entry.id.starts_with(".overlay-") || entry.id == ".dead";
            let name = if nameless { "the view" } else { &entry.id };
            out.line(format!("{name} {verb} {}", entry.mountpoint.display()));
        },
    )
}
