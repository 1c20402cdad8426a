//! Reroot beside its peers: `make bench`, or `cargo bench --bench peers [-- OPTIONS] [WORDS…]`, as root.
//!
//! For each row of the table every peer does the same work on the same tree in turn (A B C D A B C D), with the
//! same state of the caches. What counts is the ratio within a round; printed are the median of the ratios and
//! their range. `--small` takes a tenth of everything, `--rounds N` sets the rounds, `--list` prints the rows.
//! WORDS choose the rows that contain one of them.

mod depth;
mod ground;
mod rows;
mod table;
mod trees;
mod work;

use ground::Ground;
use trees::Scale;

const DEPTH: &str = "lookup at 1, 10, 100 and 400 layers";
const SHARING: &str = "many mounts, one page cache";

/// How the program was called.
struct Call {
    scale: Scale,
    rounds: usize,
    words: Vec<String>,
    list: bool,
}

fn read_call() -> Result<Call, String> {
    let mut out = Call { scale: Scale::FULL, rounds: 7, words: Vec::new(), list: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {} // cargo's own
            "--small" => out.scale = Scale::SMALL,
            "--list" => out.list = true,
            "--rounds" => {
                let count = words.next().and_then(|w| w.parse().ok()).filter(|n| *n > 0);
                out.rounds = count.ok_or("--rounds takes a number above 0")?;
            }
            w if w.starts_with('-') => {
                return Err(format!("{w}: the options are --small, --rounds N, --list"));
            }
            _ => out.words.push(word),
        }
    }
    Ok(out)
}

fn main() {
    let call = match read_call() {
        Ok(call) => call,
        Err(text) => {
            eprintln!("peers: {text}");
            std::process::exit(2);
        }
    };
    let chosen: Vec<_> = rows::ROWS
        .iter()
        .filter(|row| call.words.is_empty() || call.words.iter().any(|w| row.name.contains(w.as_str())))
        .collect();
    let wants = |name: &str| call.words.is_empty() || call.words.iter().any(|w| name.contains(w.as_str()));
    let (depth, sharing) = (wants(DEPTH), wants(SHARING));
    if call.list || (chosen.is_empty() && !depth && !sharing) {
        for name in rows::ROWS.iter().map(|row| row.name).chain([DEPTH, SHARING]) {
            println!("{name}");
        }
        std::process::exit(if call.list { 0 } else { 2 });
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("peers: mounting overlayfs and emptying caches needs root");
        std::process::exit(1);
    }
    let ground = Ground::new();
    if !chosen.is_empty() {
        println!("{}", table::HEAD);
        println!("|{}", "---|".repeat(table::HEAD.matches('|').count() - 1));
    }
    for row in chosen {
        eprintln!("{}", row.name);
        row.run(&ground, &call.scale, call.rounds);
    }
    if depth {
        eprintln!("{DEPTH}");
        depth::lookups(&ground, call.rounds);
    }
    if sharing {
        eprintln!("{SHARING}");
        depth::sharing(&ground, &call.scale);
    }
}
