//! The readers and writers of [`super::stress`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::stress::{Dice, MANY, POOL, VERSIONS, Want, World, content, mode};

pub fn reader(world: &World, seed: u64) {
    let mut dice = Dice(seed * 7919 + 1);
    while !world.stopped() {
        let n = dice.below(MANY);
        let kind = ["same", "mode", "changing", "some"][dice.below(4) as usize];
        let path = if dice.below(5) == 0 { format!("part/{n}/sub/g") } else { format!("{kind}/{n}") };
        match dice.below(8) {
            0..=2 => {
                let (seen, versions) = world.during(|| fs::read(world.join(&path)));
                world.judge("reading", &path, &seen, &versions);
            }
            3 => {
                let path = if dice.below(4) == 0 { "big".into() } else { path };
                held(world, &path, dice.below(20));
            }
            4 => {
                let path = if dice.below(4) == 0 { "big".into() } else { path };
                mapped(world, &path, dice.below(20));
            }
            5 => attributes(world, n),
            6 => listed(world, n),
            _ => types_and_links(world, n),
        }
    }
}

fn held(world: &World, path: &str, wait: u64) {
    let open = || {
        let mut file = File::open(world.join(path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok((file, bytes))
    };
    let (seen, versions) = world.during(open);
    let (file, seen) = match seen {
        Ok((file, bytes)) => (Some(file), Ok(bytes)),
        Err(e) => (None, Err(e)),
    };
    world.judge("opening", path, &seen, &versions);
    let (Some(mut file), Ok(first)) = (file, seen) else { return };
    std::thread::sleep(Duration::from_millis(wait));
    let mut again = Vec::new();
    let result = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut again));
    world.must(&format!("reading the open {path}"), result);
    if again != first {
        world.fail(format!("the open {path} has other bytes now"));
    }
}

fn mapped(world: &World, path: &str, wait: u64) {
    let (file, _) = world.during(|| File::open(world.join(path)));
    let Ok(file) = file else { return };
    let Some(map) = world.must(&format!("mapping {path}"), reroot::sys::map::Map::of(&file)) else { return };
    drop(file);
    std::thread::sleep(Duration::from_millis(wait));
    if !(1..=VERSIONS).any(|v| content(path, v).is_some_and(|c| c == map[..])) {
        world.fail(format!("the mapping of {path} is of no version"));
    }
    world.reads.fetch_add(1, Ordering::Relaxed);
}

pub fn attributes(world: &World, n: u64) {
    let path = format!("mode/{n}");
    let (seen, versions) = world.during(|| fs::symlink_metadata(world.join(&path)).map(|m| m.mode() & 0o777));
    match seen {
        Ok(seen) if versions.iter().any(|v| mode(*v) == seen) => {}
        other => world.fail(format!("the mode of {path}: {other:?}, allowed are {versions:?}")),
    }
    for kind in ["changing", "some"] {
        let path = format!("{kind}/{n}");
        let (seen, versions) = world.during(|| fs::symlink_metadata(world.join(&path)));
        let right = versions.iter().any(|v| match (content(&path, *v), &seen) {
            (Some(c), Ok(m)) => c.len() as u64 == m.len(),
            (None, Err(e)) => e.kind() == io::ErrorKind::NotFound,
            _ => false,
        });
        if !right {
            world
                .fail(format!("attributes of {path}: {:?}, allowed are {versions:?}", seen.map(|m| m.len())));
        }
    }
}

pub fn listed(world: &World, n: u64) {
    let names = |dir: &str| -> io::Result<Vec<String>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(world.join(dir))? {
            out.push(entry?.file_name().into_string().unwrap_or_default());
        }
        out.sort();
        Ok(out)
    };
    let (seen, versions) = world.during(|| names("some"));
    let expected = |v: u64| {
        let all = (0..MANY).filter(|n| content(&format!("some/{n}"), v).is_some()).map(|n| n.to_string());
        let mut all: Vec<String> = all.collect();
        all.sort();
        all
    };
    match &seen {
        Ok(seen) if versions.iter().any(|v| expected(*v) == *seen) => {}
        other => world.fail(format!("the listing of some: {other:?}, allowed are those of {versions:?}")),
    }
    let dir = format!("part/{n}");
    let (seen, versions) = world.during(|| names(&dir));
    let right = versions.iter().any(|v| match (content(&format!("{dir}/f"), *v), &seen) {
        (Some(_), Ok(names)) => names.contains(&"f".to_string()),
        (None, Err(e)) => e.kind() == io::ErrorKind::NotFound,
        // Opened while it was there, listed when it was gone: as after rmdir(2).
        (None, Ok(names)) => names.is_empty() && versions.len() > 1,
        _ => false,
    });
    if !right {
        world.fail(format!("the listing of {dir}: {seen:?}, allowed are those of {versions:?}"));
    }
}

pub fn types_and_links(world: &World, n: u64) {
    let at = world.join(&format!("type/{n}"));
    let (seen, versions) = world.during(|| {
        let kind = fs::symlink_metadata(&at)?.file_type();
        Ok::<_, io::Error>(if kind.is_file() {
            0
        } else if kind.is_dir() {
            1
        } else {
            2
        })
    });
    match seen {
        Ok(seen) if versions.iter().any(|v| (n + v) % 3 == seen) => {}
        other => world.fail(format!("the type of type/{n}: {other:?}, allowed are those of {versions:?}")),
    }
    let (seen, versions) = world.during(|| fs::read_to_string(world.join(&format!("links/{n}b"))));
    let want = |v: u64| if (n + v).is_multiple_of(2) { format!("links {n}") } else { format!("links {n} b") };
    match seen {
        Ok(seen) if versions.iter().any(|v| want(*v) == seen) => {}
        other => world.fail(format!("links/{n}b: {other:?}, allowed are those of {versions:?}")),
    }
}

pub fn writer(world: &World, w: u64, pause: Duration) {
    let mut n = 0;
    let mut own = 0;
    while !world.stopped() {
        if n < POOL {
            change_the_stacks(world, w, n);
            n += 1;
            let until = Instant::now() + pause;
            while Instant::now() < until && !world.stopped() {
                own_files(world, w, own);
                own += 1;
            }
        } else {
            own_files(world, w, own);
            own += 1;
        }
    }
}

/// Copy-ups of every kind, each path once.
fn change_the_stacks(world: &World, w: u64, n: u64) {
    let at = |kind: &str| format!("w{w}/{kind}/{n}");

    let path = at("append");
    let append = || {
        let mut file = OpenOptions::new().append(true).open(world.join(&path))?;
        file.write_all(b"mine")?;
        file.sync_all()
    };
    let (result, versions) = world.during(|| match world.overtaken(append) {
        // The kernel walks again once: an open that two swaps overtake says so.
        (Err(e), swaps) if e.raw_os_error() == Some(libc::ESTALE) && swaps > 1 => append(),
        (result, _) => result,
    });
    if world.must(&format!("appending to {path}"), result).is_some() {
        let seen = fs::read(world.join(&path));
        let stripped = seen.map(|s| s.strip_suffix(b"mine").map(<[u8]>::to_vec).unwrap_or(s));
        if let Some(v) = world.judge("what was appended to,", &path, &stripped, &versions) {
            world.want(&path, Want::Bytes([content(&path, v).unwrap(), b"mine".to_vec()].concat()));
        }
    }

    let path = at("chmod");
    let result = fs::set_permissions(world.join(&path), fs::Permissions::from_mode(0o640));
    if world.must(&format!("chmod of {path}"), result).is_some() {
        world.want(&path, Want::Follows(0o640));
    }

    let (path, to) = (at("rename"), format!("user/{w}/moved-{n}"));
    let (result, versions) = world.during(|| fs::rename(world.join(&path), world.join(&to)));
    if world.must(&format!("renaming {path}"), result).is_some() {
        if let Some(v) = world.judge("what was renamed,", &path, &fs::read(world.join(&to)), &versions) {
            world.want(&to, Want::Bytes(content(&path, v).unwrap()));
        }
        world.want(&path, Want::Gone);
    }

    let (path, to) = (at("link"), format!("user/{w}/link-{n}"));
    // The kernel looks the file up and links it later: where it lost its last name in between, it answers ENOENT, on
    // ext4 beside a rename(2) that replaces the file, here beside a swap. Whoever asks again is given what is there now.
    // On a busy machine several swaps may come in between, one after the other.
    let link = || {
        let mut result = fs::hard_link(world.join(&path), world.join(&to));
        for _ in 0..10 {
            if result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                result = fs::hard_link(world.join(&path), world.join(&to));
            }
        }
        result
    };
    let (result, versions) = world.during(link);
    if world.must(&format!("linking {path}"), result).is_some()
        && let Some(v) = world.judge("what was linked,", &path, &fs::read(world.join(&to)), &versions)
    {
        for name in [&path, &to] {
            world.want(name, Want::Bytes(content(&path, v).unwrap()));
        }
    }

    let path = at("unlink");
    if world.must(&format!("removing {path}"), fs::remove_file(world.join(&path))).is_some() {
        world.want(&path, Want::Gone);
    }

    let (path, to) = (at("dirs"), format!("user/{w}/dir-{n}"));
    let (result, versions) = world.during(|| fs::rename(world.join(&path), world.join(&to)));
    if world.must(&format!("renaming {path}"), result).is_some() {
        let one = world.judge(
            "in what was renamed,",
            &format!("{path}/f"),
            &fs::read(world.join(&format!("{to}/f"))),
            &versions,
        );
        if let Some(v) = one {
            let inner = format!("{path}/sub/g");
            world.judge("in what was renamed,", &inner, &fs::read(world.join(&format!("{to}/sub/g"))), &[v]);
            world.want(&format!("{to}/f"), Want::Bytes(content(&format!("{path}/f"), v).unwrap()));
            world.want(&format!("{to}/sub/g"), Want::Bytes(content(&inner, v).unwrap()));
        }
    }

    // A directory that not every version has.
    let path = format!("w{w}/part/{n}/own");
    let (result, versions) = world.during(|| fs::write(world.join(&path), &path));
    let missing = versions.iter().any(|v| content(&format!("w{w}/part/{n}/f"), *v).is_none());
    match result {
        Ok(()) => world.want(&path, Want::Bytes(path.clone().into_bytes())),
        Err(e) if e.kind() == io::ErrorKind::NotFound && missing => {}
        Err(e) => world.fail(format!("making {path}: {e}, allowed are {versions:?}")),
    }
}

/// Files that only the user has, in a directory of the user's and in one of the stack.
fn own_files(world: &World, w: u64, n: u64) {
    let bytes = format!("{w} {n} ").repeat(1 + n as usize % 300).into_bytes();
    let (temporary, path) = (format!("user/{w}/tmp"), format!("w{w}/append/own-{}", n % 50));
    let result = (|| {
        let mut file = File::create(world.join(&temporary))?;
        file.write_all(&bytes)?;
        if n.is_multiple_of(16) {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(world.join(&temporary), world.join(&path))
    })();
    if world.must(&format!("writing {path}"), result).is_some() {
        world.want(&path, Want::Bytes(bytes.clone()));
    }
    match fs::read(world.join(&path)) {
        Ok(seen) if seen == bytes => {}
        other => world.fail(format!("reading back {path}: {:?}", other.map(|b| b.len()))),
    }
    let path = format!("w{w}/chmod/made-{}", n % 20);
    if n % 40 < 20 {
        if let Some(()) = world.must(&format!("mkdir {path}"), fs::create_dir(world.join(&path))) {
            let inner = format!("{path}/in");
            if world.must(&format!("writing {inner}"), fs::write(world.join(&inner), &inner)).is_some() {
                world.want(&inner, Want::Bytes(inner.clone().into_bytes()));
            }
        }
    } else if let Some(()) = world.must(&format!("removing {path}"), fs::remove_dir_all(world.join(&path))) {
        world.want(&format!("{path}/in"), Want::Gone);
    }
}
