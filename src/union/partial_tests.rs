//! Random operations on a partly copied file against the bytes that it must show, and what a crash leaves.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;

/// Numbers that look random, the same for a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}

/// A directory on a disk that suits, if the place for temporary files is on one.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("reroot-partial-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Place(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> File {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(self.0.join(name));
        let file = file.unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    /// Whether it can hold a partly copied file at all.
    fn suits(&self) -> bool {
        let file = self.file("probe", b"");
        file.set_len(1 << 20).unwrap();
        let magic = sys::space(&file).unwrap().magic;
        suits(magic) && shows_holes(&file).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn marks() -> Namespace {
    Namespace::for_process()
}

/// An object with holes, and an empty file that stands for it.
struct Pair {
    object: Arc<File>,
    file: File,
    filling: Filling,
    model: Vec<u8>,
}

impl Pair {
    fn new(place: &Place, size: u64, dice: &mut Dice) -> Pair {
        let object = place.file("object", b"");
        object.set_len(size).unwrap();
        let mut model = vec![0; size as usize];
        let mut at = 0;
        while at < size {
            let end = size.min(at + 1 + dice.below(200_000));
            let first = 1 + dice.below(250);
            let bytes: Vec<u8> = (at..end).map(|i| (first + i / 512 % 5) as u8).collect();
            object.write_all_at(&bytes, at).unwrap();
            model[at as usize..end as usize].copy_from_slice(&bytes);
            at = end + dice.below(100_000);
        }
        let file = place.file("file", b"");
        file.set_len(size).unwrap();
        let partial = Partial { object: Digest::of(b"an object"), size, limit: size };
        marks().set_own(&file, "partial", &partial.encode()).unwrap();
        let filling = Filling::of(&file, &partial, Vec::new(), marks()).unwrap();
        Pair { object: Arc::new(object), file, filling, model }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let (at, end) = (at as usize, at as usize + bytes.len());
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at..end].copy_from_slice(bytes);
    }

    /// One operation, of any kind; what it was.
    fn step(&mut self, dice: &mut Dice, next: &mut u64) -> String {
        let size = self.model.len() as u64;
        let limit = self.filling.limit();
        // Near a block's border, the limit or the end, or anywhere.
        let near = |dice: &mut Dice, at: u64| (at + dice.below(9)).saturating_sub(4);
        let at = match dice.below(6) {
            0 => near(dice, limit),
            1 => near(dice, size),
            2 => {
                let block = dice.below(size / BLOCK + 2) * BLOCK;
                near(dice, block)
            }
            _ => dice.below(size + 5000),
        };
        let len = match dice.below(3) {
            0 => dice.below(10) + 1,
            1 => {
                let blocks = (1 + dice.below(6)) * BLOCK;
                near(dice, blocks).max(1)
            }
            _ => dice.below(40_000) + 1,
        };
        let object = self.object.clone();
        let source = move || Ok(object.clone());
        let choice = dice.below(100);
        let keeps = libc::FALLOC_FL_KEEP_SIZE as u32;
        match choice {
            0..40 => {
                let byte = 1 + dice.below(250) as u8;
                let bytes = vec![byte; len as usize];
                self.filling.write(&self.file, &source, at, &bytes).unwrap();
                self.put(at, &bytes);
            }
            40..48 => {
                let to = if choice < 44 { at } else { size.saturating_sub(len) };
                self.filling.truncate(&self.file, to).unwrap();
                self.model.resize(to as usize, 0);
            }
            48..56 => {
                let mode = keeps | libc::FALLOC_FL_PUNCH_HOLE as u32;
                self.filling.allocate(&self.file, &source, mode, at, len).unwrap();
                let end = (at + len).min(size);
                self.model.get_mut(at as usize..end as usize).unwrap_or_default().fill(0);
            }
            56..64 => {
                let mode = libc::FALLOC_FL_ZERO_RANGE as u32 | if choice < 60 { keeps } else { 0 };
                self.filling.allocate(&self.file, &source, mode, at, len).unwrap();
                let end = if choice < 60 { (at + len).min(size).max(at) } else { at + len };
                if choice >= 60 || at < size {
                    self.put(at, &vec![0; (end - at) as usize]);
                }
            }
            64..72 => {
                let mode = if choice < 68 { keeps } else { 0 };
                self.filling.allocate(&self.file, &source, mode, at, len).unwrap();
                if choice >= 68 {
                    self.model.resize((at + len).max(size) as usize, 0);
                }
            }
            72..80 => {
                let before = sys::stat(&self.file).unwrap();
                *next = self.filling.fill(&self.file, &self.object, *next).unwrap().map_or(0, |(at, _)| at);
                let after = sys::stat(&self.file).unwrap();
                assert_eq!((before.mtime, before.atime), (after.mtime, after.atime), "filling is not seen");
                assert_eq!(marks().times(&self.file).unwrap(), None);
            }
            80..84 => self.file.sync_all().unwrap(),
            84..90 => {
                // The daemon begins anew.
                self.filling = match marks().partial(&self.file).unwrap() {
                    Some(partial) => Filling::of(&self.file, &partial, Vec::new(), marks()).unwrap(),
                    None => {
                        let none = Partial { object: Digest::of(b""), size: 0, limit: 0 };
                        Filling::of(&self.file, &none, Vec::new(), marks()).unwrap()
                    }
                };
            }
            _ => self.check_extents(&source),
        }
        format!("{choice} at {at} for {len} of {size}, limit {limit}")
    }

    /// What is a hole shows zeroes, and the pieces follow each other to the end.
    fn check_extents(&self, source: &Source<'_>) {
        let size = self.model.len() as u64;
        let mut at = 0;
        while at < size {
            let data = self.filling.seek(&self.file, source, at, false).unwrap().unwrap_or(size);
            assert!(self.model[at as usize..data as usize].iter().all(|b| *b == 0), "a hole at {at}");
            if data == size {
                break;
            }
            at = self.filling.seek(&self.file, source, data, true).unwrap().unwrap();
            assert!(at > data, "data at {data}");
        }
        assert_eq!(self.filling.seek(&self.file, source, size, true).unwrap(), None);
    }

    fn shown(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xAA; len];
        let n = self.filling.read(&self.file, &|| Ok(self.object.clone()), at, &mut buf).unwrap();
        buf.truncate(n);
        buf
    }

    fn check(&self, log: &[String]) {
        let seen = self.shown(0, self.model.len() + 10_000);
        if seen != self.model {
            let first = seen.iter().zip(&self.model).position(|(a, b)| a != b);
            let from = log.len().saturating_sub(15);
            panic!(
                "{} bytes instead of {}, first differing {:?}\n{}",
                seen.len(),
                self.model.len(),
                first.map(|f| (f, seen[f], self.model[f])),
                log[from..].join("\n")
            );
        }
    }
}

#[test]
fn a_partly_copied_file_shows_what_any_file_would() {
    let place = Place::new("model");
    if !place.suits() {
        // No file is copied in pieces there.
        return;
    }
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let size = [1, 4095, 4096, 50_000, 1 << 20, 1_234_567][dice.below(6) as usize];
        let mut pair = Pair::new(&place, size, &mut dice);
        let (mut log, mut next) = (vec![format!("seed {seed}, {size} bytes")], 0);
        for _ in 0..150 {
            log.push(pair.step(&mut dice, &mut next));
            pair.check(&log);
        }
        while let Some((at, _)) = pair.filling.fill(&pair.file, &pair.object, 0).unwrap() {
            assert!(at > 0);
        }
        assert!(pair.filling.end(&pair.file, &pair.object).unwrap());
        assert_eq!(marks().partial(&pair.file).unwrap(), None);
        log.push("completed".into());
        pair.check(&log);
        let on_disk = std::fs::read(place.0.join("file")).unwrap();
        assert!(on_disk == pair.model, "what is on the disk is what is shown");
    }
}
