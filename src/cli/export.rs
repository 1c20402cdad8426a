//! `export`.

use serde_json::json;

use super::Done;
use super::args::Export;
use super::table::{count, size};
use super::ui::Ui;
use crate::store::Store;
use crate::store::versions::VersionName;
use crate::transfer::{self, Dest};

pub fn export(ui: &Ui, store: &Store, args: &Export) -> Done {
    let name: VersionName = args.version.parse()?;
    let dest: Dest = args.dest.parse()?;
    let bars = ui.progress();
    let done = transfer::export(store, &name, &dest, &bars);
    drop(bars);
    let done = done?;
    for skipped in &done.skipped {
        ui.note(skipped);
    }
    ui.answer(
        || {
            json!({
                "version": done.version,
                "dest": args.dest,
                "files": done.files,
                "bytes": done.bytes,
                "skipped": done.skipped,
            })
        },
        |out| {
            out.line(format!("{name} to {}: {}, {}", args.dest, count(done.files, "file"), size(done.bytes)));
            if !done.skipped.is_empty() {
                out.line(format!("{} left out", done.skipped.len()));
            }
        },
    )?;
    Ok(0)
}
