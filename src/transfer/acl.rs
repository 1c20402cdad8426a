//! POSIX ACLs: the text of archives (POSIX.1e draft 17, "long text form") to the kernel's binary form.

/// The binary form's version (`POSIX_ACL_XATTR_VERSION`).
const VERSION: u32 = 2;
/// An entry without an id.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An ACL: tag, permission bits, id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    /// Reads the text form: entries `tag:qualifier:perms[:id]` separated by commas or newlines. `None` where
    /// there is no entry. The error says what is wrong and what to do.
    pub(super) fn parse(text: &[u8]) -> Result<Option<Acl>, String> {
        let text = std::str::from_utf8(text).map_err(|_| "its ACL is not text".to_string())?;
        let mut entries = Vec::new();
        for entry in text.split([',', '\n']) {
            let entry = entry.split('#').next().unwrap_or_default().trim();
            if !entry.is_empty() {
                entries.push(parse_entry(entry)?);
            }
        }
        entries.sort_by_key(|(tag, _, id)| (*tag, *id));
        let count = |tag| entries.iter().filter(|e| e.0 == tag).count();
        let named = count(USER) + count(GROUP);
        let twice = entries.windows(2).any(|w| matches!(w, [a, b] if (a.0, a.2) == (b.0, b.2)));
        if entries.is_empty() {
            return Ok(None);
        }
        let complete = count(USER_OBJ) == 1 && count(GROUP_OBJ) == 1 && count(OTHER) == 1;
        if !complete || twice || (named > 0 && count(MASK) == 0) {
            return Err(format!("its ACL {text:?} is not a valid one; make the archive again"));
        }
        Ok(Some(Acl(entries)))
    }

    /// Whether it says no more than permission bits do.
    pub(super) fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The permission bits that the kernel shows for a file with this access ACL.
    pub(super) fn mode(&self) -> u32 {
        let of = |tag| self.0.iter().find(|e| e.0 == tag).map(|e| u32::from(e.1));
        let class = of(MASK).or(of(GROUP_OBJ)).unwrap_or(0);
        of(USER_OBJ).unwrap_or(0) << 6 | class << 3 | of(OTHER).unwrap_or(0)
    }

    /// Reads the kernel's binary form; `None` where it is not one.
    pub(super) fn from_binary(value: &[u8]) -> Option<Acl> {
        let entries = value.strip_prefix(&VERSION.to_le_bytes())?.chunks(8).map(|entry| match entry {
            [t0, t1, p0, p1, i0, i1, i2, i3] => Some((
                u16::from_le_bytes([*t0, *t1]),
                u16::from_le_bytes([*p0, *p1]),
                u32::from_le_bytes([*i0, *i1, *i2, *i3]),
            )),
            _ => None,
        });
        entries.collect::<Option<Vec<_>>>().map(Acl)
    }

    /// The text form with numeric ids.
    pub(super) fn text(&self) -> String {
        let entry = |(tag, perms, id): &(u16, u16, u32)| {
            let id = if matches!(*tag, USER | GROUP) { id.to_string() } else { String::new() };
            let tag = match *tag {
                USER_OBJ | USER => "user",
                GROUP_OBJ | GROUP => "group",
                MASK => "mask",
                _ => "other",
            };
            let bit = |bit, c| if perms & bit != 0 { c } else { '-' };
            format!("{tag}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'))
        };
        self.0.iter().map(entry).collect::<Vec<_>>().join(",")
    }

    /// The value of `system.posix_acl_access` or `…_default`.
    pub(super) fn binary(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, perms, id) in &self.0 {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perms.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }
}

fn parse_entry(entry: &str) -> Result<(u16, u16, u32), String> {
    let bad = || format!("its ACL entry {entry:?} cannot be read; make the archive again");
    let mut fields = entry.split(':').map(str::trim);
    let (tag, mut who) = (fields.next().ok_or_else(bad)?, fields.next().ok_or_else(bad)?);
    let mut perms = fields.next();
    // "other:r--" and "mask:r--" may come without the empty qualifier.
    if perms.is_none() && matches!(tag, "o" | "other" | "m" | "mask") {
        (who, perms) = ("", Some(who));
    }
    let mut bits = 0;
    for c in perms.ok_or_else(bad)?.chars() {
        bits |= match c {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return Err(bad()),
        };
    }
    let tag = match (tag, who.is_empty()) {
        ("u" | "user", true) => USER_OBJ,
        ("u" | "user", false) => USER,
        ("g" | "group", true) => GROUP_OBJ,
        ("g" | "group", false) => GROUP,
        ("m" | "mask", true) => MASK,
        ("o" | "other", true) => OTHER,
        _ => return Err(bad()),
    };
    let id = if who.is_empty() {
        NO_ID
    } else {
        // star and bsdtar write the number after the name.
        let number = fields.next().unwrap_or(who);
        number.parse().ok().filter(|id| *id != NO_ID).ok_or_else(|| {
            format!(
                "its ACL names {who:?}, which this system's accounts cannot say for the image; \
                 make the archive with binary ACLs (tar --xattrs --xattrs-include='*', without --acls)"
            )
        })?
    };
    Ok((tag, bits, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_in_words_becomes_what_the_kernel_stores() {
        let acl =
            Acl::parse(b"user::rwx\nuser:1000:rw-\ngroup::r-x\nmask::rwx\nother::r--").unwrap().unwrap();
        assert_eq!(acl.mode(), 0o774);
        assert!(!acl.is_minimal());
        let hex =
            "02000000 01000700ffffffff 02000600e8030000 04000500ffffffff 10000700ffffffff 20000400ffffffff";
        let bytes: String = acl.binary().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, hex.replace(' ', ""));
        let star = Acl::parse(b"user::rwx,user:lisa:rw-:1000,group::r-x,mask::rwx,other::r--").unwrap();
        assert_eq!(star, Some(acl.clone()));
        assert_eq!(Acl::from_binary(&acl.binary()), Some(acl.clone()));
        assert_eq!(Acl::parse(acl.text().as_bytes()).unwrap(), Some(acl));
        assert_eq!(Acl::from_binary(b"\x02\0\0\0abc"), None);
        assert!(Acl::parse(b"user::rwx,group::r-x,other::r--").unwrap().unwrap().is_minimal());
        assert_eq!(Acl::parse(b"").unwrap(), None);
    }

    #[test]
    fn an_acl_that_cannot_be_right_is_refused() {
        for bad in [
            "user::rwx,user:lisa:rw-,group::r-x,mask::rwx,other::r--",
            "user::rwx",
            "user::rwx,user:5:rwx,group::r-x,other::r--",
            "user::rwq,group::r-x,other::r--",
            "user::rwx,user::rwx,group::r-x,other::r--",
            "bogus",
        ] {
            assert!(Acl::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
