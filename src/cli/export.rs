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
    // Until it is written out, no collection may take the version away.
    let _held = store.in_use()?;
    let version = store.resolve(&name)?;
    let bars = ui.progress();
    let done = transfer::export(store, &version, &dest, &bars);
    drop(bars);
    let done = done?;
    for skipped in &done.skipped {
        ui.note(skipped);
    }
    ui.answer(
        || {
            json!({
                "version": version,
                "dest": args.dest,
                "paths": done.paths,
                "bytes": done.bytes,
                "skipped": done.skipped,
            })
        },
        |out| {
            out.line(format!("{name} to {}: {}, {}", args.dest, count(done.paths, "path"), size(done.bytes)));
            if !done.skipped.is_empty() {
                out.line(format!("{} left out", done.skipped.len()));
            }
        },
    )?;
    Ok(0)
}
