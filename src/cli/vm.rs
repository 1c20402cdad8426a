//! `vm run`, `vm snippet`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Done;
use super::args::{VmRun, VmShare, VmSnippet};
use super::ui::Ui;
use crate::error::{Doing, Error};
use crate::store::Store;
use crate::vm::{self, Accelerator, Cache, Ending, Guest};

/// The guest's processors where nothing is said.
const PROCESSORS: usize = 2;

pub fn run(ui: &Ui, store: &Store, args: &VmRun) -> Done {
    let here = std::thread::available_parallelism().map_or(1, usize::from);
    let guest = Guest {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        append: args.line.append.clone(),
        memory: args.memory,
        cpus: args.cpus.unwrap_or(PROCESSORS.min(here) as u16),
        accelerator: args
            .accel
            .as_deref()
            .map(|a| if a == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg }),
        timeout: args.timeout.map(Duration::from_secs),
        virtiofsd: args.root.virtiofsd.clone(),
        cache: cache(&args.root.cache),
        mountpoint: args.mountpoint.clone(),
        options: args.qemu.clone(),
        interactive: !ui.is_json() && std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
    };
    let console: Box<dyn std::io::Write + Send> =
        if ui.is_json() { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) };
    let begin = Instant::now();
    let ending = vm::run(store, &args.desktop, &guest, console, &mut |line| ui.note(line))?;
    let (word, text) = match ending {
        Ending::PoweredOff => ("powered-off", "powered off".to_string()),
        Ending::Reset => ("reset", "reset its machine: it rebooted, or its kernel panicked".into()),
        Ending::Panicked => ("panicked", "ended with a panic of its kernel".into()),
        Ending::TimedOut => {
            ("timed-out", format!("was ended after {} seconds", args.timeout.unwrap_or_default()))
        }
        Ending::Stopped => ("stopped", "was stopped before it had powered off".into()),
    };
    if ui.is_json() {
        let seconds = begin.elapsed().as_secs_f64();
        ui.answer(|| json!({ "desktop": args.desktop, "ending": word, "seconds": seconds }), |_| {})?;
    }
    ui.note(format!("the guest {text}"));
    Ok(u8::from(ending != Ending::PoweredOff))
}

pub fn snippet(ui: &Ui, store: &Store, args: &VmSnippet) -> Done {
    let desktop = store.desktop(&args.desktop)?;
    let mountpoint: PathBuf = match &args.mountpoint {
        Some(given) => std::path::absolute(given).at("finding the mount point", given)?,
        None => {
            let none = || {
                Error::Nothing(format!(
                    "{} is not mounted; say with --mountpoint DIR where it will be",
                    desktop.name
                ))
            };
            store.mounted(&desktop.name)?.ok_or_else(none)?.mountpoint
        }
    };
    let (store, name) = (store.root(), &desktop.name);
    let virtiofsd = args.root.virtiofsd.as_deref();
    let s = vm::snippet(store, name, &mountpoint, virtiofsd, cache(&args.root.cache), &args.line.append);
    ui.answer(
        || json!({ "metadata": s.metadata, "memory_backing": s.memory, "filesystem": s.filesystem, "command_line": s.command_line }),
        |out| {
            out.line("<!-- in <domain> -->");
            out.line(&s.metadata);
            out.line(&s.memory);
            out.line("<!-- in <devices> -->");
            out.line(&s.filesystem);
            out.line("<!-- in <os>, beside <kernel> and an <initrd> that mounts virtiofs -->");
            out.line(format!("<cmdline>{}</cmdline>", vm::escaped(&s.command_line)));
        },
    )?;
    Ok(0)
}

pub fn share(store: &Store, args: &VmShare) -> Done {
    Err(vm::share(store, &args.desktop, args.root.virtiofsd.as_deref(), cache(&args.root.cache)))
}

fn cache(word: &str) -> Cache {
    if word == "always" { Cache::Always } else { Cache::Auto }
}
