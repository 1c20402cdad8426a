//! Versions (manifests) and the names that people give them (refs).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Digest, Hasher, Store, check_name, to_json};
use crate::error::{Doing, Error, Result};
use crate::sys::publish::publish;

/// One immutable version: a stack of layers and where it came from. Holds no path of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The manifest's own format.
    pub format: u32,
    /// The layers, base first.
    pub stack: Vec<Digest>,
    /// The version that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// What its maker says of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Free words of its maker.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How many paths its tree shows.
    pub paths: u64,
    /// Sum of the lengths of its regular files, each hard-link group counted once, in bytes.
    pub bytes: u64,
}

impl Manifest {
    /// The digest that names the stack, and so its tree: over the layers' digests in order.
    pub fn stack_digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        for layer in &self.stack {
            hasher.update(&layer.0);
        }
        hasher.finish()
    }
}

/// How a person names a version: `IMAGE`, `IMAGE:TAG` or `IMAGE@sha384:HEX` (12 digits or more).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionName {
    /// The image.
    pub image: String,
    /// What follows it.
    pub which: Which,
}

/// The part of a version's name after the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// A tag.
    Tag(String),
    /// The first hexadecimal digits of the version's digest.
    Digest(String),
}

impl FromStr for VersionName {
    type Err = Error;
    fn from_str(text: &str) -> Result<VersionName> {
        if let Some((image, digest)) = text.split_once('@') {
            check_name("an image", image)?;
            let hex = digest.strip_prefix("sha384:").unwrap_or_default();
            let fits =
                (12..=96).contains(&hex.len()) && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
            if !fits {
                return Err(Error::Usage(format!(
                    "{text:?}: after '@' comes sha384: and 12 to 96 lower-case hexadecimal digits"
                )));
            }
            return Ok(VersionName { image: image.into(), which: Which::Digest(hex.into()) });
        }
        let (image, tag) = text.split_once(':').unwrap_or((text, "latest"));
        check_name("an image", image)?;
        check_name("a tag", tag)?;
        Ok(VersionName { image: image.into(), which: Which::Tag(tag.into()) })
    }
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Tag(tag) => write!(f, "{}:{tag}", self.image),
            Which::Digest(hex) => write!(f, "{}@sha384:{hex}", self.image),
        }
    }
}

impl VersionName {
    /// The tag, where it is named by one.
    pub fn tag(&self) -> Option<&str> {
        match &self.which {
            Which::Tag(tag) => Some(tag),
            Which::Digest(_) => None,
        }
    }
}

/// A tag and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref {
    /// The image.
    pub image: String,
    /// The tag.
    pub tag: String,
    /// The version.
    pub version: Digest,
}

impl Store {
    /// Writes a manifest and gives back the version's digest.
    pub fn put_version(&self, manifest: &Manifest) -> Result<Digest> {
        let bytes = to_json(manifest);
        let digest = Digest::of(&bytes);
        let path = self.path("versions").join(format!("{}.json", digest.hex()));
        publish(&path, &bytes).at("writing the version", &path)?;
        Ok(digest)
    }

    /// Reads a version's manifest and checks it against its digest.
    pub fn version(&self, digest: &Digest) -> Result<Manifest> {
        let path = self.path("versions").join(format!("{}.json", digest.hex()));
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Failed(format!("version {digest} is not in this store")));
            }
            r => r.at("reading the version", &path)?,
        };
        if Digest::of(&bytes) != *digest {
            return Err(Error::Damaged(format!(
                "the manifest of version {digest} does not match its digest"
            )));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Damaged(format!("the manifest of version {digest} cannot be read: {e}")))?;
        if manifest.format != 1 || manifest.stack.is_empty() {
            return Err(Error::Failed(format!("version {digest} needs a newer reroot")));
        }
        Ok(manifest)
    }

    /// Every version in the store.
    pub fn versions(&self) -> Result<Vec<Digest>> {
        let dir = self.path("versions");
        let mut out: Vec<Digest> = fs::read_dir(&dir)
            .at("reading", &dir)?
            .flatten()
            .filter_map(|e| Digest::from_hex(e.file_name().to_str()?.strip_suffix(".json")?))
            .collect();
        out.sort();
        Ok(out)
    }

    /// The version that a name stands for.
    pub fn resolve(&self, name: &VersionName) -> Result<Digest> {
        match &name.which {
            Which::Tag(tag) => self.read_ref(&name.image, tag)?.ok_or_else(|| self.unknown(name)),
            Which::Digest(prefix) => {
                let found: Vec<Digest> =
                    self.versions()?.into_iter().filter(|d| d.hex().starts_with(prefix)).collect();
                match found[..] {
                    [one] => Ok(one),
                    [] => Err(self.unknown(name)),
                    _ => {
                        Err(Error::Usage(format!("{name} is not unique: {} versions begin so", found.len())))
                    }
                }
            }
        }
    }

    fn unknown(&self, name: &VersionName) -> Error {
        let tags: Vec<String> = self
            .refs()
            .unwrap_or_default()
            .into_iter()
            .filter(|r| r.image == name.image)
            .map(|r| r.tag)
            .collect();
        Error::Failed(if tags.is_empty() {
            format!("there is no image {:?}; `reroot images` lists what is there", name.image)
        } else {
            format!("there is no version {name}; the image has the tags {}", tags.join(", "))
        })
    }

    /// What a tag names; `None` where there is no such tag.
    pub fn read_ref(&self, image: &str, tag: &str) -> Result<Option<Digest>> {
        let path = self.path("refs").join(image).join(tag);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at("reading", path),
            Ok(text) => text
                .trim_end()
                .parse()
                .map(Some)
                .map_err(|e| Error::Damaged(format!("the tag {image}:{tag} is damaged: {e}"))),
        }
    }

    /// Makes a tag name a version, whatever it named before.
    pub fn write_ref(&self, image: &str, tag: &str, version: &Digest) -> Result<()> {
        check_name("an image", image)?;
        check_name("a tag", tag)?;
        let dir = self.path("refs").join(image);
        fs::create_dir_all(&dir).at("making", &dir)?;
        let path = dir.join(tag);
        publish(&path, format!("{version}\n").as_bytes()).at("writing the tag", path)
    }

    /// Removes a tag; the image's directory goes with its last one.
    pub fn remove_ref(&self, image: &str, tag: &str) -> Result<()> {
        let dir = self.path("refs").join(image);
        fs::remove_file(dir.join(tag)).at("removing the tag", dir.join(tag))?;
        // Fails while other tags are there, and that is right.
        let _ = fs::remove_dir(&dir);
        Ok(())
    }

    /// Every tag of every image, sorted.
    pub fn refs(&self) -> Result<Vec<Ref>> {
        let mut out = Vec::new();
        let top = self.path("refs");
        // A collection takes these for all there are: a directory that cannot be read is no empty one.
        for image in fs::read_dir(&top).at("reading", &top)? {
            let image = image.at("reading", &top)?;
            let tags = match fs::read_dir(image.path()) {
                Ok(tags) => tags,
                Err(e) if matches!(e.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::NotFound) => {
                    continue;
                }
                Err(e) => return Err(e).at("reading", image.path()),
            };
            for tag in tags {
                let tag = tag.at("reading", image.path())?;
                let (Ok(image), Ok(tag)) = (image.file_name().into_string(), tag.file_name().into_string())
                else {
                    continue;
                };
                if tag.starts_with('.') {
                    continue;
                }
                if let Some(version) = self.read_ref(&image, &tag)? {
                    out.push(Ref { image, tag, version });
                }
            }
        }
        out.sort_by(|a, b| (&a.image, &a.tag).cmp(&(&b.image, &b.tag)));
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_versions_are_read_strictly() {
        let name = |t: &str| t.parse::<VersionName>();
        assert_eq!(name("office").unwrap().to_string(), "office:latest");
        assert_eq!(name("office:2025.10").unwrap().tag(), Some("2025.10"));
        assert!(name("office@sha384:0123456789ab").unwrap().tag().is_none());
        for bad in
            ["", ":x", "a:", "a/b", "../x", "a:..", "a@sha384:123", "a@sha256:0123456789ab", ".a", "a:-b"]
        {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
