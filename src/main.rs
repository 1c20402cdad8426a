//! The program.

fn main() -> std::process::ExitCode {
    reroot::cli::run(std::env::args_os())
}
