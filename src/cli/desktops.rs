//! `create`, `desktops`, `status`, `rm`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Done;
use super::args::{Create, Desktop as Named, Desktops, Rm};
use super::table::{Table, size};
use super::ui::{Hue, Ui};
use crate::daemon;
use crate::error::Result;
use crate::store::Store;
use crate::store::desktops::{Choice, Desktop, Policy, State};
use crate::store::mounts::MountEntry;
use crate::store::versions::VersionName;

pub fn create(ui: &Ui, store: &Store, args: &Create) -> Done {
    let name: VersionName = args.version.parse()?;
    let labels = args.labels.iter().cloned().collect();
    let _held = store.in_use()?;
    let version = store.resolve(&name)?;
    store.version(&version)?;
    let current = Choice { version, tag: name.tag().map(str::to_string) };
    let layer = args.user_layer.as_deref();
    let desktop = store.create_desktop(&args.desktop, &name.image, current, layer, labels)?;
    let about = About::of(store, desktop)?;
    ui.answer(
        || about.json(),
        |out| out.line(format!("{} on {}", about.desktop.name, about.version_text())),
    )?;
    Ok(0)
}

/// What is known of a desktop.
struct About {
    desktop: Desktop,
    state: State,
    policy: Policy,
    user_layer: String,
    mount: Option<MountEntry>,
}

impl About {
    fn of(store: &Store, desktop: Desktop) -> Result<About> {
        Ok(About {
            state: desktop.state()?,
            policy: desktop.policy()?,
            user_layer: desktop.user_layer()?.display().to_string(),
            mount: store.mounted(&desktop.name)?,
            desktop,
        })
    }

    fn json(&self) -> Value {
        let current = &self.state.current;
        json!({
            "name": self.desktop.name,
            "image": self.state.image,
            "version": current.version,
            "tag": current.tag,
            "previous": self.state.previous,
            "pending": self.state.pending,
            "generation": self.state.generation,
            "mounted": self.mount.is_some(),
            "mountpoint": self.mount.as_ref().map(|m| m.mountpoint.display().to_string()),
            "pid": self.mount.as_ref().map(|m| m.pid),
            "supervisor": self.mount.as_ref().and_then(|m| m.supervisor),
            "restarts": self.mount.as_ref().map(|m| m.restarts),
            "window": null,
            "blocked": false,
            "labels": self.policy.labels,
            "created": self.policy.created,
            "user_layer": self.user_layer,
        })
    }

    fn version_text(&self) -> String {
        choice_text(&self.state.image, &self.state.current)
    }
}

/// `office:2025.10 (0123456789ab)`.
pub fn choice_text(image: &str, choice: &Choice) -> String {
    match &choice.tag {
        Some(tag) => format!("{image}:{tag} ({})", choice.version.short()),
        None => format!("{image}@sha384:{}", choice.version.short()),
    }
}

/// The desktops with all of these labels.
pub fn with_labels(store: &Store, labels: &[(String, String)]) -> Result<Vec<Desktop>> {
    let mut out = store.desktops()?;
    if !labels.is_empty() {
        let mut kept = Vec::new();
        for desktop in out {
            if has_labels(&desktop.policy()?.labels, labels) {
                kept.push(desktop);
            }
        }
        out = kept;
    }
    Ok(out)
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &[(String, String)]) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// One damaged desktop does not hide the others; the exit status tells.
pub fn desktops(ui: &Ui, store: &Store, args: &Desktops) -> Done {
    let mut rows = Vec::new();
    let mut worst = 0;
    for desktop in store.desktops()? {
        let name = desktop.name.clone();
        let about = About::of(store, desktop);
        match &about {
            Ok(about) if !has_labels(&about.policy.labels, &args.labels) => continue,
            Ok(_) => {}
            Err(e) => {
                ui.note(format!("{name}: {e}"));
                worst = worst.max(e.exit_status());
            }
        }
        rows.push((name, about));
    }
    ui.answer(
        || {
            let one = |(name, about): &(String, Result<About>)| match about {
                Ok(about) => about.json(),
                Err(e) => json!({ "name": name, "error": super::ui::error_json(e) }),
            };
            rows.iter().map(one).collect()
        },
        |out| {
            let mut table =
                Table::new(&["DESKTOP", "IMAGE", "TAG", "VERSION", ">GEN", "MOUNTED AT", "LABELS"]);
            for (name, about) in &rows {
                let Ok(about) = about else {
                    table.row([name.clone(), "damaged".into()]);
                    continue;
                };
                let labels: Vec<String> =
                    about.policy.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                table.row([
                    name.clone(),
                    about.state.image.clone(),
                    about.state.current.tag.clone().unwrap_or("-".into()),
                    about.state.current.version.short(),
                    about.state.generation.to_string(),
                    about.mount.as_ref().map_or("-".into(), |m| m.mountpoint.display().to_string()),
                    labels.join(","),
                ]);
            }
            out.table(&table);
        },
    )?;
    Ok(worst)
}

pub fn status(ui: &Ui, store: &Store, args: &Named) -> Done {
    let about = About::of(store, store.desktop(&args.desktop)?)?;
    // A layer on a disk that is not there now must not hide the rest.
    let bytes = match daemon::user_layer_bytes(&about.desktop.user_layer()?) {
        Ok(bytes) => Some(bytes),
        Err(e) => {
            ui.note(format!("the size of the user layer is not known: {e}"));
            None
        }
    };
    let missing = match daemon::missing(store, &about.desktop) {
        Ok(missing) => Some(missing),
        Err(e) => {
            ui.note(format!("what is still to be copied is not known: {e}"));
            None
        }
    };
    ui.answer(
        || {
            let mut out = about.json();
            if let Some(out) = out.as_object_mut() {
                out.insert("user_layer_bytes".into(), json!(bytes));
                out.insert("copying".into(), json!(missing));
            }
            out
        },
        |out| {
            let state = &about.state;
            let mut fact = |what: &str, text: String| out.marked(Hue::Bold, &format!("{what:<11}"), text);
            let choice = |c: &Option<Choice>| c.as_ref().map(|c| choice_text(&state.image, c));
            fact("desktop", about.desktop.name.clone());
            fact("runs", about.version_text());
            fact("before", choice(&state.previous).unwrap_or("-".into()));
            if let Some(pending) = choice(&state.pending) {
                fact("pending", format!("{pending}; the next mount completes it"));
            }
            fact("generation", state.generation.to_string());
            match &about.mount {
                Some(m) => {
                    let again = match m.restarts {
                        0 => String::new(),
                        1 => ", started again once".into(),
                        n => format!(", started again {n} times"),
                    };
                    fact("mounted", format!("{} by process {}{again}", m.mountpoint.display(), m.pid))
                }
                None => fact("mounted", "no".into()),
            }
            let bytes = bytes.map_or(String::new(), |b| format!(", {}", size(b)));
            fact("user layer", format!("{}{bytes}", about.user_layer));
            if let Some(missing) = missing.as_ref().filter(|m| m.files > 0) {
                fact("copying", copying_text(missing));
            }
            fact("created", about.policy.created.clone());
            for (key, value) in &about.policy.labels {
                fact("label", format!("{key}={value}"));
            }
        },
    )?;
    Ok(0)
}

/// What is still to be copied, for people.
fn copying_text(missing: &daemon::Missing) -> String {
    let files = super::table::count(missing.files, "file");
    let bytes = missing.bytes.map_or(String::new(), |b| format!(", {}", size(b)));
    match (&missing.stuck, missing.bytes) {
        (Some(why), _) => format!("{files}{bytes}; held up: {why}"),
        (None, Some(_)) => format!("{files}{bytes} to go"),
        (None, None) => format!("{files}; the next mount goes on with it"),
    }
}

pub fn rm(ui: &Ui, store: &Store, args: &Rm) -> Done {
    let desktop = store.desktop(&args.desktop)?;
    let removed = store.remove_desktop(&desktop, args.keep_user_layer)?;
    if removed.kept && removed.pins > 0 {
        ui.note(format!(
            "the user layer still needs content of {}: it stays in the store while {} is there",
            super::table::count(removed.pins, "version"),
            desktop.dir().join("pins").display()
        ));
    }
    ui.answer(
        || {
            json!({
                "name": desktop.name,
                "user_layer": removed.user_layer.display().to_string(),
                "kept": removed.kept,
            })
        },
        |out| {
            let layer = removed.user_layer.display();
            let what = if removed.kept { "kept" } else { "removed too" };
            out.line(format!("removed {}; its user layer {layer} was {what}", desktop.name));
        },
    )?;
    Ok(0)
}
