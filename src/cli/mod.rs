//! What people and scripts see: arguments, tables, progress, JSON, exit statuses.
//!
//! Each command is a short function that calls the module that does the work, and says the result through
//! `Ui`. Nothing is decided here that another front end would have to decide again.

pub mod args;

mod desktops;
mod export;
mod history;
mod images;
mod import;
mod mounts;
mod overlay;
mod progress;
mod show;
mod swap;
mod table;
mod ui;
mod upkeep;
mod user_layer;
mod vm;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, Global, Vm};
use ui::Ui;

use crate::error::{Doing, Error, Result};
use crate::store::Store;

/// Runs the program and gives back its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return wrong_usage(&args, &e),
    };
    let ui = Ui::new(&cli.global);
    let status = match dispatch(&ui, &cli) {
        Ok(status) => status,
        Err(e) => {
            ui.error(&e);
            e.exit_status()
        }
    };
    ExitCode::from(ui.finish(status))
}

/// What a command ends with: its exit status.
type Done = Result<u8>;

fn dispatch(ui: &Ui, cli: &Cli) -> Done {
    match &cli.command {
        // Before anything that may begin a thread or touch a store.
        Command::HoldUserNamespace => {
            crate::sys::mount::hold_user_namespace().doing("entering a user name space")?;
            return Ok(0);
        }
        Command::Serve => {
            crate::daemon::serve()?;
            return Ok(0);
        }
        Command::BootServe => {
            crate::boot::serve()?;
            return Ok(0);
        }
        Command::BootRoot(a) => {
            if let Some(desktop) = crate::boot::mount_root(&a.mountpoint)? {
                ui.note(format!("the root is the desktop {desktop}"));
            }
            return Ok(0);
        }
        // These belong to no store.
        Command::Overlay(a) => {
            ui::begin_log(&cli.global);
            return overlay::overlay(ui, a);
        }
        Command::MountHelper(a) => return overlay::mount_helper(&cli.global, a),
        Command::UmountHelper(a) => return overlay::umount_helper(&cli.global, a),
        _ => {}
    }
    ui::begin_log(&cli.global);
    let store = Store::open(&store_path(&cli.global)?)?;
    let store = &store;
    ui.detail(format!("the store is {}", store.root().display()));
    match &cli.command {
        Command::Import(a) => import::import(ui, store, a),
        Command::Export(a) => export::export(ui, store, a),
        Command::Images => images::images(ui, store),
        Command::Tag(a) => images::tag(ui, store, a),
        Command::Untag(a) => images::untag(ui, store, a),
        Command::Squash(a) => images::squash(ui, store, a),
        Command::Show(a) => show::show(ui, store, a),
        Command::Diff(a) => show::diff(ui, store, a),
        Command::Log(a) => history::log(ui, store, a),
        Command::Fsck(a) => upkeep::fsck(ui, store, a),
        Command::Gc(a) => upkeep::gc(ui, store, a),
        Command::Df => upkeep::df(ui, store),
        Command::Inspect(a) => mounts::inspect(ui, store, a),
        Command::Mount(a) => mounts::mount(ui, store, a),
        Command::Umount(a) => mounts::umount(ui, store, a),
        Command::Create(a) => desktops::create(ui, store, a),
        Command::Desktops(a) => desktops::desktops(ui, store, a),
        Command::Status(a) => desktops::status(ui, store, a),
        Command::Rm(a) => desktops::rm(ui, store, a),
        Command::Commit(a) => user_layer::commit(ui, store, a),
        Command::Settle(a) => user_layer::settle(ui, store, a),
        Command::Changes(a) => user_layer::changes(ui, store, a),
        Command::Upgrade(a) => swap::upgrade(ui, store, a),
        Command::Rollback(a) => swap::rollback(ui, store, a),
        Command::Vm(Vm::Run(a)) => vm::run(ui, store, a),
        Command::Vm(Vm::Share(a)) => vm::share(store, a),
        Command::Vm(Vm::Snippet(a)) => vm::snippet(ui, store, a),
        Command::Serve
        | Command::BootServe
        | Command::BootRoot(_)
        | Command::HoldUserNamespace
        | Command::Overlay(_)
        | Command::MountHelper(_)
        | Command::UmountHelper(_) => Ok(0),
    }
}

/// Help and version are results; anything else that the parser refuses is wrong usage.
fn wrong_usage(args: &[OsString], e: &clap::Error) -> ExitCode {
    if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A reader that has gone away is no failure.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let json = args.iter().take_while(|a| *a != "--").any(|a| a == "--json");
    if json {
        let ui = Ui::new(&Global { json: true, ..Global::default() });
        let text = e.render().to_string();
        let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
        ui.error(&Error::Usage(text.to_string()));
        return ExitCode::from(ui.finish(2));
    }
    let _ = e.print();
    ExitCode::from(2)
}

fn store_path(global: &Global) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    choose_store(global.store.clone(), crate::boot::store(), crate::sys::process::is_root(), &set)
}

/// `--store`, else `$REROOT_STORE`, else the one that this machine runs from, else the place for root or for this user.
fn choose_store(
    given: Option<PathBuf>,
    booted: Option<PathBuf>,
    root: bool,
    set: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<PathBuf> {
    if let Some(path) = given.or_else(|| set("REROOT_STORE")).or(booted) {
        return Ok(path);
    }
    if root {
        return Ok("/var/lib/reroot".into());
    }
    // The XDG specification says that a relative path is to be ignored.
    if let Some(data) = set("XDG_DATA_HOME").filter(|p| p.is_absolute()) {
        return Ok(data.join("reroot"));
    }
    match set("HOME") {
        Some(home) => Ok(home.join(".local/share/reroot")),
        None => Err(Error::Usage("no store: give --store DIR or set REROOT_STORE ($HOME is not set)".into())),
    }
}

#[cfg(test)]
mod tests;
