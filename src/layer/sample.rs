//! A small store for tests: versions with one file per given text.

use std::fs;
use std::path::PathBuf;

use super::model::{Content, Draft, Meta, ROOT};
use super::stack::{Words, publish_version};
use crate::store::objects::Intake;
use crate::store::{Digest, Store};

/// A store in a directory of its own, removed at the end.
pub struct Sample {
    pub store: Store,
    dir: PathBuf,
}

impl Sample {
    pub fn new(name: &str) -> Sample {
        let dir = std::env::temp_dir().join(format!("reroot-sample-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Sample { store: Store::open(&dir).unwrap(), dir }
    }

    /// A version with the files `name` → text, tagged `office:tag` unless `tag` is empty.
    pub fn version(&self, tag: &str, parent: Option<&Digest>, files: &[(&str, &str)]) -> Digest {
        let intake = Intake::begin(&self.store).unwrap();
        let mut draft = Draft::default();
        for (name, text) in files {
            let (object, size) = intake.add_reader(text.as_bytes(), &|_| {}).unwrap().unwrap();
            let id = draft.add(Meta { mode: 0o644, ..Meta::default() }, Content::File { object, size });
            draft.link(ROOT, name.as_bytes(), id);
        }
        intake.finish().unwrap();
        let manifest = parent.map(|p| self.store.version(p).unwrap());
        let parent = parent.zip(manifest.as_ref());
        let words = Words { message: tag.into(), ..Words::default() };
        let (digest, _) = publish_version(&self.store, parent, &draft, words).unwrap().unwrap();
        if !tag.is_empty() {
            self.store.write_ref("office", tag, &digest).unwrap();
        }
        digest
    }

    pub fn object(&self, text: &str) -> PathBuf {
        self.store.object_path(&Digest::of(text.as_bytes()))
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
