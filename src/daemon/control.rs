//! The control socket of a running mount: one line of JSON asks, one line answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::session::Running;
use super::{Missing, SwapReport, SwapRequest, swap};
use crate::error::{Doing, Error, Result};
use crate::store::{Digest, Store};
use crate::sys::process;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Swap the stack.
    Swap(SwapRequest),
    /// Bring the user layer to the disk.
    Sync,
    /// What the daemon holds.
    Figures,
    /// What is still to be copied.
    Missing,
    /// Copy that now.
    Complete,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// What a swap did.
    Swapped(Box<SwapReport>),
    /// It is done.
    Done,
    /// What the daemon holds.
    Figures {
        /// Nodes in memory.
        nodes: u64,
    },
    /// What is still to be copied.
    Missing(Missing),
    /// It failed: the kind of the error and its message.
    Failed {
        /// See [`Error::kind`].
        kind: String,
        /// For a person.
        message: String,
    },
}

/// Where a mount listens: in a directory that only its user can enter. The name is made of the store's path,
/// since a socket's path may have 107 bytes at most.
pub fn socket_path(store: &Store, id: &str) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let name = Digest::of(&[store.root().as_os_str().as_bytes(), b"\0", id.as_bytes()].concat()).short();
    Ok(runtime_dir()?.join(format!("{name}.sock")))
}

/// The directory for what lives as long as a mount. Only its user can enter it.
pub fn runtime_dir() -> Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let dir = if process::is_root() {
        PathBuf::from("/run/reroot")
    } else {
        match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) => PathBuf::from(dir).join("reroot"),
            None => std::env::temp_dir().join(format!("reroot-{}", process::uid())),
        }
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).at("making", &dir)?;
    let found = std::fs::symlink_metadata(&dir).at("reading", &dir)?;
    if !found.is_dir() || found.uid() != process::uid() || found.mode() & 0o022 != 0 {
        return Err(Error::Refused(format!("{} belongs to somebody else; remove it", dir.display())));
    }
    Ok(dir)
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Listening {
    stop: Arc<AtomicBool>,
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = UnixStream::connect(&self.path);
    }
}

/// The socket to listen at.
pub fn socket(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).at("listening at", path)
}

/// Begins to listen at the socket that is bound to `path`.
pub fn listen(listener: UnixListener, path: &Path, running: Arc<Running>) -> Result<Listening> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let accept = move || {
        for stream in listener.incoming() {
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            let (Ok(stream), running) = (stream, running.clone()) else { continue };
            let answering = move || {
                if let Err(e) = answer(&stream, &running) {
                    log::warn!("the control socket: {e}");
                }
            };
            if let Err(e) = std::thread::Builder::new().name("control".into()).spawn(answering) {
                log::error!("the control socket: {}", crate::error::words(&e));
            }
        }
    };
    std::thread::Builder::new().name("listener".into()).spawn(accept).doing("starting")?;
    Ok(Listening { stop, path: path.to_path_buf() })
}

fn answer(stream: &UnixStream, running: &Running) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).doing("reading a request")?;
    let mut line = String::new();
    use std::io::Read;
    BufReader::new(stream.take(1 << 20)).read_line(&mut line).doing("reading a request")?;
    let told = match serde_json::from_str::<Ask>(&line) {
        Ok(Ask::Swap(request)) => match swap::live(running, &request) {
            Ok(report) => Told::Swapped(Box::new(report)),
            Err(e) => failed(&e),
        },
        Ok(Ask::Sync) => match running.view.sync() {
            Ok(()) => Told::Done,
            Err(e) => failed(&Error::Io("syncing".into(), std::io::Error::from_raw_os_error(e.0))),
        },
        Ok(Ask::Missing) => {
            let found = running.view.missing();
            let words = |errno| crate::error::words(&std::io::Error::from_raw_os_error(errno));
            let (bytes, stuck) = (Some(found.bytes), found.stuck.map(words));
            Told::Missing(Missing { files: found.files, bytes, stuck })
        }
        Ok(Ask::Complete) => match running.view.complete_all() {
            Ok(()) => Told::Done,
            Err(e) => {
                failed(&Error::Io("copying what is missing".into(), std::io::Error::from_raw_os_error(e.0)))
            }
        },
        Ok(Ask::Figures) => Told::Figures { nodes: running.view.known_nodes() as u64 },
        Err(e) => failed(&Error::Usage(format!("a request that is not understood: {e}"))),
    };
    let mut out = serde_json::to_vec(&told).unwrap_or_default();
    out.push(b'\n');
    let mut stream = stream;
    stream.write_all(&out).doing("answering")
}

fn failed(e: &Error) -> Told {
    Told::Failed { kind: e.kind().into(), message: e.to_string() }
}

/// Asks a running mount. Waits as long as the answer takes.
pub fn ask(socket: &Path, what: &Ask) -> Result<Told> {
    let doing = "asking the running daemon";
    let mut stream = UnixStream::connect(socket).doing(doing)?;
    let mut line = serde_json::to_vec(what).unwrap_or_default();
    line.push(b'\n');
    stream.write_all(&line).doing(doing)?;
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).doing(doing)?;
    let told = serde_json::from_str(&text).map_err(|_| {
        Error::Failed("the daemon ended before it answered; `reroot status` shows the state".into())
    })?;
    if let Told::Failed { kind, message } = told {
        return Err(Error::of_kind(&kind, message));
    }
    Ok(told)
}
