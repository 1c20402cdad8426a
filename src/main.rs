//! The program.

fn main() -> std::process::ExitCode {
    // Some work goes down a tree of directories by recursion, and a desktop's user decides how deep that is.
    reroot::sys::process::use_deep_stacks();
    let run = || reroot::cli::run(std::env::args_os());
    match std::thread::Builder::new().name("command".into()).spawn(run).map(std::thread::JoinHandle::join) {
        Ok(Ok(status)) => status,
        _ => std::process::ExitCode::FAILURE,
    }
}
