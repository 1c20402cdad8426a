//! Reroot beside its peers: `make bench`, or `cargo bench --bench peers [-- OPTIONS] [WORDS…]`, as root.
//!
//! For each row of the table every peer does the same work on the same tree in turn (A B C D A B C D), with the
//! same state of the caches. What counts is the ratio within a round; printed are the median of the ratios and
//! their range. `--small` takes a tenth of everything, `--rounds N` sets the rounds, `--list` prints the rows.
//! WORDS choose the rows that contain one of them. `--write FILE` puts what was measured into FILE, between the
//! marks of [`page`].
//!
//! All of it takes about twenty minutes on two cores.

mod depth;
mod ground;
mod page;
mod rows;
mod store;
mod table;
mod trees;
mod work;

use std::path::PathBuf;
use std::time::Instant;

use ground::Ground;
use trees::Scale;

/// How the program was called.
struct Call {
    scale: Scale,
    small: bool,
    rounds: usize,
    words: Vec<String>,
    list: bool,
    write: Option<PathBuf>,
}

fn read_call() -> Result<Call, String> {
    let mut out =
        Call { scale: Scale::FULL, small: false, rounds: 5, words: Vec::new(), list: false, write: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {} // cargo's own
            "--small" => (out.scale, out.small) = (Scale::SMALL, true),
            "--list" => out.list = true,
            "--rounds" => {
                let count = words.next().and_then(|w| w.parse().ok()).filter(|n| *n > 0);
                out.rounds = count.ok_or("--rounds takes a number above 0")?;
            }
            "--write" => out.write = Some(words.next().ok_or("--write takes a file")?.into()),
            w if w.starts_with('-') => {
                return Err(format!("{w}: the options are --small, --rounds N, --list, --write FILE"));
            }
            _ => out.words.push(word),
        }
    }
    Ok(out)
}

/// Measures a row and says its lines; under which head they stand.
struct Part {
    name: &'static str,
    head: &'static str,
    measure: Measure,
}

type Measure = Box<dyn Fn(&Ground, &Call) -> Vec<String>>;

fn parts() -> Vec<Part> {
    let part = |name, head, measure: Measure| Part { name, head, measure };
    let mut out: Vec<Part> = page::ROWS
        .iter()
        .map(|row| {
            let measure = Box::new(|ground: &Ground, call: &Call| {
                vec![rows::measure(row, ground, &call.scale, call.rounds)]
            });
            part(row.0, page::PEERS, measure)
        })
        .collect();
    out.push(part(
        "lookup at 1, 10, 100 and 400 layers",
        page::DEPTH,
        Box::new(|ground, call| depth::lookups(ground, call.rounds)),
    ));
    out.push(part(
        "many mounts, one page cache",
        page::SHARING,
        Box::new(|ground, call| vec![depth::sharing(ground, &call.scale)]),
    ));
    out.push(part(
        "work of the store",
        page::STORE,
        Box::new(|ground, call| store::lines(ground, &call.scale, call.rounds.min(3))),
    ));
    out
}

fn main() {
    let call = match read_call() {
        Ok(call) => call,
        Err(text) => {
            eprintln!("peers: {text}");
            std::process::exit(2);
        }
    };
    let wanted = |name: &str| call.words.is_empty() || call.words.iter().any(|w| name.contains(w.as_str()));
    let all = parts();
    let chosen: Vec<&Part> = all.iter().filter(|part| wanted(part.name)).collect();
    if call.list || chosen.is_empty() {
        all.iter().for_each(|part| println!("{}", part.name));
        std::process::exit(if call.list { 0 } else { 2 });
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("peers: mounting overlayfs and emptying caches needs root");
        std::process::exit(1);
    }
    // A page that cannot be written is better known before than after.
    if let Some(path) = &call.write
        && let Err(e) = read(path).and_then(|page| page::parts(&page).map(|_| ()))
    {
        eprintln!("peers: {}: {e}", path.display());
        std::process::exit(1);
    }
    let failed = run(&call, &chosen);
    std::process::exit(if failed { 1 } else { 0 });
}

/// Measures; whether something failed.
fn run(call: &Call, chosen: &[&Part]) -> bool {
    let ground = Ground::new();
    let about = ground.about(call.small, call.rounds);
    println!("{about}");
    let began = Instant::now();
    let mut measured: Vec<(&str, Vec<String>)> = Vec::new();
    let mut failed = false;
    for (i, part) in chosen.iter().enumerate() {
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        eprintln!("[{}/{}, {minutes:.1} min] {}", i + 1, chosen.len(), part.name);
        if measured.last().is_none_or(|(head, _)| *head != part.head) {
            println!("\n{}\n{}", part.head, page::rule(part.head));
            measured.push((part.head, Vec::new()));
        }
        // What fails in one row is no reason to lose the others.
        let work = std::panic::AssertUnwindSafe(|| (part.measure)(&ground, call));
        match std::panic::catch_unwind(work) {
            Ok(lines) => {
                lines.iter().for_each(|line| println!("{line}"));
                measured.last_mut().expect("pushed above").1.extend(lines);
            }
            Err(_) => {
                eprintln!("peers: {} was not measured", part.name);
                failed = true;
            }
        }
    }
    eprintln!("peers: {:.1} minutes", began.elapsed().as_secs_f64() / 60.0);
    if let Some(path) = &call.write {
        let written = read(path).and_then(|page| page::replaced(&page, &about, &measured)).and_then(|page| {
            // For instance that only some of the rows were measured so far.
            page::faults(&page).iter().for_each(|fault| eprintln!("peers: {}: {fault}", path.display()));
            std::fs::write(path, page).map_err(|e| e.to_string())
        });
        if let Err(e) = written {
            eprintln!("peers: {}: {e}", path.display());
            failed = true;
        }
    }
    failed
}

fn read(path: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}
