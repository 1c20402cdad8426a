//! Inode flags (`chattr`): immutable, append-only, and what else the user layer's file system keeps.
//!
//! They are the host's flags of the user's own file or directory, and the host holds everybody to them, the daemon too.
//! Only opening a file that is open already asks nobody: `may_write` does. A file of the stack has no flags;
//! setting one copies it up with its content.

use std::sync::Arc;

use super::copyup::Depth;
use super::node::Node;
use super::swap::Notice;
use super::{Answer, Fail, Pin, View};
use crate::sys::fs::{self as sys, Open};

/// What a user may set. The others say how the host keeps the file.
const SETTABLE: u32 = sys::FLAG_SYNC
    | sys::FLAG_IMMUTABLE
    | sys::FLAG_APPEND
    | sys::FLAG_NODUMP
    | sys::FLAG_NOATIME
    | sys::FLAG_DIRSYNC;

/// What flags are asked of.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The file of a handle.
    Handle(u64),
    /// What has that number: a directory, or a file that is read without a handle.
    Number(u64),
}

impl View {
    fn node_of(&self, at: Target) -> Answer<Arc<Node>> {
        match at {
            Target::Handle(fh) => self.file_of(fh),
            Target::Number(id) => self.node(&self.pin(), id),
        }
    }

    /// Whether the host's flags are the node's: not where its file in the user layer stands for one of the stack.
    fn has_flags(node: &Node) -> bool {
        let state = node.state();
        state.owns_content() || (node.is_dir() && state.upper.is_some())
    }

    fn flags_of(&self, node: &Arc<Node>) -> Answer<u32> {
        if !View::has_flags(node) {
            return Ok(0);
        }
        let handle = {
            let _names = self.names.read();
            self.upper_handle(node)?
        };
        Ok(sys::get_flags(sys::reopen(&handle, if node.is_dir() { Open::Dir } else { Open::Read })?)?)
    }

    /// Inode flags (`FS_IOC_GETFLAGS`).
    pub fn get_flags(&self, at: Target) -> Answer<u32> {
        self.flags_of(&self.node_of(at)?)
    }

    /// Sets inode flags (`FS_IOC_SETFLAGS`). `EOPNOTSUPP` for a change of those that cannot be set.
    pub fn set_flags(&self, pin: &Pin, at: Target, flags: u32) -> Answer<()> {
        self.writable()?;
        let mut node = self.node_of(at)?;
        let is_dir = node.is_dir();
        if (flags ^ self.flags_of(&node)?) & !SETTABLE != 0 {
            return Err(Fail(libc::EOPNOTSUPP));
        }
        let place = node.place();
        match self.copy_up(pin, &node, Depth::Content) {
            // It was read past the daemon, and the name leads to the copy now, of which the flags are to be.
            Err(Fail(libc::ESTALE)) => {
                let (dir, name) = place?;
                let _names = self.names.read();
                node =
                    self.child(pin, &dir, &name)?.filter(|n| View::has_flags(n)).ok_or(Fail(libc::ESTALE))?;
            }
            r => r?,
        }
        if flags & (sys::FLAG_IMMUTABLE | sys::FLAG_APPEND) != 0 {
            // After it, nothing more could be brought in.
            let handle = {
                let _names = self.names.read();
                self.upper_handle(&node)?
            };
            self.complete_node(&node, &handle)?;
        }
        let _copying = node.copying.lock();
        let _names = self.names.read();
        self.still_shown(&node, false)?;
        let handle = self.upper_handle(&node)?;
        let file = sys::reopen(&handle, if is_dir { Open::Dir } else { Open::Read })?;
        let now = sys::get_flags(&file)?;
        if is_dir {
            // Once it is append-only, no mark can be made for the time of a new name.
            self.touched(&node)?;
        }
        sys::set_flags(&file, (now & !SETTABLE) | (flags & SETTABLE))?;
        let dropped = {
            let mut state = node.state();
            // What is open was opened with the rights of before.
            if state.gone { None } else { state.file.take() }
        };
        drop(dropped);
        // The time of the change of the inode is another now.
        self.notices.lock().push(Notice::Attributes(node.id));
        Ok(())
    }

    /// Refuses taking a name away from a directory that is immutable or append-only: a whiteout would be a new name to
    /// the host. The caller holds `names`.
    pub(crate) fn may_lose_names(&self, dir: &Arc<Node>) -> Answer<()> {
        if !View::has_flags(dir) || dir.state().gone {
            return Ok(());
        }
        let stat = sys::stat(&*self.upper_dir(dir)?)?;
        if stat.immutable || stat.append_only { Err(Fail(libc::EPERM)) } else { Ok(()) }
    }

    /// Refuses changing the extended attributes of what is immutable or append-only. The caller holds `names`.
    pub(crate) fn may_set_attributes(&self, node: &Arc<Node>) -> Answer<()> {
        if !View::has_flags(node) {
            return Ok(());
        }
        let stat = sys::stat(self.upper_handle(node)?)?;
        if stat.immutable || stat.append_only { Err(Fail(libc::EPERM)) } else { Ok(()) }
    }

    /// Refuses writing into an immutable file, and but at its end into an append-only one, as the kernel does where it
    /// knows of the flags. The caller holds `names`, and the content is the user's.
    pub(crate) fn may_write(&self, node: &Arc<Node>, flags: i32) -> Answer<()> {
        let stat = sys::stat(self.upper_handle(node)?)?;
        let appends = flags & libc::O_APPEND != 0 && flags & libc::O_TRUNC == 0;
        if stat.immutable || (stat.append_only && !appends) {
            return Err(Fail(libc::EPERM));
        }
        Ok(())
    }
}
