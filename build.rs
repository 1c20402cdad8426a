//! Makes man pages and shell completions from the command line's definition, into `$REROOT_GEN_DIR` (else
//! `target/gen`, where `make install` finds them).

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;

#[path = "src/cli/args.rs"]
#[allow(dead_code)]
mod args;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli/args.rs");
    println!("cargo::rerun-if-env-changed=REROOT_GEN_DIR");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    generate(&out)?;
    // OUT_DIR is target/<profile>/build/<package>/out.
    let named = std::env::var_os("REROOT_GEN_DIR").filter(|d| !d.is_empty()).map(PathBuf::from);
    match named.or_else(|| Some(out.ancestors().nth(4)?.join("gen"))) {
        Some(dir) => generate(&dir),
        None => Ok(()),
    }
}

fn generate(dir: &Path) -> io::Result<()> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for dir in [&man, &completions] {
        std::fs::create_dir_all(dir)?;
    }
    clap_mangen::generate_to(args::Cli::command(), &man)?;
    // Names that the system's directories expect.
    for (shell, name) in [(Shell::Bash, "reroot"), (Shell::Zsh, "_reroot"), (Shell::Fish, "reroot.fish")] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut args::Cli::command(), "reroot", &mut text);
        std::fs::write(completions.join(name), text)?;
    }
    Ok(())
}
