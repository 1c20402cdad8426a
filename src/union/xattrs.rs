//! Extended attributes and POSIX ACLs.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::attributes::CAPABILITY;
use super::copyup::Depth;
use super::lower::Lower;
use super::marks::{ACCESS_ACL, Changed, DEFAULT_ACL};
use super::node::Node;
use super::{Answer, Caller, Fail, Pin, View};
use crate::sys::xattr::{self, Set};

/// Refuses names that no local file system knows, as the kernel does there.
fn check_name(name: &[u8]) -> Answer<()> {
    if name == ACCESS_ACL || name == DEFAULT_ACL {
        return Ok(());
    }
    let families: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match families.iter().find_map(|family| name.strip_prefix(*family)) {
        Some(b"") => Err(Fail(libc::EINVAL)),
        Some(_) => Ok(()),
        None => Err(Fail(libc::EOPNOTSUPP)),
    }
}

impl View {
    /// The value of an extended attribute.
    pub fn getxattr(&self, pin: &Pin, id: u64, name: &[u8]) -> Answer<Vec<u8>> {
        check_name(name)?;
        let node = self.node(pin, id)?;
        let _names = self.names.read();
        self.xattr(pin, &node, name)?.ok_or(Fail(libc::ENODATA))
    }

    /// The caller holds `names`.
    pub(crate) fn xattr(&self, pin: &Pin, node: &Arc<Node>, name: &[u8]) -> Answer<Option<Vec<u8>>> {
        if let Some(last) = self.last_xattrs(node) {
            return Ok(last.into_iter().find(|(n, _)| n == name).map(|(_, value)| value));
        }
        let lower = self.lower(pin, node)?;
        if self.is_below(node, &lower, name) {
            return Ok(match &lower {
                Some(l) => l.xattr(name)?,
                None => None,
            });
        }
        let user = self.user.as_ref().ok_or(Fail(libc::EIO))?;
        if self.is_unreachable(node) || (name == CAPABILITY && node.state().incapable) {
            return Ok(None);
        }
        Ok(xattr::get(self.upper_handle(node)?, &user.marks.escape(name))?)
    }

    /// The default ACL of a directory, without asking the disk: its marks keep the user's. The caller holds `names`.
    pub(crate) fn default_acl(&self, pin: &Pin, dir: &Arc<Node>) -> Answer<Option<Vec<u8>>> {
        let lower = self.lower(pin, dir)?;
        match &lower {
            Some(l) if self.is_below(dir, &lower, DEFAULT_ACL) => Ok(l.xattr(DEFAULT_ACL)?),
            _ => Ok(dir.state().upper.as_ref().and_then(|m| m.default_acl.clone())),
        }
    }

    /// Those of a file without a name whose part in the user layer is another's now.
    fn last_xattrs(&self, node: &Node) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let state = node.state();
        state.ghost_xattrs.clone().filter(|_| state.gone && state.upper.is_none())
    }

    /// It has no name, and nothing was kept of it.
    fn is_unreachable(&self, node: &Node) -> bool {
        let state = node.state();
        state.gone && state.file.is_none() && state.kept.is_none()
    }

    /// Whether an attribute is the stack's (or nobody's) and not the user's.
    pub(crate) fn is_below(&self, node: &Node, lower: &Option<Lower>, name: &[u8]) -> bool {
        match &node.state().upper {
            None => true,
            Some(marks) => match &marks.follows {
                Some(changed) if lower.is_some() => !changed.xattrs.contains(name),
                _ => false,
            },
        }
    }

    /// Names of the extended attributes. `trusted.` ones are for root only, as local file systems do it.
    pub fn listxattr(&self, pin: &Pin, id: u64, caller: Caller) -> Answer<Vec<u8>> {
        let node = self.node(pin, id)?;
        let _names = self.names.read();
        let mut out = Vec::new();
        for (name, _) in self.all_xattrs(pin, &node)? {
            if caller.uid == 0 || !name.starts_with(b"trusted.") {
                out.extend_from_slice(&name);
                out.push(0);
            }
        }
        Ok(out)
    }

    /// All extended attributes of the view with their values. The caller holds `names`.
    pub(crate) fn all_xattrs(&self, pin: &Pin, node: &Arc<Node>) -> Answer<Vec<(Vec<u8>, Vec<u8>)>> {
        if let Some(last) = self.last_xattrs(node) {
            return Ok(last);
        }
        let lower = self.lower(pin, node)?;
        let mut out = Vec::new();
        if let Some(l) = &lower {
            let own = l.xattrs()?;
            out.extend(own.into_iter().filter(|(name, _)| self.is_below(node, &lower, name)));
        }
        let has_upper = node.state().upper.is_some();
        if has_upper && let Some(user) = &self.user {
            if self.is_unreachable(node) {
                return Ok(out);
            }
            let handle = self.upper_handle(node)?;
            for on_disk in xattr::list(&handle)? {
                let Some(name) = user.marks.unescape(&on_disk) else { continue };
                if !self.is_below(node, &lower, &name)
                    && let Some(value) = xattr::get(&handle, &on_disk)?
                {
                    out.push((name, value));
                }
            }
        }
        Ok(out)
    }

    /// Sets an extended attribute.
    pub fn setxattr(
        &self,
        pin: &Pin,
        id: u64,
        name: &[u8],
        value: &[u8],
        how: Set,
        caller: Caller,
    ) -> Answer<()> {
        self.writable()?;
        check_name(name)?;
        let node = self.node(pin, id)?;
        {
            let _names = self.names.read();
            self.may_set_attributes(&node)?;
            let there = self.xattr(pin, &node, name)?.is_some();
            match how {
                Set::Create | Set::Both if there => return Err(Fail(libc::EEXIST)),
                Set::Replace | Set::Both if !there => return Err(Fail(libc::ENODATA)),
                _ => {}
            }
        }
        let pins = node.is_file() && name.starts_with(b"security.");
        self.copy_up(pin, &node, if pins { Depth::Pin } else { Depth::Attributes })?;
        if name == super::attributes::CAPABILITY {
            // Bringing more in would take it away again.
            let handle = {
                let _names = self.names.read();
                self.upper_handle(&node)?
            };
            self.complete_node(&node, &handle)?;
        }
        let user = self.writable()?;
        let _copying = node.copying.lock();
        let _names = self.names.read();
        self.still_shown(&node, false)?;
        let mode = self.attributes(pin, &node)?;
        let handle = self.upper_handle(&node)?;
        if name == ACCESS_ACL && self.follows(&node) {
            // The host derives the mode from the ACL and the mode that it has.
            crate::sys::fs::chmod(&handle, mode.mode)?;
        }
        if name == CAPABILITY {
            node.state().incapable = false;
        }
        xattr::set(&handle, &user.marks.escape(name), value, Set::Any)?;
        if name == ACCESS_ACL && caller.uid != 0 && mode.mode & libc::S_ISGID != 0 && !caller.is_in(mode.gid)
        {
            let now = crate::sys::fs::stat(&handle)?.mode;
            crate::sys::fs::chmod(&handle, now & !libc::S_ISGID)?;
        }
        self.note_xattr(&node, &handle, name, Some(value))
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, pin: &Pin, id: u64, name: &[u8]) -> Answer<()> {
        self.writable()?;
        check_name(name)?;
        let node = self.node(pin, id)?;
        node.state().capability_removed = name == CAPABILITY;
        {
            let _names = self.names.read();
            self.may_set_attributes(&node)?;
            if self.xattr(pin, &node, name)?.is_none() {
                // That there is no ACL is what removing one asks for (`posix_acl_xattr_set` of the kernel).
                let acl = name == ACCESS_ACL || name == DEFAULT_ACL;
                return if acl { Ok(()) } else { Err(Fail(libc::ENODATA)) };
            }
        }
        // Taking a privilege away pins nothing; the kernel does it too, at a chown.
        self.copy_up(pin, &node, Depth::Attributes)?;
        let user = self.writable()?;
        let _copying = node.copying.lock();
        let _names = self.names.read();
        self.still_shown(&node, false)?;
        let handle = self.upper_handle(&node)?;
        if name == ACCESS_ACL && self.follows(&node) {
            // The mode is the user's with it.
            crate::sys::fs::chmod(&handle, self.attributes(pin, &node)?.mode)?;
        }
        match xattr::remove(&handle, &user.marks.escape(name)) {
            Err(e) if e.raw_os_error() != Some(libc::ENODATA) => return Err(e.into()),
            _ => {}
        }
        self.note_xattr(&node, &handle, name, None)
    }

    fn note_xattr(
        &self,
        node: &Arc<Node>,
        handle: impl AsFd,
        name: &[u8],
        value: Option<&[u8]>,
    ) -> Answer<()> {
        let mut changed = Changed { mode: name == ACCESS_ACL, ..Changed::default() };
        changed.xattrs.insert(name.to_vec());
        self.note_changed(node, handle, &changed)?;
        if name == DEFAULT_ACL
            && let Some(marks) = &mut node.state().upper
        {
            marks.default_acl = value.map(<[u8]>::to_vec);
        }
        Ok(())
    }

    /// Before the mode of something that follows the stack is changed: its ACL comes up, since the host
    /// changes the ACL with the mode (acl(5), "correspondence").
    pub(crate) fn bring_acl(
        &self,
        pin: &Pin,
        node: &Arc<Node>,
        handle: impl AsFd,
        changed: &mut Changed,
    ) -> Answer<()> {
        match self.xattr(pin, node, ACCESS_ACL)? {
            Some(acl) => {
                xattr::set(handle, ACCESS_ACL, &acl, Set::Any)?;
                changed.xattrs.insert(ACCESS_ACL.to_vec());
            }
            None => match xattr::remove(handle, ACCESS_ACL) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
                    return Err(e.into());
                }
                _ => {}
            },
        }
        Ok(())
    }
}
