//! What a mount shows: the stack, the user layer and their locks, opened before anything is attached.

use std::path::PathBuf;
use std::sync::Arc;

use super::estate::{Estate, Key};
use super::session::check_mountpoint;
use super::{Layers, MountRequest, Subject};
use crate::error::{Error, Result};
use crate::store::desktops::Desktop;
use crate::store::{Digest, Store};
use crate::sys::lock::Lock;
use crate::union::Library;
use crate::union::directories::Directories;
use crate::union::lower::{Objects, Stack, Tree};
use crate::union::marks::Namespace;
use crate::union::upper::UserLayer;

/// What a mount shows, opened, and where.
pub struct Shown {
    /// Where it is attached.
    pub point: PathBuf,
    /// The layers below.
    pub stack: Stack,
    /// Where their contents are.
    pub library: Option<Library>,
    /// What is written goes there.
    pub user: Option<UserLayer>,
    /// The version, where it is one.
    pub version: Option<Digest>,
    /// The number of the last swap.
    pub generation: u64,
    /// The kernel itself refuses writes to what lies below.
    pub sealed: bool,
    /// See [`Settings::metacopy`].
    pub metacopy: bool,
    /// Held while the mount runs.
    pub claims: Vec<Lock>,
    /// What the desktop runs on by now, where the kernel was not told of that yet.
    pub ahead: Option<Arc<Tree>>,
    /// Its state still says that a swap is under way.
    pub unfinished: bool,
}

pub fn shown(
    request: &MountRequest,
    store: &Store,
    desktop: Option<&Desktop>,
    heir: Option<&Estate>,
) -> Result<Shown> {
    let mut claims = Vec::new();
    let (mut ahead, mut unfinished) = (None, false);
    let (mut version, mut generation, user) = match (&request.subject, desktop) {
        (Subject::Directories(layers), _) => return shown_directories(request, store, layers),
        (Subject::Version { version, .. }, _) => (*version, 0, None),
        (Subject::Desktop(_), Some(desktop)) => {
            // Whoever holds the lock now may be waiting for the mount that goes on: then that is served first.
            let held = if heir.is_none() { Some(desktop.lock()?) } else { desktop.lock_if_free()? };
            let mut state = desktop.state()?;
            if state.complete_pending() {
                log::info!("finishing the swap to {}", state.current.version);
                match &held {
                    Some(held) => desktop.write_state(&state, held)?,
                    None => unfinished = true,
                }
            }
            let user = if request.options.read_only && !desktop.user_layer()?.is_dir() {
                return Err(Error::Failed(format!(
                    "the user layer of {} cannot be read for a read-only mount",
                    desktop.name
                )));
            } else {
                // Before anything in it is cleared.
                claims.push(match heir {
                    Some(heir) => Lock::handed_on(heir.take(Key::UserLayer)?),
                    None => super::overlay::claim_upper(&desktop.user_layer()?, &desktop.name)?,
                });
                UserLayer::open(desktop, request.options.attributes())?
            };
            (state.current.version, state.generation, Some(user))
        }
        (Subject::Desktop(_), None) => return Err(Error::Failed("no such desktop".into())),
    };
    let mut others = vec![store.root().to_path_buf()];
    if let Some(desktop) = desktop {
        others.push(desktop.layer_home()?);
    }
    if let Some((told, number)) = heir.and_then(Estate::told) {
        generation = number;
        if told != version {
            ahead = Some(Tree::open(store, &version)?);
            version = told;
        }
    }
    let point = match heir.and_then(Estate::inherited) {
        // It stands there, and nobody may look at it before it is served.
        Some(entry) => entry.mountpoint.clone(),
        None => check_mountpoint(&request.mountpoint, &others, false)?,
    };
    let stack = Stack::Version(Tree::open(store, &version)?);
    let objects = Objects::open(store)?;
    let sealed = objects.sealed;
    let library = Some(Library { store: store.clone(), objects: Arc::new(objects) });
    Ok(Shown {
        point,
        stack,
        library,
        user,
        version: Some(version),
        generation,
        sealed,
        metacopy: true,
        claims,
        ahead,
        unfinished,
    })
}

fn shown_directories(request: &MountRequest, store: &Store, layers: &Layers) -> Result<Shown> {
    let mut layers = super::overlay::check(layers)?;
    if request.options.read_only
        && let Some((upper, _)) = &layers.upper
        && super::overlay::is_read_only(upper)?
    {
        // Nothing can be prepared there, and nothing is to be written: it is one more layer.
        let upper = upper.clone();
        layers.lower.insert(0, upper);
        layers.upper = None;
    }
    let layers = &layers;
    let mut others = vec![store.root().to_path_buf()];
    others.extend(layers.upper.iter().flat_map(|(upper, work)| [upper.clone(), work.clone()]));
    let marks = Namespace::over_directories(layers.user_xattr);
    // Opened before the mount is attached: a private clone of a layer's mount does not show what is attached later.
    let stack = Directories::open(&layers.lower, marks, layers.oci_whiteouts)?;
    if !stack.sealed {
        others.extend(layers.lower.iter().cloned());
    }
    let point = check_mountpoint(&request.mountpoint, &others, true)?;
    let (mut user, mut claims) = (None, Vec::new());
    if let Some((upper, work)) = &layers.upper {
        claims.push(super::overlay::claim_work(work)?);
        claims.push(super::overlay::claim_upper(upper, "upperdir")?);
        super::overlay::note_mount_point(work, &point)?;
        user = Some(UserLayer::over_directories(upper, work, marks, request.options.attributes())?);
    }
    let sealed = stack.sealed;
    let stack = Stack::Directories(Arc::new(stack));
    Ok(Shown {
        point,
        stack,
        library: None,
        user,
        version: None,
        generation: 0,
        sealed,
        metacopy: layers.metacopy,
        claims,
        ahead: None,
        unfinished: false,
    })
}
