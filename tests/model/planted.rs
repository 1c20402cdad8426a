//! The program with the faults of `union/plant.rs`, one of which `REROOT_PLANT` plants.

use std::process::ExitCode;

fn main() -> ExitCode {
    reroot::cli::run(std::env::args_os())
}
