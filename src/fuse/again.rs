//! Requests that an earlier daemon was asked and did not answer: the kernel sends them again, and the earlier daemon may
//! have carried them out.
//!
//! Most can be carried out twice. For the others: the kernel holds the locks of the directories until the answer, so
//! nobody else made or removed what is found there. What one of them would refuse since it is done is then its success.

use std::sync::Arc;

use fuser::{INodeNo, Request};

use super::Adapter;
use super::servers::Serving;
use super::values::{first, is_again};
use crate::sys::xattr::Set;
use crate::union::attributes::Attributes;
use crate::union::inherit::Noted;
use crate::union::names::Replace;
use crate::union::node::{BORN, Node};
use crate::union::{Answer, Fail, Pin};

/// A request that is being served. Dropped after its answer.
pub(super) struct Served<'a> {
    // In this order: who takes the next request is not to find this one noted.
    _noted: Option<Noted<'a>>,
    _serving: Serving<'a>,
}

impl<'a> Served<'a> {
    /// `lost` is what it is answered if this daemon ends before its answer, and the kernel does not send it again.
    pub(super) fn new(adapter: &'a Adapter, req: &Request, slow: bool, lost: i32) -> Served<'a> {
        Served {
            _noted: adapter.view.note_request(req.unique().0, lost),
            _serving: adapter.servers.serve(req.pid(), slow),
        }
    }
}

type Found = (Arc<Node>, Attributes);

impl Adapter {
    /// What an earlier daemon opened for this request and told nobody.
    pub(super) fn close_never_given(&self, req: &Request) {
        if is_again(req) {
            for fh in self.view.never_given(first(req)) {
                let _ = self.backings.close(&self.view, fh);
            }
        }
    }

    /// Makes something at a name. What an earlier daemon made there and did not live to answer may have no owner and no
    /// mode yet: it is made anew. Nobody else has seen it: the kernel has held the directory's lock since.
    pub(super) fn made<T>(
        &self,
        req: &Request,
        pin: &Pin,
        (parent, name): (INodeNo, &[u8]),
        make: impl Fn() -> Answer<T>,
    ) -> Answer<T> {
        match make() {
            Err(Fail(libc::EEXIST)) if is_again(req) => {
                match self.view.item(pin, parent.0, name)? {
                    Some((node, _)) if node.id < BORN => return Err(Fail(libc::EEXIST)),
                    Some((node, _)) if node.is_dir() => self.view.rmdir(pin, parent.0, name)?,
                    Some(_) => self.view.unlink(pin, parent.0, name)?,
                    None => {}
                }
                make()
            }
            result => result,
        }
    }

    /// A name that was to be given to a file.
    pub(super) fn linked(
        &self,
        req: &Request,
        pin: &Pin,
        (ino, parent, name): (INodeNo, INodeNo, &[u8]),
        result: Answer<Found>,
    ) -> Answer<Found> {
        match result {
            Err(Fail(libc::EEXIST)) if is_again(req) => match self.view.lookup(pin, parent.0, name)? {
                Some(found) if found.0.id == ino.0 => Ok(found),
                _ => Err(Fail(libc::EEXIST)),
            },
            result => result,
        }
    }

    /// What was to be removed.
    pub(super) fn removed(req: &Request, result: Answer<()>) -> Answer<()> {
        match result {
            Err(Fail(libc::ENOENT | libc::ENODATA)) if is_again(req) => Ok(()),
            result => result,
        }
    }

    /// An attribute that was to be new.
    pub(super) fn attribute_set(
        &self,
        req: &Request,
        (pin, ino): (&Pin, INodeNo),
        (name, value, how): (&[u8], &[u8], Set),
        result: Answer<()>,
    ) -> Answer<()> {
        match result {
            Err(Fail(libc::EEXIST)) if is_again(req) && how == Set::Create => {
                let is = self.view.getxattr(pin, ino.0, name)?;
                if is == value { Ok(()) } else { Err(Fail(libc::EEXIST)) }
            }
            result => result,
        }
    }

    /// A rename, from a directory and name to another.
    pub(super) fn renamed(
        &self,
        req: &Request,
        pin: &Pin,
        from: (INodeNo, &[u8]),
        to: (INodeNo, &[u8]),
        how: Replace,
    ) -> Answer<()> {
        let at = |(dir, name): (INodeNo, &[u8])| {
            Ok::<_, Fail>(self.view.item(pin, dir.0, name)?.map(|(node, _)| node.id))
        };
        let rename = || self.view.rename(pin, from.0.0, from.1, to.0.0, to.1, how);
        if how != Replace::Exchange {
            return match rename() {
                Err(Fail(libc::ENOENT | libc::EEXIST))
                    if is_again(req) && at(from)?.is_none() && at(to)?.is_some() =>
                {
                    Ok(())
                }
                result => result,
            };
        }
        // Twice would be as if it had never been. So it is written down what stands where.
        let (a, b) = (at(from)?, at(to)?);
        let (Some(a), Some(b)) = (a, b) else { return Err(Fail(libc::ENOENT)) };
        if is_again(req) && self.view.exchange_before(first(req)) == Some((b, a)) {
            self.view.exchange_ends(first(req));
            return Ok(());
        }
        self.view.exchange_begins(first(req), a, b);
        rename()
    }
}
