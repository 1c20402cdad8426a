//! Who may import whom, who may be unsafe, and who may know of fuser: DESIGN's table, held against the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The table: each part, and what it may import besides `error`, `metrics` and `sys`.
const MAY_IMPORT: [(&str, &[&str]); 14] = [
    ("sys", &[]),
    ("error", &[]),
    ("metrics", &[]),
    ("store", &[]),
    ("trust", &["store"]),
    ("layer", &["store"]),
    ("transfer", &["layer", "store", "trust"]),
    ("union", &["layer", "store"]),
    ("health", &["store", "trust"]),
    ("fuse", &["union"]),
    ("daemon", &["fuse", "union", "layer", "health", "store", "trust"]),
    ("vm", &["daemon", "store"]),
    ("boot", &["daemon", "store"]),
    ("cli", &["daemon", "layer", "transfer", "store", "trust", "health", "vm", "boot"]),
];

/// Parts that everybody but themselves may import.
const COMMON: [&str; 3] = ["error", "metrics", "sys"];

fn source() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut todo, mut out) = (vec![root.clone()], Vec::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                out.push((path.strip_prefix(&root).unwrap().to_path_buf(), code_of(&text)));
            }
        }
    }
    assert!(out.len() > 10, "the source was not found");
    out
}

/// The text with comments and the contents of string and character literals blanked out, line by line the same.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    // Puts one character of what is blanked out.
    let blank = |c: char, out: &mut String| out.push(if c == '\n' { '\n' } else { ' ' });
    while i < chars.len() {
        let c = at(i);
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                if at(i) == '/' && at(i + 1) == '*' {
                    depth += 1;
                    i += 2;
                } else if at(i) == '*' && at(i + 1) == '/' {
                    depth -= 1;
                    i += 2;
                } else {
                    blank(at(i), &mut out);
                    i += 1;
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == 'r' && !word_before && raw_string(&chars, i).is_some() {
            let end = raw_string(&chars, i).unwrap_or(i + 1);
            while i < end {
                blank(at(i), &mut out);
                i += 1;
            }
        } else if c == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                if at(i) == '\\' {
                    blank(' ', &mut out);
                    i += 1;
                }
                blank(at(i), &mut out);
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while i < chars.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
        } else {
            out.push(c);
            i += 1;
        }
    }
    out
}

/// Where the raw string that begins at `i` ends, if one does.
fn raw_string(chars: &[char], i: usize) -> Option<usize> {
    let hashes = chars.get(i + 1..)?.iter().take_while(|c| **c == '#').count();
    let body = i + 1 + hashes;
    if chars.get(body) != Some(&'"') {
        return None;
    }
    (body + 1..chars.len())
        .find(|at| {
            chars.get(*at) == Some(&'"')
                && chars.get(at + 1..at + 1 + hashes).is_some_and(|h| h.iter().all(|c| *c == '#'))
        })
        .map(|at| at + 1 + hashes)
}

/// The part that a file belongs to; `None` for `lib.rs` and `main.rs`, which tie the parts together.
fn part_of(file: &Path) -> Option<String> {
    let first = file.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(name, "lib" | "main")).then(|| name.to_string())
}

/// Every part that the code names through `crate::` or `reroot::`, with the line.
fn named_parts(code: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for prefix in ["crate::", "reroot::"] {
        for (at, _) in code.match_indices(prefix) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => out.extend(heads(list).into_iter().map(|h| (line, h))),
                None => out.push((line, word(rest).to_string())),
            }
        }
    }
    out
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first word of each item of a `{…}` list whose opening brace has been read.
fn heads(list: &str) -> Vec<String> {
    let (mut out, mut depth, mut fresh) = (Vec::new(), 1, true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => fresh = true,
            c if fresh && depth == 1 && !c.is_whitespace() => {
                out.push(word(&list[at..]).to_string());
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    out
}

#[test]
fn every_part_imports_only_what_the_table_allows() {
    let table: BTreeMap<&str, BTreeSet<&str>> = MAY_IMPORT
        .iter()
        .map(|(part, list)| {
            let mut allowed: BTreeSet<&str> = list.iter().copied().collect();
            allowed.insert(part);
            if !COMMON.contains(part) {
                allowed.extend(COMMON);
            }
            (*part, allowed)
        })
        .collect();
    let mut wrong = Vec::new();
    for (file, code) in source() {
        let Some(part) = part_of(&file) else { continue };
        let Some(allowed) = table.get(part.as_str()) else {
            wrong.push(format!("src/{}: the table does not know the part {part}", file.display()));
            continue;
        };
        for (line, named) in named_parts(&code) {
            // Names at the top of the crate that are no part (a macro, a re-export) are not layering.
            if table.contains_key(named.as_str()) && !allowed.contains(named.as_str()) {
                wrong.push(format!("src/{}:{line}: {part} may not import {named}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_sys_is_unsafe_and_makes_system_calls() {
    let mut wrong = Vec::new();
    for (file, code) in source() {
        if part_of(&file).as_deref() == Some("sys") {
            continue;
        }
        for (i, line) in code.lines().enumerate() {
            let place = || format!("src/{}:{}", file.display(), i + 1);
            if words(line).any(|w| w == "unsafe") {
                wrong.push(format!("{}: unsafe", place()));
            }
            if words(line).any(|w| w == "rustix") {
                wrong.push(format!("{}: names rustix", place()));
            }
            // Constants and types of libc are plain numbers and allowed; a call is a lower-case name and `(`.
            for (at, _) in line.match_indices("libc::") {
                let rest = &line[at + "libc::".len()..];
                let name = word(rest);
                let is_call = rest[name.len()..].trim_start().starts_with('(');
                if is_call && name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    wrong.push(format!("{}: calls libc::{name}", place()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_adapter_and_the_session_know_fuser() {
    let mut wrong = Vec::new();
    for (file, code) in source() {
        if file == Path::new("fuse.rs") || file.starts_with("fuse") || file == Path::new("daemon/session.rs")
        {
            continue;
        }
        for (i, line) in code.lines().enumerate() {
            if words(line).any(|w| w == "fuser") {
                wrong.push(format!("src/{}:{}: names fuser", file.display(), i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

#[test]
fn the_scanner_sees_what_it_should() {
    let code = code_of(
        "use crate::{store::{Digest, Store}, layer}; // crate::cli\nlet a = \"crate::fuse\";\n'\"' b",
    );
    let named: Vec<String> = named_parts(&code).into_iter().map(|(_, n)| n).collect();
    assert_eq!(named, ["store", "layer"]);
    assert!(code.ends_with(" b"), "{code:?}");
    let raw = code_of("let x = r#\"unsafe \" fuser\"#; crate::sys::fs()");
    assert_eq!(named_parts(&raw), [(1, "sys".to_string())]);
    assert!(!raw.contains("unsafe"));
    assert!(named_parts("my_crate::cli").is_empty());
}
