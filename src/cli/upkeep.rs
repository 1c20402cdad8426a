//! `fsck`, `gc`, `df`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Done;
use super::args::{Fsck, Gc};
use super::table::{Table, count, seconds_since, size};
use super::ui::{Hue, Ui};
use crate::error::Result;
use crate::layer::check::{self, Severity};
use crate::layer::reach;
use crate::store::Store;
use crate::store::collect::{Collection, disk_bytes};
use crate::store::versions::VersionName;

/// How long a collection waits for others to finish with the store.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn fsck(ui: &Ui, store: &Store, args: &Fsck) -> Done {
    let _held = store.in_use()?;
    let only = match &args.version {
        Some(text) => {
            let name: VersionName = text.parse()?;
            Some((store.resolve(&name)?, name.to_string()))
        }
        None => None,
    };
    let bars = ui.progress();
    let checked = check::check(store, only, args.deep, &bars);
    drop(bars);
    let checked = checked?;
    ui.answer(
        || {
            let mut out = serde_json::to_value(&checked).unwrap_or_default();
            if let Some(out) = out.as_object_mut() {
                out.insert("deep".into(), json!(args.deep));
                out.insert("damaged".into(), json!(checked.is_damaged()));
            }
            out
        },
        |out| {
            for f in &checked.findings {
                let (hue, word) = match f.severity {
                    Severity::Damaged => (Hue::Red, "damaged "),
                    Severity::Repaired => (Hue::Green, "repaired"),
                    Severity::Warning => (Hue::Yellow, "warning "),
                };
                let who: Vec<&str> = f.needed_by.iter().map(String::as_str).collect();
                out.marked(hue, word, format!(" {}: {}; needed by {}", f.path, f.what, who.join(", ")));
            }
            let read = if args.deep { format!(", {} read", size(checked.bytes_read)) } else { String::new() };
            out.line(format!(
                "{}, {}, {}, {}{read}: {}",
                count(checked.versions, "version"),
                count(checked.layers, "layer"),
                count(checked.trees, "tree"),
                count(checked.objects, "object"),
                match checked.findings.len() {
                    0 => "nothing wrong".to_string(),
                    n => count(n as u64, "finding"),
                }
            ));
        },
    )?;
    Ok(if checked.is_damaged() { 5 } else { 0 })
}

pub fn gc(ui: &Ui, store: &Store, args: &Gc) -> Done {
    let how = Collection { dry_run: args.dry_run, patience: PATIENCE };
    let began = Instant::now();
    let done = reach::collect(store, how, &|message| ui.note(message))?;
    let seconds = seconds_since(began);
    ui.answer(
        || {
            let mut out = serde_json::to_value(&done).unwrap_or_default();
            if let Some(out) = out.as_object_mut() {
                out.insert("seconds".into(), json!(seconds));
            }
            out
        },
        |out| {
            let verb = if done.dry_run { "would remove" } else { "removed" };
            out.line(format!(
                "{verb} {}, {}, {}, {}, {}: {}",
                count(done.versions, "version"),
                count(done.layers, "layer"),
                count(done.trees, "tree"),
                count(done.objects, "object"),
                count(done.leftovers, "leftover"),
                size(done.bytes)
            ));
        },
    )?;
    Ok(0)
}

/// Bytes on disk by kind.
struct Usage {
    parts: Vec<(&'static str, u64)>,
    logical: u64,
}

impl Usage {
    fn of(store: &Store) -> Result<Usage> {
        let kinds = ["objects", "layers", "trees", "versions", "desktops", "cache"];
        let parts = kinds.into_iter().map(|k| Ok((k, disk_bytes(&store.path(k))?))).collect::<Result<_>>()?;
        let mut logical = 0u64;
        for version in store.versions()? {
            logical = logical.saturating_add(store.version(&version)?.bytes);
        }
        Ok(Usage { parts, logical })
    }

    fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// What all versions would take as full copies, to what they take: objects, layers, trees, manifests.
    fn ratio(&self) -> Option<f64> {
        let own = |kind: &str| matches!(kind, "objects" | "layers" | "trees" | "versions");
        let stored: u64 = self.parts.iter().filter(|(k, _)| own(k)).map(|(_, b)| b).sum();
        (stored > 0).then(|| self.logical as f64 / stored as f64)
    }
}

pub fn df(ui: &Ui, store: &Store) -> Done {
    let _held = store.in_use()?;
    let usage = Usage::of(store)?;
    let versions = store.versions()?.len();
    ui.answer(
        || {
            let mut out = json!({
                "store": store.root().display().to_string(),
                "total_bytes": usage.total(),
                "versions": versions,
                "logical_bytes": usage.logical,
                "dedup_ratio": usage.ratio(),
            });
            if let Some(out) = out.as_object_mut() {
                for (kind, bytes) in &usage.parts {
                    out.insert(format!("{kind}_bytes"), json!(bytes));
                }
            }
            out
        },
        |out| {
            let mut table = Table::new(&["KIND", ">ON DISK"]);
            for (kind, bytes) in &usage.parts {
                table.row([kind.to_string(), size(*bytes)]);
            }
            table.row(["total".into(), size(usage.total())]);
            out.table(&table);
            let ratio = usage.ratio().map_or("-".into(), |r| format!("{r:.1}"));
            out.line(format!(
                "{} as full copies would take {}: {ratio} times what is stored",
                count(versions as u64, "version"),
                size(usage.logical)
            ));
        },
    )?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Global;
    use crate::layer::sample::Sample;

    #[test]
    fn usage_counts_each_kind_and_shared_content_once() {
        let sample = Sample::new("df");
        let text = "x".repeat(100_000);
        let a = sample.version("1", None, &[("a", &text)]);
        sample.version("2", Some(&a), &[("a", &text), ("b", "new")]);
        let usage = Usage::of(&sample.store).unwrap();
        assert_eq!(usage.logical, 200_003);
        assert!(usage.ratio().is_some_and(|r| r > 1.0), "{:?}", usage.parts);
    }

    #[test]
    fn damage_makes_fsck_end_with_5_and_gc_with_an_error() {
        let sample = Sample::new("upkeep");
        let a = sample.version("1", None, &[("a", "text")]);
        let ui = Ui::new(&Global { quiet: true, ..Global::default() });
        let args = Fsck { deep: true, version: None };
        assert_eq!(fsck(&ui, &sample.store, &args).unwrap(), 0);
        std::fs::remove_file(sample.object("text")).unwrap();
        assert_eq!(fsck(&ui, &sample.store, &args).unwrap(), 5);
        let only = Fsck { deep: false, version: Some(format!("office@sha384:{}", a.short())) };
        assert_eq!(fsck(&ui, &sample.store, &only).unwrap(), 5);
        let layer = sample.store.version(&a).unwrap().stack[0];
        std::fs::remove_file(sample.store.layer_path(&layer)).unwrap();
        assert_eq!(gc(&ui, &sample.store, &Gc { dry_run: true }).unwrap_err().exit_status(), 5);
    }
}
