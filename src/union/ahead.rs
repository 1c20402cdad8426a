//! Contents that somebody is about to read.
//!
//! Contents lie in a store under their digests, so those of one directory do not lie together on the disk. Who reads its
//! files one after the other would wait for the disk at each. So where somebody has waited and goes on in the order of
//! the tree, the contents of what comes next there are asked for, several at once: first of a few files, then of twice as
//! many each time, as the kernel reads ahead within one file (Wu Fengguang et al., "On the design of a new Linux
//! readahead framework", 2008).
//!
//! Nothing depends on it: what cannot be asked for is passed over.
//!
//! Lock order: `streams` and `asked` are leaves, and not held together.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::lower::{Objects, Tree};
use crate::sys::fs as sys;

/// An object that is not opened within this had to be brought from the disk.
const WAITED: Duration = Duration::from_micros(60);
/// So many readers are told apart.
const STREAMS: usize = 8;
/// Who reads on so few places further reads in order.
const NEAR: u32 = 8;
/// For so many places is asked at first, and at most.
const FIRST: u32 = 8;
const MOST: u32 = 256;
/// Of larger files the beginning is asked for, in bytes; the kernel goes on from there.
const BEGINNING: u64 = 128 << 10;
/// So many objects are asked for at once,
const AT_ONCE: usize = 6;
/// and for so long a thread waits for more.
const IDLE: Duration = Duration::from_millis(200);

/// Somebody who reads files in the order of a tree.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The place that was read last.
    last: u32,
    /// Everything before this place was asked for.
    asked: u32,
    window: u32,
}

/// What is asked for, and by how many.
#[derive(Debug, Default)]
struct Asked {
    places: VecDeque<(Arc<Tree>, Range<u32>)>,
    threads: usize,
    idle: usize,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Asked>,
    more: Condvar,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ahead {
    streams: Mutex<VecDeque<Stream>>,
    shared: Arc<Shared>,
}

impl Ahead {
    /// The file at `place` of a tree was opened, which was begun at `since`.
    pub fn read(&self, objects: &Arc<Objects>, tree: &Arc<Tree>, place: u32, since: Instant) {
        let waited = since.elapsed() > WAITED;
        let next = follow(&mut self.streams.lock(), place, waited);
        if !next.is_empty() {
            self.ask(objects, tree.clone(), next);
        }
    }

    fn ask(&self, objects: &Arc<Objects>, tree: Arc<Tree>, places: Range<u32>) {
        let mut asked = self.shared.asked.lock();
        let wanted = places.len().min(AT_ONCE);
        asked.places.push_back((tree, places));
        if asked.places.len() > STREAMS {
            // Somebody else's was not even begun: it is late by now.
            asked.places.pop_front();
        }
        let new = wanted.saturating_sub(asked.idle).min(AT_ONCE - asked.threads.min(AT_ONCE));
        asked.threads += new;
        drop(asked);
        self.shared.more.notify_all();
        for _ in 0..new {
            let (shared, objects) = (self.shared.clone(), objects.clone());
            let thread = std::thread::Builder::new().name("ahead".into());
            if thread.spawn(move || shared.serve(&objects)).is_err() {
                self.shared.asked.lock().threads -= 1;
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.asked.lock().ended = true;
        self.shared.more.notify_all();
    }
}

impl Shared {
    fn serve(&self, objects: &Objects) {
        while let Some((tree, place)) = self.next() {
            bring(objects, &tree, place);
        }
    }

    /// `None`: there was nothing more for a while.
    fn next(&self) -> Option<(Arc<Tree>, u32)> {
        let mut asked = self.asked.lock();
        loop {
            if asked.ended {
                asked.threads -= 1;
                return None;
            }
            if let Some((tree, places)) = asked.places.front_mut() {
                match places.next() {
                    Some(place) => return Some((tree.clone(), place)),
                    None => drop(asked.places.pop_front()),
                }
                continue;
            }
            asked.idle += 1;
            let late = self.more.wait_for(&mut asked, IDLE).timed_out();
            asked.idle -= 1;
            if late && asked.places.is_empty() {
                asked.threads -= 1;
                return None;
            }
        }
    }
}

/// Asks for the content of the file at a place of a tree, if it is one.
fn bring(objects: &Objects, tree: &Tree, place: u32) {
    let Ok(node) = tree.index.node(place) else { return };
    if !node.is_file() || node.size == 0 {
        return;
    }
    if let Ok(digest) = tree.index.object(&node)
        && let Ok(file) = objects.peek(&digest)
    {
        let _ = sys::will_need(&file, node.size.min(BEGINNING));
    }
}

/// Notes that somebody reads at `place`: which places to ask for.
fn follow(streams: &mut VecDeque<Stream>, place: u32, waited: bool) -> Range<u32> {
    let goes_on = |s: &Stream| s.last <= place && place <= s.asked.max(s.last.saturating_add(NEAR));
    let Some(at) = streams.iter().position(goes_on) else {
        if waited {
            streams.push_front(Stream { last: place, asked: place, window: 0 });
            streams.truncate(STREAMS);
        }
        return 0..0;
    };
    let Some(mut stream) = streams.remove(at) else { return 0..0 };
    let again = stream.last == place;
    stream.last = place;
    let mut next = 0..0;
    if !again && stream.asked.saturating_sub(place) <= stream.window / 2 {
        stream.window = (stream.window * 2).clamp(FIRST, MOST);
        next = stream.asked.max(place + 1)..(place + 1).saturating_add(stream.window);
        stream.asked = next.end;
    }
    streams.push_front(stream);
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_in_order_is_read_ahead_of_and_who_does_not_is_not() {
        let mut streams = VecDeque::new();
        let mut asked = Vec::new();
        for place in 100..1000 {
            let next = follow(&mut streams, place, place < 102);
            assert!(next.is_empty() || next.start > place);
            assert!(next.is_empty() || next.start >= asked.last().copied().unwrap_or(0), "{next:?} once");
            asked.extend(next);
            if place > 101 {
                assert!(asked.contains(&place), "{place} was asked for");
            }
        }
        // As far as the window, and no place twice.
        assert!(asked.windows(2).all(|w| w[0] < w[1]));
        assert!(asked.len() <= 900 + MOST as usize);
        let mut streams = VecDeque::new();
        for n in 0..1000u32 {
            assert!(follow(&mut streams, n.wrapping_mul(2_654_435_761) >> 8, true).is_empty());
        }
        assert!(streams.len() <= STREAMS);
    }

    #[test]
    fn where_nobody_waits_nothing_is_asked_for() {
        let mut streams = VecDeque::new();
        assert!((0..1000).all(|place| follow(&mut streams, place, false).is_empty()));
    }

    #[test]
    fn readers_beside_each_other_are_told_apart() {
        let mut streams = VecDeque::new();
        let mut asked = [0, 0, 0];
        for n in 0..200 {
            for (reader, first) in [1000, 5000, 9000].into_iter().enumerate() {
                asked[reader] += follow(&mut streams, first + n, true).len();
            }
        }
        assert!(asked.iter().all(|n| *n >= 198), "{asked:?}");
    }

    #[test]
    fn the_same_file_again_is_no_reading_in_order() {
        let mut streams = VecDeque::new();
        assert!((0..100).all(|_| follow(&mut streams, 7, true).is_empty()));
    }
}
