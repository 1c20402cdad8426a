//! `upgrade` and `rollback`, of one desktop or of many.
//!
//! Of many, each is swapped by itself: one that fails does not stop the others, and the exit status is that of
//! the worst.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::Done;
use super::args::Swap;
use super::desktops::{choice_text, with_labels};
use super::table::count;
use super::ui::{Hue, Text, Ui, error_json};
use crate::daemon::{self, Direction, SwapReport, SwapRequest};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::desktops::{Choice, Desktop};
use crate::store::versions::VersionName;

pub fn upgrade(ui: &Ui, store: &Store, args: &Swap) -> Done {
    swap(ui, store, args, Direction::Upgrade)
}

pub fn rollback(ui: &Ui, store: &Store, args: &Swap) -> Done {
    swap(ui, store, args, Direction::Rollback)
}

/// One desktop's outcome.
struct Outcome {
    desktop: String,
    image: String,
    result: Result<SwapReport>,
}

fn swap(ui: &Ui, store: &Store, args: &Swap, direction: Direction) -> Done {
    let to: Option<VersionName> = args.to.as_deref().map(str::parse).transpose()?;
    // Until a desktop's state names the target, no collection may take it away.
    let _held = store.in_use()?;
    let target = match &to {
        Some(name) => {
            let version = store.resolve(name)?;
            Some((name, Choice { version, tag: name.tag().map(str::to_string) }))
        }
        None => None,
    };
    let one = |name: &str| {
        let image = || store.desktop(name).and_then(|d| Ok((d.state()?.image, d)));
        let result = image().and_then(|(image, desktop)| {
            swap_one(store, &desktop, &image, &target, args, direction).map(|report| (image, report))
        });
        match result {
            Ok((image, report)) => Outcome { desktop: name.into(), image, result: Ok(report) },
            Err(e) => Outcome { desktop: name.into(), image: String::new(), result: Err(e) },
        }
    };
    if let [name] = &args.desktops[..] {
        let outcome = one(name);
        let report = outcome.result?;
        let image = &outcome.image;
        if direction == Direction::Rollback && to.is_none() && is_built_on(store, &report.to, &report.from) {
            ui.note(format!(
                "this goes forward: {} was built on {}; `--to {image}:TAG` names an older version (`reroot log {image}` \
                 lists them)",
                choice_text(image, &report.to),
                choice_text(image, &report.from)
            ));
        }
        ui.answer(
            || serde_json::to_value(&report).unwrap_or_default(),
            |out| report_text(out, image, &report),
        )?;
        return Ok(0);
    }
    let names = chosen(store, args)?;
    let outcomes = at_once(&names, usize::from(args.jobs), &|name| {
        let outcome = one(name);
        if let Err(e) = &outcome.result {
            ui.detail(format!("{name}: {e}"));
        }
        outcome
    });
    ui.answer(|| outcomes.iter().map(outcome_json).collect(), |out| summary(out, &outcomes))?;
    Ok(worst(outcomes.iter().map(|o| o.result.as_ref().map_or_else(Error::exit_status, |_| 0))))
}

/// Whether a version was made from another, at whatever distance.
fn is_built_on(store: &Store, version: &Choice, other: &Choice) -> bool {
    let mut at = store.version(&version.version).ok().and_then(|m| m.parent);
    while let Some(parent) = at {
        if parent == other.version {
            return true;
        }
        at = store.version(&parent).ok().and_then(|m| m.parent);
    }
    false
}

/// The desktops that the arguments choose, each once.
fn chosen(store: &Store, args: &Swap) -> Result<Vec<String>> {
    if !args.desktops.is_empty() {
        let mut seen = std::collections::HashSet::new();
        return Ok(args.desktops.iter().filter(|d| seen.insert(*d)).cloned().collect());
    }
    let names: Vec<String> = with_labels(store, &args.labels)?.into_iter().map(|d| d.name).collect();
    if names.is_empty() {
        let what = if args.all { "there is no desktop" } else { "no desktop has these labels" };
        return Err(Error::Nothing(format!("{what}; `reroot desktops` lists them")));
    }
    Ok(names)
}

fn swap_one(
    store: &Store,
    desktop: &Desktop,
    image: &str,
    target: &Option<(&VersionName, Choice)>,
    args: &Swap,
    direction: Direction,
) -> Result<SwapReport> {
    if let Some((name, _)) = target
        && name.image != image
    {
        return Err(Error::Usage(format!(
            "{} runs the image {image:?}, and {name} is a version of another",
            desktop.name
        )));
    }
    let request = SwapRequest {
        direction,
        to: target.as_ref().map(|(_, choice)| choice.clone()),
        dry_run: args.dry_run,
        strict: args.strict,
    };
    daemon::swap(store, desktop, &request)
}

/// Runs `work` for each item with so many threads; the answers come in the items' order.
fn at_once<T: Send>(items: &[String], threads: usize, work: &(dyn Fn(&str) -> T + Sync)) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The worst of several exit statuses: that a desktop had nothing to do weighs least, damage most.
fn worst(statuses: impl Iterator<Item = u8>) -> u8 {
    const ORDER: [u8; 6] = [0, 3, 4, 1, 2, 5];
    let rank = |s: &u8| ORDER.iter().position(|o| o == s).unwrap_or(ORDER.len());
    statuses.max_by_key(rank).unwrap_or(0)
}

fn outcome_json(outcome: &Outcome) -> Value {
    match &outcome.result {
        Ok(report) => serde_json::to_value(report).unwrap_or_default(),
        Err(e) => json!({ "desktop": outcome.desktop, "error": error_json(e) }),
    }
}

fn summary(out: &mut Text, outcomes: &[Outcome]) {
    for outcome in outcomes {
        match &outcome.result {
            Ok(report) => report_text(out, &outcome.image, report),
            Err(e) => out.marked(Hue::Red, &outcome.desktop, format!(": {e}")),
        }
    }
    let failed = outcomes.iter().filter(|o| matches!(&o.result, Err(e) if e.exit_status() != 3)).count();
    let nothing = outcomes.iter().filter(|o| matches!(&o.result, Err(e) if e.exit_status() == 3)).count();
    out.line(format!(
        "{}: {} done, {nothing} with nothing to do, {failed} failed",
        count(outcomes.len() as u64, "desktop"),
        outcomes.len() - failed - nothing
    ));
}

fn report_text(out: &mut Text, image: &str, report: &SwapReport) {
    let (from, to) = (choice_text(image, &report.from), choice_text(image, &report.to));
    let how = match (report.dry_run, report.live) {
        (true, _) => "would go; nothing was changed".to_string(),
        (false, true) => format!(
            "live, generation {}, {} invalidated, paused {} µs of {:.1} ms",
            report.generation, report.invalidated, report.pause_us, report.total_ms
        ),
        (false, false) => format!("not mounted: the next mount shows it, generation {}", report.generation),
    };
    let differ = if report.paths_differing == 1 { "differs" } else { "differ" };
    out.marked(
        Hue::Bold,
        &report.desktop,
        format!(": {from} → {to}: {how}; {} {differ}", count(report.paths_differing, "path")),
    );
    for c in &report.conflicts {
        out.path_line(None, &format!("  {} ", c.case), c.path.as_bytes());
        out.line(format!("    {}", c.explanation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command, Global};
    use crate::layer::sample::Sample;
    use clap::Parser;

    #[test]
    fn the_worst_status_is_not_the_largest_number() {
        assert_eq!(worst([0, 3, 1, 0].into_iter()), 1);
        assert_eq!(worst([0, 3].into_iter()), 3);
        assert_eq!(worst([4, 1, 5].into_iter()), 5);
        assert_eq!(worst([].into_iter()), 0);
    }

    #[test]
    fn all_items_are_worked_on_and_answer_in_their_order() {
        let items: Vec<String> = (0..50).map(|i| i.to_string()).collect();
        for threads in [1, 4, 100] {
            assert_eq!(at_once(&items, threads, &|i| i.to_string()), items);
        }
    }

    #[test]
    fn desktops_are_chosen_by_name_label_or_all() {
        let sample = Sample::new("chosen");
        let version = sample.version("1", None, &[("a", "1")]);
        for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
            let labels = [("k".to_string(), label.to_string())].into();
            let choice = Choice { version, tag: None };
            sample.store.create_desktop(name, "office", choice, None, labels).unwrap();
        }
        let names = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["reroot", "rollback"][..], words].concat()).unwrap();
            let Command::Rollback(args) = cli.command else { panic!() };
            chosen(&sample.store, &args)
        };
        assert_eq!(names(&["b", "a", "b"]).unwrap(), ["b", "a"]);
        assert_eq!(names(&["--all"]).unwrap(), ["a", "b", "c"]);
        assert_eq!(names(&["-l", "k=x"]).unwrap(), ["a", "c"]);
        assert_eq!(names(&["-l", "k=z"]).unwrap_err().exit_status(), 3);
    }

    #[test]
    fn a_version_of_another_image_is_refused_for_each_desktop() {
        let sample = Sample::new("other");
        let version = sample.version("1", None, &[("a", "1")]);
        let choice = Choice { version, tag: None };
        sample.store.create_desktop("pc", "other", choice, None, Default::default()).unwrap();
        let cli = Cli::try_parse_from(["reroot", "upgrade", "pc", "--to", "office:1"]).unwrap();
        let Command::Upgrade(args) = cli.command else { panic!() };
        let ui = Ui::new(&Global { quiet: true, ..Global::default() });
        assert_eq!(upgrade(&ui, &sample.store, &args).unwrap_err().exit_status(), 2);
    }
}
