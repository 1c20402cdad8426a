//! What the comparison puts into BENCHMARKS.md: which rows, what is wanted of them, and in which form.
//!
//! The part between two marks is the program's; `tests/docs.rs` reads it with this file too, so that a table that
//! another program made, or that somebody changed by hand, is noticed.

/// The line before the part, and the one after it.
pub const BEGIN: &str = "<!-- peers: from here to the end mark written by `cargo bench --bench peers -- --write BENCHMARKS.md` -->";
/// See [`BEGIN`].
pub const END: &str = "<!-- peers: end -->";

/// The heads of the tables, in their order.
pub const HEADS: [&str; 4] = [PEERS, DEPTH, SHARING, STORE];
/// The same work by every peer.
pub const PEERS: &str = "| work | native | overlayfs | fuse-overlayfs | Reroot | to overlayfs | wanted | to fuse-overlayfs | wanted |";
/// How cost grows with the depth of the stack.
pub const DEPTH: &str = "| lookup of 2,000 names from empty caches | overlayfs | Reroot | wanted |";
/// Who shares a page cache.
pub const SHARING: &str = "| page cache of the host | read | grows by | wanted |";
/// Import, commit, difference, collection.
pub const STORE: &str =
    "| work of the store | Reroot | | beside it | to that | to `sha384sum`, two at once |";

/// A row of [`PEERS`], and the largest ratios to overlayfs and fuse-overlayfs that are wanted.
pub type Row = (&'static str, Option<f64>, Option<f64>);

/// The rows of [`PEERS`].
pub const ROWS: [Row; 21] = [
    ("walk + stat, cold", Some(0.8), Some(0.3)),
    ("walk + stat, warm", Some(1.0), Some(1.0)),
    ("open + read + close, small base files, warm", Some(2.0), Some(0.6)),
    ("open + read + close, on an inspect mount, warm", Some(0.8), Some(0.3)),
    ("open + read + close, small base files, cold", Some(1.1), Some(0.6)),
    ("sequential read of a large base file, warm", Some(1.02), Some(0.9)),
    ("sequential read of a large base file, cold", Some(1.02), Some(0.9)),
    ("random 4 KiB reads, 4 threads", Some(1.05), Some(0.5)),
    ("random 4 KiB reads through mmap", Some(1.05), Some(0.5)),
    ("sequential write, user layer", Some(1.05), Some(0.5)),
    ("random write, user layer", Some(1.05), Some(0.5)),
    ("append with fsync, 4 KiB", Some(1.1), Some(0.9)),
    ("create small files", Some(2.0), Some(0.5)),
    ("delete a tree of base files", Some(1.5), Some(0.5)),
    ("first write to a large base file", Some(0.01), Some(0.01)),
    ("chown -R over base files", Some(1.0), Some(0.3)),
    ("chmod -R over base files", Some(1.0), Some(0.3)),
    ("rename of a large base directory", Some(1.0), None),
    ("git status", Some(1.1), Some(0.7)),
    ("make -j2 of a C project", Some(1.1), Some(0.7)),
    ("apt-get install in a chroot", Some(1.1), Some(0.7)),
];

/// Layers that [`DEPTH`] compares with the first of them, and how much more the deepest may cost.
pub const DEPTHS: [usize; 4] = [1, 10, 100, 400];
/// See [`DEPTHS`].
pub const FLAT: f64 = 1.05;

/// How a ratio is written: its median, and the range of all rounds.
pub fn ratio(middle: f64, least: f64, most: f64) -> String {
    format!("{middle:.3} ({least:.3}–{most:.3})")
}

/// What was wanted of a ratio, and whether it is so; from what is written of it.
pub fn verdict(ratio: &str, wanted: Option<f64>) -> String {
    let middle = ratio.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    match (wanted, middle) {
        (Some(limit), Some(middle)) if middle <= limit => format!("≤ {limit}"),
        (Some(limit), Some(_)) => format!("≤ {limit}: **missed**"),
        _ => "–".into(),
    }
}

/// The cells of a table's line.
pub fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_start_matches('|').trim_end_matches('|').split('|').map(str::trim).collect()
}

/// The line beneath a table's head.
pub fn rule(head: &str) -> String {
    format!("|{}", "---|".repeat(head.matches('|').count() - 1))
}

/// A page, in three: up to the part and its mark, the part, the rest.
pub fn parts(page: &str) -> Result<(&str, &str, &str), String> {
    let once = |mark: &str| match page.matches(mark).count() {
        1 => page.find(mark).ok_or_else(String::new),
        count => Err(format!("the page has {count} times the line {mark}")),
    };
    let (begin, end) = (once(BEGIN)? + BEGIN.len(), once(END)?);
    if begin > end {
        return Err("the end mark comes before the first".into());
    }
    Ok((&page[..begin], &page[begin..end], &page[end..]))
}

/// The rows of one table of a part; none where it is not there.
pub fn rows<'a>(part: &'a str, head: &str) -> Vec<&'a str> {
    part.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|')).collect()
}

/// The page with another part: new rows take the place of those that begin alike, others stay, so that one row can be
/// measured again.
pub fn replaced(page: &str, about: &str, measured: &[(&str, Vec<String>)]) -> Result<String, String> {
    let (before, part, after) = parts(page)?;
    let mut text = format!("{before}\n{}\n", about.trim());
    for head in HEADS {
        let name = |line: &str| cells(line)[0].to_string();
        let mut lines: Vec<String> = rows(part, head).into_iter().map(str::to_string).collect();
        let new = measured.iter().find(|(h, _)| *h == head).map_or(&[][..], |(_, lines)| lines);
        for line in new {
            match lines.iter_mut().find(|l| name(l) == name(line)) {
                Some(old) => old.clone_from(line),
                None => lines.push(line.clone()),
            }
        }
        if head == PEERS {
            let place = |line: &String| ROWS.iter().position(|(work, ..)| *work == name(line));
            lines.sort_by_key(place);
        }
        text.push_str(&format!("\n{head}\n{}\n", rule(head)));
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text.push_str(after);
    Ok(text)
}

/// What is wrong with the part that a page has.
pub fn faults(page: &str) -> Vec<String> {
    let part = match parts(page) {
        Ok((_, part, _)) => part,
        Err(e) => return vec![e],
    };
    let mut out = Vec::new();
    let lines: Vec<&str> = part.lines().collect();
    let ruled = |i: &usize| lines.get(i + 1).is_some_and(|l| l.starts_with("|---"));
    let heads: Vec<&str> = (0..lines.len()).filter(ruled).map(|i| lines[i]).collect();
    if heads != HEADS {
        out.push(format!("the tables' heads are {heads:#?} and the program makes {HEADS:#?}"));
        return out;
    }
    for head in HEADS {
        for line in rows(part, head) {
            if cells(line).len() != cells(head).len() {
                out.push(format!("as many cells as the head has: {line}"));
            }
        }
    }
    let table = rows(part, PEERS);
    let names: Vec<&str> = table.iter().map(|line| cells(line)[0]).collect();
    // Before the first whole run there is none.
    if !names.is_empty() && names != ROWS.map(|(work, ..)| work) {
        out.push(format!(
            "the rows are {names:#?} and the program measures {:#?}",
            ROWS.map(|(work, ..)| work)
        ));
        return out;
    }
    for (line, (work, overlay, fuse)) in table.iter().zip(ROWS) {
        let cells = cells(line);
        for (ratio, said, wanted) in [(5, 6, overlay), (7, 8, fuse)] {
            let (ratio, said) = (cells.get(ratio).unwrap_or(&""), cells.get(said).unwrap_or(&""));
            if verdict(ratio, wanted) != *said {
                out.push(format!(
                    "{work}: {ratio:?} is said to be {said:?} and is {:?}",
                    verdict(ratio, wanted)
                ));
            }
        }
    }
    if !names.is_empty() && part.contains("--small") {
        out.push("the table is of a quick look (--small)".into());
    }
    out
}
