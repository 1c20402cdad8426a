//! Upgrade and rollback, live and between mounts (DESIGN, "The swap, step by step").

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Ask, Told, ask};
use super::session::Running;
use super::{Direction, SwapReport, SwapRequest};
use crate::error::{Doing, Error, Result};
use crate::layer::diff::{self, Change};
use crate::store::desktops::{Choice, Desktop, State};
use crate::store::{Store, audit};
use crate::sys::mount;
use crate::union::View;
use crate::union::lower::Tree;
use crate::union::marks::Namespace;
use crate::union::pins;
use crate::union::swap::{Case, blocking_mount, conflicts};

/// How long a swap waits for requests that began before it. One that takes longer is not waited for.
const DRAIN: Duration = Duration::from_secs(10);

/// Swaps a desktop's stack, live if it is mounted.
pub fn swap(store: &Store, desktop: &Desktop, request: &SwapRequest) -> Result<SwapReport> {
    if let Some(entry) = store.mounted(&desktop.name)? {
        return match ask(&entry.socket, &Ask::Swap(request.clone()))? {
            Told::Swapped(report) => Ok(*report),
            other => Err(Error::Failed(format!("the daemon answered {other:?}"))),
        };
    }
    // A mount that begins meanwhile waits for the claim, or wins it.
    let Some(_claim) = store.claim_mount(&desktop.name)? else {
        return Err(Error::Failed(format!("{} is being mounted; try again", desktop.name)));
    };
    let begin = Instant::now();
    let _in_use = store.in_use()?;
    let held = desktop.lock()?;
    let mut state = desktop.state()?;
    state.complete_pending();
    let (target, plan) = plan(store, desktop, &state, request)?;
    let mut report = plan.report(desktop, &state, &target, request.dry_run, false);
    if !request.dry_run {
        complete_pins(desktop, &state)?;
        state.pending = Some(target);
        state.complete_pending();
        desktop.write_state(&state, &held)?;
        report.generation = state.generation;
        record(store, &report, request.direction);
    }
    report.total_ms = milliseconds(begin.elapsed());
    Ok(report)
}

/// A desktop that is not mounted is about to leave the version that it runs on: the ledger of its pins names that if the
/// user layer needs it.
pub fn complete_pins(desktop: &Desktop, state: &State) -> Result<()> {
    if !desktop.ledger_is_open() {
        return Ok(());
    }
    let user = desktop.user_layer()?;
    let top = crate::sys::fs::open_dir(&user).at("opening the user layer", &user)?;
    pins::complete(desktop, &state.current.version, &top, Namespace::for_process())?;
    desktop.close_ledger()
}

/// What a swap will do.
struct Plan {
    old: Arc<Tree>,
    new: Arc<Tree>,
    changes: Vec<Change>,
    conflicts: Vec<crate::union::swap::Conflict>,
}

impl Plan {
    fn report(
        &self,
        desktop: &Desktop,
        state: &State,
        target: &Choice,
        dry_run: bool,
        live: bool,
    ) -> SwapReport {
        SwapReport {
            desktop: desktop.name.clone(),
            from: state.current.clone(),
            to: target.clone(),
            generation: state.generation,
            live,
            dry_run,
            paths_differing: self.changes.len() as u64,
            invalidated: 0,
            pause_us: 0,
            total_ms: 0.0,
            conflicts: self.conflicts.clone(),
        }
    }
}

/// Steps 1 to 3: nothing has changed when any of them fails.
fn plan(store: &Store, desktop: &Desktop, state: &State, request: &SwapRequest) -> Result<(Choice, Plan)> {
    let target = target(store, desktop, state, request)?;
    if target.version == state.current.version {
        return Err(Error::Nothing(format!(
            "{} runs on {} already",
            desktop.name,
            target.tag.clone().unwrap_or_else(|| target.version.to_string())
        )));
    }
    let old = Tree::open(store, &state.current.version)?;
    let new = Tree::open(store, &target.version)?;
    let changes = diff::diff(&old.index, &new.index)?;
    objects_are_there(store, &new, &changes)?;
    let conflicts = conflicts(store, &desktop.user_layer()?, &changes, &new)?;
    let real = conflicts.iter().filter(|c| c.case != Case::EqualToTarget).count();
    if request.strict && real > 0 && !request.dry_run {
        let list: Vec<String> =
            conflicts.iter().map(|c| format!("  {}: {}", c.path, c.explanation)).collect();
        return Err(Error::Refused(format!(
            "{} has {real} conflicts with the target, and --strict was given; nothing changed\n{}",
            desktop.name,
            list.join("\n")
        )));
    }
    Ok((target, Plan { old, new, changes, conflicts }))
}

fn target(store: &Store, desktop: &Desktop, state: &State, request: &SwapRequest) -> Result<Choice> {
    if let Some(to) = &request.to {
        store.version(&to.version)?;
        return Ok(to.clone());
    }
    match request.direction {
        Direction::Rollback => state.previous.clone().ok_or_else(|| {
            let message =
                format!("{} has no version before this one; name one with --to IMAGE:TAG", desktop.name);
            Error::Nothing(message)
        }),
        Direction::Upgrade => match store.read_ref(&state.image, "latest")? {
            Some(version) => Ok(Choice { version, tag: Some("latest".into()) }),
            None => Err(Error::Failed(format!(
                "the image {} has no tag \"latest\"; name a version with --to IMAGE:TAG",
                state.image
            ))),
        },
    }
}

/// Every object that the target newly needs must be in the store, whole.
fn objects_are_there(store: &Store, new: &Tree, changes: &[Change]) -> Result<()> {
    use rayon::prelude::*;
    changes.par_iter().try_for_each(|change| {
        let Some(node) = change.new.as_ref().filter(|n| n.is_file()) else { return Ok(()) };
        let digest = new.index.object(node)?;
        let path = store.object_path(&digest);
        let len = std::fs::metadata(&path).map(|m| m.len());
        if len.as_ref().ok() != Some(&node.size) {
            return Err(Error::Damaged(format!(
                "the target cannot be shown: the content of {} is {}; run `reroot fsck`. Nothing changed",
                String::from_utf8_lossy(&change.path),
                if len.is_ok() { "damaged" } else { "missing" }
            )));
        }
        Ok(())
    })
}

/// Swaps under a running mount.
pub fn live(running: &Running, request: &SwapRequest) -> Result<SwapReport> {
    let begin = Instant::now();
    let Some(desktop) = &running.desktop else {
        return Err(Error::Usage("a version that is looked into cannot be swapped".into()));
    };
    let _one = running.swapping.lock();
    let store = &running.store;
    let (target, plan, mut report) = {
        let _in_use = store.in_use()?;
        let held = desktop.lock()?;
        let mut state = desktop.state()?;
        // A swap whose last step failed: the view is on its target.
        state.complete_pending();
        let (target, plan) = plan(store, desktop, &state, request)?;
        let report = plan.report(desktop, &state, &target, request.dry_run, true);
        refuse_mounts_beneath(running, desktop, &plan.changes)?;
        if request.dry_run {
            return Ok(SwapReport { total_ms: milliseconds(begin.elapsed()), ..report });
        }
        // From here a crash comes up on the target.
        running.keep_version(&target.version)?;
        running.view.leave_current()?;
        desktop.write_state(&State { pending: Some(target.clone()), ..state }, &held)?;
        (target, plan, report)
    };
    let view = &running.view;
    let paused = Instant::now();
    let old = view.exchange(plan.new.clone());
    report.pause_us = paused.elapsed().as_micros() as u64;
    let draining = Instant::now();
    while !View::drained(&old) && draining.elapsed() < DRAIN {
        std::thread::sleep(Duration::from_micros(50));
    }
    log::debug!("swap: planned and noted in {:?}, drained after {:?}", paused - begin, draining.elapsed());
    // The stack is exchanged: what goes wrong from here on is said, and the swap is finished all the same.
    let mounts = mounts_beneath(running).unwrap_or_else(|e| {
        log::error!("{e}");
        Vec::new()
    });
    let notices = view.notices(&plan.changes, &plan.old, &plan.new, &mounts).unwrap_or_else(|e| {
        log::error!("finding out what the kernel knows: {e}; it is told to ask for everything again");
        view.every_notice(&mounts)
    });
    let telling = Instant::now();
    report.invalidated = running.tell(&notices);
    if View::drained(&old) {
        view.told(old.number + 1);
        running.tell(&view.take_notices());
    } else {
        log::warn!(
            "a request that began before the swap is still running; what it answers is taken back later"
        );
        running.late.lock().push((old, notices.clone()));
    }
    log::debug!("swap: {} notices sent in {:?}", notices.len(), telling.elapsed());
    {
        let held = desktop.lock()?;
        let mut state = desktop.state()?;
        state.pending = Some(target);
        state.complete_pending();
        report.generation = state.generation;
        match desktop.write_state(&state, &held) {
            Ok(()) => view.enter(plan.new.version),
            Err(e) => {
                log::error!("{e}; the swap is done, and what is pending on disk is completed by the next one")
            }
        }
    }
    report.total_ms = milliseconds(begin.elapsed());
    record(store, &report, request.direction);
    Ok(report)
}

/// What is mounted in the view, as paths in it.
fn mounts_beneath(running: &Running) -> Result<Vec<Vec<u8>>> {
    use std::os::unix::ffi::OsStrExt;
    let top = running.entry.lock().mountpoint.clone();
    let table = mount::table().doing("reading the mount table")?;
    let beneath = table.iter().filter_map(|l| l.point.strip_prefix(&top).ok());
    Ok(beneath.map(|p| p.as_os_str().as_bytes().to_vec()).filter(|p| !p.is_empty()).collect())
}

/// A path that goes or changes its type must not carry a mount.
fn refuse_mounts_beneath(running: &Running, desktop: &Desktop, changes: &[Change]) -> Result<()> {
    match blocking_mount(&desktop.user_layer()?, changes, &mounts_beneath(running)?)? {
        None => Ok(()),
        Some(path) => Err(Error::Refused(format!(
            "something is mounted at {}, which the target removes or replaces; unmount it first. Nothing changed",
            running.entry.lock().mountpoint.join(&*String::from_utf8_lossy(&path)).display(),
        ))),
    }
}

fn record(store: &Store, report: &SwapReport, direction: Direction) {
    let what = match direction {
        Direction::Upgrade => "upgrade",
        Direction::Rollback => "rollback",
    };
    audit::append(store, what, report);
}

fn milliseconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}
