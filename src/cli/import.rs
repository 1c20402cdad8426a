//! `import`.

use std::time::Instant;

use serde_json::json;

use super::Done;
use super::args::Import;
use super::table::{count, rate, seconds_since, size};
use super::ui::Ui;
use crate::error::Result;
use crate::layer::stack::Words;
use crate::store::Store;
use crate::transfer::{self, ImportRequest};

pub fn import(ui: &Ui, store: &Store, args: &Import) -> Done {
    let request = ImportRequest {
        source: args.source.parse()?,
        name: args.name.parse()?,
        parent: args.parent.as_deref().map(str::parse).transpose()?,
        as_delta: args.as_delta,
        words: words(&args.words),
    };
    let began = Instant::now();
    let bars = ui.progress();
    let done: Result<transfer::Imported> = transfer::import(store, &request, &bars);
    drop(bars);
    let done = done?;
    let seconds = seconds_since(began);
    ui.answer(
        || {
            json!({
                "image": request.name.image,
                "tag": request.name.tag(),
                "version": done.version,
                "parent": done.manifest.parent,
                "layers": done.manifest.stack.len(),
                "paths": done.manifest.paths,
                "delta_paths": done.delta_paths,
                "files": done.files,
                "bytes": done.bytes,
                "bytes_read": done.bytes_read,
                "new_bytes": done.new_bytes,
                "seconds": seconds,
            })
        },
        |out| {
            out.line(format!("{} {}", request.name, done.version));
            out.line(format!(
                "{}, {} in the new layer; {} of {} were new to the store; read {}",
                count(done.manifest.paths, "path"),
                done.delta_paths,
                size(done.new_bytes),
                size(done.bytes),
                rate(done.bytes_read, seconds)
            ));
        },
    )?;
    Ok(0)
}

fn words(args: &super::args::Words) -> Words {
    Words { message: args.message.clone(), annotations: args.annotations.iter().cloned().collect() }
}
