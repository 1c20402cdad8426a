//! `images`, `tag`, `untag`, `squash`.

use serde_json::{Value, json};

use super::Done;
use super::args::{NewTag, Version};
use super::table::{Table, size};
use super::ui::Ui;
use crate::error::{Error, Result};
use crate::layer::stack::{self, Words};
use crate::store::versions::{Manifest, Ref, VersionName, Which};
use crate::store::{Digest, Store, check_name};

/// The annotation that a squashed version carries: what it was made of.
const SQUASHED_FROM: &str = "reroot.squashed-from";

/// One damaged version does not hide the others; the exit status tells.
pub fn images(ui: &Ui, store: &Store) -> Done {
    let rows: Vec<(Ref, Result<Manifest>)> = store
        .refs()?
        .into_iter()
        .map(|r| {
            let manifest = store.version(&r.version);
            (r, manifest)
        })
        .collect();
    let mut status = 0;
    for (r, manifest) in &rows {
        if let Err(e) = manifest {
            ui.note(format!("{}:{}: {e}", r.image, r.tag));
            status = 5;
        }
    }
    ui.answer(
        || rows.iter().map(|(r, m)| image_json(r, m)).collect(),
        |out| {
            let mut table =
                Table::new(&["IMAGE", "TAG", "VERSION", "CREATED", ">LAYERS", ">PATHS", ">SIZE", "MESSAGE"]);
            for (r, m) in &rows {
                let about = match m {
                    Ok(m) => [
                        m.created.clone(),
                        m.stack.len().to_string(),
                        m.paths.to_string(),
                        size(m.bytes),
                        m.message.lines().next().unwrap_or_default().to_string(),
                    ],
                    Err(_) => ["damaged", "-", "-", "-", ""].map(String::from),
                };
                table.row([r.image.clone(), r.tag.clone(), r.version.short()].into_iter().chain(about));
            }
            out.table(&table);
        },
    )?;
    Ok(status)
}

fn image_json(r: &Ref, manifest: &Result<Manifest>) -> Value {
    let mut out = json!({ "image": r.image, "tag": r.tag, "version": r.version });
    let more = match manifest {
        Ok(m) => json!({
            "created": m.created,
            "layers": m.stack.len(),
            "paths": m.paths,
            "bytes": m.bytes,
            "message": m.message,
            "parent": m.parent,
        }),
        Err(e) => json!({ "error": super::ui::error_json(e) }),
    };
    if let (Some(out), Value::Object(more)) = (out.as_object_mut(), more) {
        out.extend(more);
    }
    out
}

/// Puts a tag on a version and says what it named before.
fn set_tag(ui: &Ui, store: &Store, image: &str, tag: &str, version: &Digest) -> Result<Option<Digest>> {
    let before = store.read_ref(image, tag)?.filter(|b| b != version);
    store.write_ref(image, tag, version)?;
    if let Some(before) = before {
        ui.note(format!("{image}:{tag} named {} before", before.short()));
    }
    Ok(before)
}

fn tagged(ui: &Ui, image: &str, tag: &str, version: &Digest, before: Option<Digest>) -> Result<()> {
    ui.answer(
        || json!({ "image": image, "tag": tag, "version": version, "before": before }),
        |out| out.line(format!("{image}:{tag} {version}")),
    )
}

pub fn tag(ui: &Ui, store: &Store, args: &NewTag) -> Done {
    let name: VersionName = args.version.parse()?;
    check_name("a tag", &args.tag)?;
    let _held = store.in_use()?;
    let version = store.resolve(&name)?;
    // A tag on what cannot be read would stop every collection.
    store.version(&version)?;
    let before = set_tag(ui, store, &name.image, &args.tag, &version)?;
    tagged(ui, &name.image, &args.tag, &version, before)?;
    Ok(0)
}

pub fn untag(ui: &Ui, store: &Store, args: &Version) -> Done {
    let name: VersionName = args.version.parse()?;
    let Which::Tag(tag) = &name.which else {
        return Err(Error::Usage(format!("{name} names a version by its digest; give the tag to remove")));
    };
    // Also a tag that cannot be read can be removed: that is how one gets rid of it.
    let version = match store.read_ref(&name.image, tag) {
        Ok(None) => store.resolve(&name).map(Some)?,
        Ok(some) => some,
        Err(e) => {
            ui.note(e);
            None
        }
    };
    store.remove_ref(&name.image, tag)?;
    ui.answer(
        || json!({ "image": name.image, "tag": tag, "version": version }),
        |out| match version {
            Some(version) => out.line(format!("removed {name}, which named {version}")),
            None => out.line(format!("removed {name}")),
        },
    )?;
    Ok(0)
}

pub fn squash(ui: &Ui, store: &Store, args: &NewTag) -> Done {
    let name: VersionName = args.version.parse()?;
    check_name("a tag", &args.tag)?;
    let _held = store.in_use()?;
    let from = store.resolve(&name)?;
    let manifest = store.version(&from)?;
    let draft = stack::merge_layers(store, &manifest.stack)?;
    let mut words = Words { message: manifest.message.clone(), annotations: manifest.annotations.clone() };
    if words.message.is_empty() {
        words.message = format!("{name} in one layer");
    }
    words.annotations.insert(SQUASHED_FROM.into(), from.to_string());
    let Some((version, _)) = stack::publish_version(store, None, &draft, words)? else {
        return Err(Error::Nothing(format!("{name} is empty")));
    };
    let before = set_tag(ui, store, &name.image, &args.tag, &version)?;
    tagged(ui, &name.image, &args.tag, &version, before)?;
    Ok(0)
}
