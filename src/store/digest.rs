//! SHA-384 digests (FIPS 180-4), the names of everything that is written once.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha384};

/// The SHA-384 of some bytes. Written `sha384:` and 96 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; Digest::LEN]);

impl Digest {
    /// Length in bytes.
    pub const LEN: usize = 48;

    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of all that `reader` gives, and how many bytes that was.
    pub fn of_reader(mut reader: impl Read) -> std::io::Result<(Digest, u64)> {
        let mut hasher = Hasher::new();
        let mut buf = vec![0u8; 256 << 10];
        let mut total = 0u64;
        loop {
            match reader.read(&mut buf) {
                Ok(0) => return Ok((hasher.finish(), total)),
                Ok(n) => {
                    hasher.update(buf.get(..n).unwrap_or_default());
                    total += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The hexadecimal digits without the algorithm's name.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The first 12 digits: enough to name a version to a person.
    pub fn short(&self) -> String {
        self.hex().chars().take(12).collect()
    }

    /// Reads the hexadecimal digits that [`Digest::hex`] writes.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let bytes = text.as_bytes();
        if bytes.len() != 2 * Digest::LEN {
            return None;
        }
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut out = [0u8; Digest::LEN];
        for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Digest(out))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha384:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha384:{}…", self.short())
    }
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Digest, String> {
        text.strip_prefix("sha384:")
            .and_then(Digest::from_hex)
            .ok_or_else(|| format!("{text:?} is not a digest (sha384: and 96 hexadecimal digits)"))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Takes bytes piece by piece and gives their digest.
#[derive(Clone)]
pub struct Hasher(Sha384);

impl Hasher {
    /// Of nothing yet.
    pub fn new() -> Hasher {
        Hasher(Sha384::new())
    }
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        let mut out = [0u8; Digest::LEN];
        for (to, from) in out.iter_mut().zip(self.0.finalize()) {
            *to = from;
        }
        Digest(out)
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Hasher::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_the_standard_says_and_reads_back() {
        // FIPS 180-4, example "abc".
        let digest = Digest::of(b"abc");
        assert!(digest.hex().starts_with("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163"));
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert!("sha384:12".parse::<Digest>().is_err());
    }
}
