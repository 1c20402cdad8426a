//! What needs a user layer as a whole: changes, settle, commit.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use parking_lot::Mutex;

use super::control::{Ask, Told, ask};
use super::{CommitRequest, Committed, Missing, Settled, UserChange};
use crate::error::{Doing, Error, Result};
use crate::layer::model::{Content, Draft, InodeId, ROOT, join};
use crate::layer::stack::{Words, checked_tree, publish_version};
use crate::layer::{encode, merge};
use crate::store::desktops::{Choice, Desktop, State};
use crate::store::objects::Intake;
use crate::store::{Digest, Progress, Store, audit};
use crate::sys::fs as sys;
use crate::union::completion::Pieces;
use crate::union::lower::{Objects, Stack, Tree};
use crate::union::partial::Merged;
use crate::union::survey::{digest_of, lay_over, letters, open_for_reading, open_partial};
use crate::union::upper::{UserLayer, discard};
use crate::union::{Data, Library, Settings, View};

/// The state that the desktop shows, or that its next mount will show: a swap that was cut off counts as done.
fn shown_state(store: &Store, desktop: &Desktop) -> Result<State> {
    let mounted = store.mounted(&desktop.name)?.is_some();
    let mut state = desktop.state()?;
    if !mounted {
        state.complete_pending();
    }
    Ok(state)
}

/// What the user layer holds against its version, sorted by path.
pub fn changes(store: &Store, desktop: &Desktop) -> Result<Vec<UserChange>> {
    let tree = Tree::open(store, &shown_state(store, desktop)?.current.version)?;
    let old = encode::decode(&tree.index)?;
    // A file that was copied up and has the length that it had is read to find out. No other one is: any digest
    // that no content has will do.
    let mut own = |path: &[u8], handle: &std::os::fd::OwnedFd, stat: &sys::Stat| {
        let below = tree.index.find(path)?;
        if below.is_none_or(|n| !n.is_file() || n.size != stat.size) {
            return Ok(Digest::of(path));
        }
        digest_of(store, handle)
    };
    let new = lay_over(store, &tree, &desktop.user_layer()?, &mut own)?;
    let change = |(raw, letter): (Vec<u8>, char)| UserChange {
        path: String::from_utf8_lossy(&raw).into_owned(),
        raw,
        letter,
    };
    Ok(letters(&old, &new).into_iter().map(change).collect())
}

/// Bytes that the user layer takes on disk.
pub fn user_layer_bytes(dir: &Path) -> Result<u64> {
    let top = sys::open_dir(dir).at("opening the user layer", dir)?;
    let own = sys::stat(&top).at("reading the user layer", dir)?.blocks * 512;
    Ok(sys::disk_usage(top).at("reading the user layer", dir)?.saturating_sub(own))
}

/// What is still to be copied of files that were copied up in pieces. Without a running mount only their number is known.
pub fn missing(store: &Store, desktop: &Desktop) -> Result<Missing> {
    if let Some(entry) = store.mounted(&desktop.name)?
        && let Told::Missing(missing) = ask(&entry.socket, &Ask::Missing)?
    {
        return Ok(missing);
    }
    let work = desktop.work_dir()?;
    let files = crate::union::completion::entries(&work).at("reading", &work)?;
    Ok(Missing { files, ..Missing::default() })
}

/// Claims a desktop that must not be mounted.
fn unmounted(store: &Store, desktop: &Desktop, what: &str) -> Result<crate::store::mounts::MountClaim> {
    store.claim_mount(&desktop.name)?.ok_or_else(|| {
        Error::Failed(format!(
            "{0} is mounted; `reroot umount {0}` first: {what} needs the user layer at rest",
            desktop.name
        ))
    })
}

/// Completes what is lazy in the user layer. The desktop must not be mounted.
pub fn settle(store: &Store, desktop: &Desktop, progress: &dyn Progress) -> Result<Settled> {
    let _claim = unmounted(store, desktop, "settling")?;
    let _in_use = store.in_use()?;
    let held = desktop.lock()?;
    let mut state = desktop.state()?;
    if state.complete_pending() {
        desktop.write_state(&state, &held)?;
    }
    crate::sys::process::clear_umask();
    let tree = Tree::open(store, &state.current.version)?;
    let user = UserLayer::open(desktop, libc::MOUNT_ATTR_NOATIME)?;
    let objects = Objects::open(store)?;
    let pieces = Pieces { from: u64::MAX, ..Pieces::default() };
    let settings = Settings { read_only: false, data: Data::Coherent, metacopy: true, pieces };
    let io = |e: crate::union::Fail| {
        Error::Io("settling the user layer".into(), std::io::Error::from_raw_os_error(e.0))
    };
    let library = Some(Library { store: store.clone(), objects: Arc::new(objects) });
    let view =
        View::new(library, Some(user), Stack::Version(tree), state.generation, settings).map_err(io)?;
    progress.begin("settling", None);
    let mut at = Vec::new();
    let done = view.settle(&mut at, &|bytes| progress.advance(1, bytes)).map_err(|e| {
        let shown = String::from_utf8_lossy(&at);
        match e.0 {
            libc::EUCLEAN => Error::Damaged(format!(
                "{shown} in the user layer has marks that cannot be right (`getfattr -d -m reroot` shows them); \
                 what was settled before it stays so, the rest is as it was"
            )),
            errno => Error::Io(format!("settling {shown}"), std::io::Error::from_raw_os_error(errno)),
        }
    })?;
    view.close().map_err(io)?;
    // Nothing stands on older versions any more.
    desktop.replace_pins(&BTreeSet::new())?;
    Ok(Settled { files_completed: done.files, bytes_copied: done.bytes, set_aside: done.aside })
}

/// Makes what the user layer changed the next delta, named `image:tag`.
pub fn commit(
    store: &Store,
    desktop: &Desktop,
    image: &str,
    tag: &str,
    request: &CommitRequest,
    progress: &dyn Progress,
) -> Result<Committed> {
    crate::store::check_name("an image", image)?;
    crate::store::check_name("a tag", tag)?;
    let patterns = request.only.iter().map(|p| Pattern::new(p)).collect::<Result<Vec<_>>>()?;
    let claim = if request.reset { Some(unmounted(store, desktop, "--reset")?) } else { None };
    let _in_use = store.in_use()?;
    if claim.is_none()
        && let Some(entry) = store.mounted(&desktop.name)?
    {
        ask(&entry.socket, &Ask::Complete)?;
        ask(&entry.socket, &Ask::Sync)?;
    }
    let state = shown_state(store, desktop)?;
    let parent = store.version(&state.current.version)?;
    let tree = Tree { version: state.current.version, index: checked_tree(store, &parent)? };
    let user = desktop.user_layer()?;
    let intake = Intake::begin(store)?;
    progress.begin("reading the user layer", None);
    let (mut full, bytes) = take_in(store, &intake, &tree, &user, &patterns, progress)?;
    if shown_state(store, desktop)? != state {
        return Err(Error::Failed(format!(
            "{} was swapped while it was read; nothing was committed, commit again",
            desktop.name
        )));
    }
    let old = encode::decode(&tree.index)?;
    let mut delta = merge::delta(&old, &full);
    if !patterns.is_empty() {
        keep_only(&mut delta, &old, &patterns);
        full = old.clone();
        merge::apply(&mut full, &delta);
    }
    let new_bytes = intake.new_bytes();
    intake.finish()?;
    let words = Words { message: request.message.clone(), ..Words::default() };
    let published = publish_version(store, Some((&state.current.version, &parent)), &full, words)?;
    let Some((version, _)) = published else {
        return Err(Error::Nothing(format!("{} holds nothing to commit", desktop.name)));
    };
    let paths = (delta.walk().len() as u64).saturating_sub(1);
    store.write_ref(image, tag, &version)?;
    let mut done = Committed { version, paths, bytes, new_bytes, reset: 0 };
    if request.reset {
        done.reset = reset(desktop, version, image, tag, &patterns)?;
    }
    audit::append(store, "commit", &done);
    Ok(done)
}

/// A file of the user layer on its way into the store, and the digest that stands for its own meanwhile.
struct Waiting {
    stand_in: Digest,
    shown: String,
    file: File,
    partial: Option<Merged>,
    stat: sys::Stat,
}

/// What the user layer shows, with its contents in the store, and how many bytes those have. One thread looks through the user
/// layer; the others read and hash what it finds.
fn take_in(
    store: &Store,
    intake: &Intake<'_>,
    tree: &Tree,
    user: &Path,
    patterns: &[Pattern],
    progress: &dyn Progress,
) -> Result<(Draft, u64)> {
    let bytes = AtomicU64::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let digests: Mutex<HashMap<Digest, Digest>> = Mutex::default();
    // Each that waits is an open file.
    let (to_readers, found) = mpsc::sync_channel::<Waiting>(64);
    let found = Mutex::new(found);
    let next = || found.lock().recv();
    let read_all = || {
        while let Ok(waiting) = next() {
            // After a failure only until the other side has heard of it.
            if failed.lock().is_some() {
                continue;
            }
            let (stand_in, size) = (waiting.stand_in, waiting.stat.size);
            match take_one(intake, waiting, progress) {
                Ok(digest) => {
                    digests.lock().insert(stand_in, digest);
                    bytes.fetch_add(size, Ordering::Relaxed);
                }
                Err(e) => *failed.lock() = Some(e),
            }
        }
    };
    let mut count = 0u64;
    let no_more = &failed;
    let read = move |path: &[u8], handle: &std::os::fd::OwnedFd, stat: &sys::Stat| {
        // Left out by --only: any digest will do, the path is dropped again.
        if !patterns.is_empty() && !patterns.iter().any(|p| p.takes(path)) {
            return Ok(Digest::of(path));
        }
        if no_more.lock().is_some() {
            return Err(Error::Failed("a file could not be read".into()));
        }
        let shown = String::from_utf8_lossy(path).into_owned();
        let file = open_for_reading(handle).at("reading", &shown)?;
        let partial = open_partial(store, handle)?;
        count += 1;
        let stand_in = stand_in(count);
        let waiting = Waiting { stand_in, shown, file, partial, stat: *stat };
        let ended = |_| Error::Failed("a thread ended early; commit again".into());
        to_readers.send(waiting).map_err(ended)?;
        Ok(stand_in)
    };
    let laid = thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(read_all);
        }
        // The readers end when this is gone and they have read what waits.
        let mut read = read;
        lay_over(store, tree, user, &mut read)
    });
    if let Some(e) = failed.into_inner() {
        return Err(e);
    }
    let mut full = laid?;
    let digests = digests.into_inner();
    for (_, id) in full.walk() {
        if let Content::File { object, .. } = &mut full.get_mut(id).content
            && let Some(digest) = digests.get(object)
        {
            *object = *digest;
        }
    }
    Ok((full, bytes.into_inner()))
}

/// A digest that no content is known to have.
fn stand_in(count: u64) -> Digest {
    let mut bytes = [0xff; Digest::LEN];
    bytes.iter_mut().zip(count.to_le_bytes()).for_each(|(to, from)| *to = from);
    Digest(bytes)
}

/// Takes one file in; it must not change meanwhile.
fn take_one(intake: &Intake<'_>, waiting: Waiting, progress: &dyn Progress) -> Result<Digest> {
    let Waiting { shown, file, partial, stat, .. } = waiting;
    let advance = |n| progress.advance(0, n);
    let in_pieces = partial.is_some();
    let added = match partial {
        Some(merged) => intake.add_reader(merged, &advance)?,
        None => intake.add_file(&file, stat.size, &advance)?,
    };
    let now = sys::stat(&file).at("reading", &shown)?;
    let (digest, size) = added.at("reading", &shown)?;
    // The daemon's own copying moves the one time that nobody can set.
    let changed = now.ctime != stat.ctime && !in_pieces;
    if (now.size, now.mtime) != (stat.size, stat.mtime) || changed || size != stat.size {
        return Err(Error::Failed(format!(
            "{shown} changed while it was read; commit again, or unmount first"
        )));
    }
    progress.advance(1, 0);
    Ok(digest)
}

/// Removes from a delta what no pattern takes.
fn keep_only(delta: &mut Draft, old: &Draft, patterns: &[Pattern]) {
    fn prune(delta: &mut Draft, at: InodeId, path: &[u8], old: &Draft, patterns: &[Pattern]) -> bool {
        let names: Vec<_> = delta.get(at).children.iter().map(|(n, id)| (n.clone(), *id)).collect();
        for (name, id) in names {
            let path = join(path, &name);
            if patterns.iter().any(|p| p.takes(&path)) {
                continue;
            }
            let keeps = delta.get(id).content.is_dir() && prune(delta, id, &path, old, patterns);
            if !keeps {
                delta.get_mut(at).children.remove(&name);
            } else if let Some(was) = old.find(&path) {
                // On the way to what is taken: its own attributes are not.
                delta.get_mut(id).meta = old.get(was).meta.clone();
            }
        }
        !delta.get(at).children.is_empty()
    }
    prune(delta, ROOT, b"", old, patterns);
    delta.get_mut(ROOT).meta = old.get(ROOT).meta.clone();
}

/// Moves the desktop onto the new version and clears from the user layer what went into it. In this order: the
/// view is the same before, between and after.
fn reset(desktop: &Desktop, version: Digest, image: &str, tag: &str, patterns: &[Pattern]) -> Result<u64> {
    {
        let held = desktop.lock()?;
        let mut state = desktop.state()?;
        state.complete_pending();
        super::swap::complete_pins(desktop, &state)?;
        state.pending = Some(Choice { version, tag: Some(tag.into()) });
        state.image = image.into();
        state.complete_pending();
        desktop.write_state(&state, &held)?;
    }
    let user = desktop.user_layer()?;
    let top = sys::open_dir(&user).at("opening the user layer", &user)?;
    let work = desktop.work_dir()?;
    let work = sys::open_dir(&work).at("opening", &work)?;
    let mut cleared = 0;
    if patterns.is_empty() {
        for (name, _) in sys::list(top.as_fd()).at("reading the user layer", &user)? {
            discard(&top, &name, &work).at("clearing the user layer", &user)?;
            cleared += 1;
        }
        let marks = crate::union::marks::Namespace::for_process();
        let follow = crate::union::marks::Changed::default().encode();
        marks.set_own(&top, "ino", b"1").at("marking", &user)?;
        marks.set_own(&top, "meta", &follow).at("marking", &user)?;
        marks.clear(&top, &marks.overlay("opaque")).at("marking", &user)?;
        desktop.replace_pins(&BTreeSet::new())?;
        let moved = desktop.work_dir()?.join(crate::union::moved::NAME);
        match std::fs::remove_file(&moved) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("removing", &moved),
            _ => {}
        }
        return Ok(cleared);
    }
    clear_taken(&top, b"", patterns, &work, &mut cleared).at("clearing the user layer", &user)?;
    Ok(cleared)
}

/// Removes what the patterns take. What lies in a directory that hides or replaces what is below it, and that
/// stays, stays too: without it something else would show.
fn clear_taken(
    dir: &std::os::fd::OwnedFd,
    path: &[u8],
    patterns: &[Pattern],
    work: &std::os::fd::OwnedFd,
    cleared: &mut u64,
) -> std::io::Result<()> {
    let marks = crate::union::marks::Namespace::for_process();
    let before = sys::stat(dir)?;
    let names = sys::list(dir.as_fd())?;
    for (name, format) in names {
        let path = join(path, &name);
        if patterns.iter().any(|p| p.takes(&path)) {
            discard(dir, &name, work)?;
            *cleared += 1;
        } else if format == libc::S_IFDIR {
            let sub = sys::open_at(dir, &name, sys::Open::DirPath)?;
            let found = marks.read(&sub)?;
            if !found.opaque && found.pin.is_none() {
                clear_taken(&sub, &path, patterns, work, cleared)?;
            }
        }
    }
    // The user did not touch the directory.
    sys::set_times(dir, sys::SetTime::To(before.atime), sys::SetTime::To(before.mtime))
}

/// A shell pattern over whole paths: `*` and `?` do not cross `/`, `**` does, `[…]` is a set. A pattern that
/// names a directory takes everything beneath it.
struct Pattern {
    text: Vec<u8>,
}

impl Pattern {
    fn new(text: &str) -> Result<Pattern> {
        let trimmed = text.trim_start_matches('/').trim_end_matches('/');
        if trimmed.is_empty() {
            return Err(Error::Usage(format!(
                "{text:?} is not a pattern; write for example --only 'usr/local/**'"
            )));
        }
        Ok(Pattern { text: trimmed.as_bytes().to_vec() })
    }

    fn takes(&self, path: &[u8]) -> bool {
        let mut at = path;
        loop {
            if matches(&self.text, at) {
                return true;
            }
            match at.iter().rposition(|c| *c == b'/') {
                Some(end) => at = at.get(..end).unwrap_or_default(),
                None => return false,
            }
        }
    }
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => {
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            (0..=path.len()).any(|i| matches(rest, path.get(i..).unwrap_or_default()))
        }
        [b'*', rest @ ..] => {
            let end = path.iter().position(|c| *c == b'/').unwrap_or(path.len());
            (0..=end).any(|i| matches(rest, path.get(i..).unwrap_or_default()))
        }
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().skip(1).position(|c| *c == b']').map(|i| i + 1) else {
                return path.first() == Some(&b'[') && matches(rest, path.get(1..).unwrap_or_default());
            };
            let (set, rest) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
            let Some((c, tail)) = path.split_first() else { return false };
            let (not, set) = match set {
                [b'!' | b'^', s @ ..] => (true, s),
                s => (false, s),
            };
            let mut found = false;
            let mut i = 0;
            while let Some(low) = set.get(i) {
                match (set.get(i + 1), set.get(i + 2)) {
                    (Some(b'-'), Some(high)) => {
                        found |= (low..=high).contains(&c);
                        i += 3;
                    }
                    _ => {
                        found |= low == c;
                        i += 1;
                    }
                }
            }
            *c != b'/' && found != not && matches(rest, tail)
        }
        [p, rest @ ..] => match path.split_first() {
            Some((c, tail)) if (*p == b'?' && *c != b'/') || p == c => matches(rest, tail),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_a_shell_would() {
        let takes = |p: &str, path: &str| Pattern::new(p).unwrap().takes(path.as_bytes());
        assert!(takes("/etc/*.conf", "etc/a.conf"));
        assert!(!takes("etc/*.conf", "etc/x/a.conf"));
        assert!(takes("etc/**/a.conf", "etc/x/y/a.conf"));
        assert!(takes("usr/local", "usr/local/bin/x"));
        assert!(takes("a[0-9b]?", "a7x"));
        assert!(!takes("a[!0-9]", "a7"));
        assert!(Pattern::new("/").is_err());
    }
}
