//! Records of pax extended headers (POSIX.1-2017, pax, "pax Extended Header"), and the values in them.
//!
//! Values may hold any byte, newlines too: a record's length says where it ends.

use std::collections::BTreeMap;

use super::acl::Acl;
use crate::sys::fs::Time;

/// A key and its value, in order of appearance.
pub(super) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads all records of one extended header.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Records, String> {
    let bad = || "its extended header is damaged".to_string();
    let mut out = Vec::new();
    while !bytes.is_empty() {
        // Some writers fill the block with NULs.
        if bytes.iter().all(|b| *b == 0) {
            break;
        }
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = number(bytes.get(..space).unwrap_or_default()).ok_or_else(bad)?;
        let length = usize::try_from(length).map_err(|_| bad())?;
        let record = bytes.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = record.split_at(equals);
        out.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(out)
}

/// Appends one record.
pub(super) fn write(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A decimal number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Seconds with a fraction, to the nanosecond; what is finer is cut off.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let sec = i64::try_from(number(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let nsec: u32 =
        fraction.bytes().chain(*b"000000000").take(9).fold(0, |n, c| n * 10 + u32::from(c - b'0'));
    Some(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

/// A time as [`time`] reads it.
pub(super) fn time_text(t: Time) -> String {
    let text = match (t.sec < 0, t.nsec) {
        (_, 0) => return t.sec.to_string(),
        (false, nsec) => format!("{}.{nsec:09}", t.sec),
        (true, nsec) => format!("-{}.{:09}", -(t.sec + 1), 1_000_000_000 - nsec),
    };
    text.trim_end_matches('0').into()
}

/// Takes extended attributes and ACLs out of the records. The access ACL in words also gives permission bits.
pub(super) fn attributes(
    records: &Records,
    xattrs: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<Option<u32>, String> {
    let mut mode = None;
    let mut acls = BTreeMap::new();
    for (key, value) in records {
        let (name, value) = if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            (unescape(name, &[b"3D", b"25"]), value.clone())
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = base64(value).ok_or("an extended attribute in it is not base64")?;
            (unescape(name, &[]), value)
        } else if key == b"RHT.security.selinux" {
            let mut value = value.clone();
            if value.last() != Some(&0) {
                value.push(0);
            }
            (b"security.selinux".to_vec(), value)
        } else {
            let name: &[u8] = match key.as_slice() {
                b"SCHILY.acl.access" => b"system.posix_acl_access",
                b"SCHILY.acl.default" => b"system.posix_acl_default",
                b"SCHILY.acl.ace" => return Err("it has an NFSv4 ACL, which images cannot hold".into()),
                _ => continue,
            };
            if let Some(acl) = Acl::parse(value)? {
                let access = name.ends_with(b"access");
                mode = if access { Some(acl.mode()) } else { mode };
                if !(access && acl.is_minimal()) {
                    acls.insert(name.to_vec(), acl.binary());
                }
            }
            continue;
        };
        if name.is_empty() || name.contains(&0) || name.len() > 255 || value.len() > 65536 {
            return Err("it has an extended attribute that Linux cannot hold".into());
        }
        xattrs.insert(name, value);
    }
    for (name, value) in acls {
        xattrs.entry(name).or_insert(value);
    }
    Ok(mode)
}

/// The key of an extended attribute: `=` and `%` are escaped, since a key ends at the first `=`.
pub(super) fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut out = b"SCHILY.xattr.".to_vec();
    for c in name {
        match c {
            b'=' => out.extend_from_slice(b"%3D"),
            b'%' => out.extend_from_slice(b"%25"),
            c => out.push(*c),
        }
    }
    out
}

/// Undoes percent escapes: those in `only`, or all.
fn unescape(name: &[u8], only: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = name;
    while let Some((c, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|t| *c == b'%' && (only.is_empty() || only.contains(t)));
        let byte = code
            .filter(|t| t.iter().all(u8::is_ascii_hexdigit))
            .and_then(|t| u8::from_str_radix(std::str::from_utf8(t).ok()?, 16).ok());
        out.push(byte.unwrap_or(*c));
        rest = if byte.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    out
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for c in text.iter().filter(|c| !matches!(c, b'=' | b'\n')) {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_every_byte_of_their_values() {
        let mut bytes = Vec::new();
        let records: Records = (0..120)
            .map(|n| (b"SCHILY.xattr.security.capability".to_vec(), vec![b'\n'; n]))
            .chain([(b"path".to_vec(), b"a=b\n11 size=5\n".to_vec())])
            .collect();
        for (key, value) in &records {
            write(&mut bytes, key, value);
        }
        assert_eq!(parse(&bytes).unwrap(), records);
        for bad in [&b"6 a=\n"[..], b"x", b"99999999999999999999999 a=b\n", b"0 a=b\n", b"6 a=b\n6", b"3 \n"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_before_1970_and_nanoseconds_survive() {
        for (sec, nsec) in [(0, 0), (-1, 500_000_000), (-2, 0), (-1, 999_999_999), (7, 1), (1 << 40, 120)] {
            let t = Time { sec, nsec };
            assert_eq!(time(time_text(t).as_bytes()), Some(t), "{}", time_text(t));
        }
        assert_eq!(time_text(Time { sec: -2, nsec: 500_000_000 }), "-1.5");
        assert!(time(b"1.x").is_none() && time(b"").is_none() && time(b"--1").is_none());
    }

    #[test]
    fn attributes_are_read_in_each_writers_form() {
        let mut xattrs = BTreeMap::new();
        let records: Records = [
            (&b"LIBARCHIVE.xattr.user.a%20b"[..], &b"AAEC/w"[..]),
            (b"SCHILY.xattr.user.a%3Db%25", b"x\ny"),
            (b"SCHILY.acl.access", b"user::rwx,user:7:rwx,group::---,mask::rwx,other::---"),
        ]
        .map(|(k, v)| (k.to_vec(), v.to_vec()))
        .into();
        assert_eq!(attributes(&records, &mut xattrs).unwrap(), Some(0o770));
        assert_eq!(xattrs[&b"user.a b"[..]], [0, 1, 2, 255]);
        assert_eq!(xattrs[&b"user.a=b%"[..]], b"x\ny");
        assert_eq!(xattrs[&b"system.posix_acl_access"[..]].len(), 4 + 5 * 8);
        assert_eq!(xattr_key(b"user.a=b%"), b"SCHILY.xattr.user.a%3Db%25");
    }
}
