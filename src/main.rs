//! The program.

use std::process::ExitCode;
use std::thread::{Builder, JoinHandle};

fn main() -> ExitCode {
    let run = || reroot::cli::run(std::env::args_os());
    // A user name space can be entered only by a process of one thread.
    if std::env::args_os().nth(1).is_some_and(|a| a == "hold-user-namespace") {
        return run();
    }
    // Some work goes down a tree of directories by recursion, and a desktop's user decides how deep that is.
    reroot::sys::process::use_deep_stacks();
    match Builder::new().name("command".into()).spawn(run).map(JoinHandle::join) {
        Ok(Ok(status)) => status,
        _ => ExitCode::FAILURE,
    }
}
