//! `commit`, `settle`, `changes`: what a user layer holds.

use std::time::Instant;

use serde_json::json;

use super::Done;
use super::args::{Commit, Desktop};
use super::table::{count, rate, seconds_since, size};
use super::ui::{Hue, Ui};
use crate::daemon::{self, CommitRequest};
use crate::error::Error;
use crate::store::Store;
use crate::store::versions::VersionName;

pub fn commit(ui: &Ui, store: &Store, args: &Commit) -> Done {
    let name: VersionName = args.name.parse()?;
    let Some(tag) = name.tag() else {
        return Err(Error::Usage(format!("{name}: a new version is named by a tag, IMAGE:TAG")));
    };
    let desktop = store.desktop(&args.desktop)?;
    let request = CommitRequest { only: args.only.clone(), message: args.message.clone(), reset: args.reset };
    let began = Instant::now();
    let bars = ui.progress();
    let done = daemon::commit(store, &desktop, &name.image, tag, &request, &bars);
    drop(bars);
    let done = done?;
    let seconds = seconds_since(began);
    ui.answer(
        || {
            json!({
                "desktop": desktop.name,
                "image": name.image,
                "tag": tag,
                "version": done.version,
                "paths": done.paths,
                "bytes": done.bytes,
                "new_bytes": done.new_bytes,
                "seconds": seconds,
                "reset": done.reset,
            })
        },
        |out| {
            out.line(format!("{name} {}", done.version));
            let reset = match args.reset {
                true => format!("; {} cleared from the user layer", count(done.reset, "path")),
                false => String::new(),
            };
            let new = size(done.new_bytes);
            out.line(format!(
                "{} in the new delta, {new} new to the store; read {}{reset}",
                count(done.paths, "path"),
                rate(done.bytes, seconds)
            ));
        },
    )?;
    Ok(0)
}

pub fn settle(ui: &Ui, store: &Store, args: &Desktop) -> Done {
    let desktop = store.desktop(&args.desktop)?;
    let bars = ui.progress();
    let done = daemon::settle(store, &desktop, &bars);
    drop(bars);
    let done = done?;
    ui.answer(
        || {
            let mut out = serde_json::to_value(&done).unwrap_or_default();
            if let Some(out) = out.as_object_mut() {
                out.insert("desktop".into(), json!(desktop.name));
            }
            out
        },
        |out| {
            out.line(format!(
                "{}: {} completed ({}), {} set aside",
                desktop.name,
                count(done.files_completed, "file"),
                size(done.bytes_copied),
                done.set_aside
            ));
        },
    )?;
    Ok(0)
}

pub fn changes(ui: &Ui, store: &Store, args: &Desktop) -> Done {
    let desktop = store.desktop(&args.desktop)?;
    let changes = daemon::changes(store, &desktop)?;
    ui.answer(
        || serde_json::to_value(&changes).unwrap_or_default(),
        |out| {
            for change in &changes {
                let hue = match change.letter {
                    'A' => Hue::Green,
                    'D' => Hue::Red,
                    _ => Hue::Yellow,
                };
                out.path_line(Some(hue), &format!("{} ", change.letter), &change.raw);
            }
        },
    )?;
    Ok(0)
}
