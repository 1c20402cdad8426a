//! How many threads wait for requests.
//!
//! The kernel wakes whichever thread has waited longest. Where one task asks one thing after the other that is a cold
//! thread each time, and one more for what needs no answer (RELEASE), which then stands in the way of the next
//! request. So while one task asks alone, one thread serves it and the others stand aside; as soon as another task
//! asks, or something takes long, all of them wait for requests again.
//!
//! Promise: requests are never left lying. At least one thread waits, or is about to; and where no request was begun
//! for [`TICK`] (nobody asks, or the only server is held up, or the session has ended) all threads are let in.
//!
//! Lock order: `ended` is a leaf.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::sys::mount;

/// So many requests in a row from one task, none of them slow, and the other threads stand aside.
const ALONE: u32 = 64;

/// How long a request can lie before somebody else takes it.
const TICK: Duration = Duration::from_millis(10);

/// How long the only server looks out for the next request before it sleeps.
const LOOK: Duration = Duration::from_micros(50);
/// So often looking out may be of no use until it is given up for a while,
const LUCK: i32 = 4;
/// which is so many requests long.
const PAUSE: i32 = 64;

/// The threads of a session.
#[derive(Debug)]
pub struct Servers {
    /// Threads that wait for a request, or are about to.
    waiting: AtomicUsize,
    /// One is enough.
    one: AtomicBool,
    /// The task that asked last.
    caller: AtomicU32,
    /// How many requests it made in a row.
    run: AtomicU32,
    /// Counts requests, round and round.
    begun: AtomicU32,
    /// The session's device, where it is known.
    device: OnceLock<OwnedFd>,
    /// How often looking out for the next request was of use lately; below 0 it is not tried.
    luck: AtomicI32,
    ended: Mutex<bool>,
    /// Who stands aside may come back.
    all: Condvar,
    /// One is enough from now on, or the end has come.
    watched: Condvar,
}

/// A request that is being served. Dropped after its answer.
#[derive(Debug)]
pub struct Serving<'a>(&'a Servers);

impl Servers {
    /// For a session of that many threads.
    pub fn new(threads: usize) -> Servers {
        Servers {
            waiting: AtomicUsize::new(threads),
            one: AtomicBool::new(false),
            caller: AtomicU32::new(0),
            run: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            device: OnceLock::new(),
            luck: AtomicI32::new(0),
            ended: Mutex::new(false),
            all: Condvar::new(),
            watched: Condvar::new(),
        }
    }

    /// A request begins. `caller` is the task that asks, 0 where the kernel asks by itself.
    pub fn serve(&self, caller: u32, slow: bool) -> Serving<'_> {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::Relaxed);
        let other = caller != 0 && self.caller.load(Ordering::Relaxed) != caller;
        if other {
            self.caller.store(caller, Ordering::Relaxed);
        }
        if other || slow {
            self.run.store(0, Ordering::Relaxed);
            if self.one.load(Ordering::Acquire) {
                self.let_in();
            }
        } else if caller != 0 && self.run.fetch_add(1, Ordering::Relaxed) == ALONE {
            self.one.store(true, Ordering::Release);
            drop(self.ended.lock());
            self.watched.notify_all();
        }
        Serving(self)
    }

    /// Everybody waits for requests again.
    fn let_in(&self) {
        let ended = self.ended.lock();
        self.one.store(false, Ordering::Release);
        drop(ended);
        self.all.notify_all();
    }

    /// The device that the requests come from.
    pub fn listen_to(&self, device: OwnedFd) {
        let _ = self.device.set(device);
    }

    /// Looks out for the next request for a while.
    fn look_out(&self) {
        let Some(device) = self.device.get() else { return };
        let luck = self.luck.load(Ordering::Relaxed);
        if luck < 0 {
            self.luck.store(luck + 1, Ordering::Relaxed);
            return;
        }
        let since = Instant::now();
        while since.elapsed() < LOOK {
            if mount::has_request(device) {
                self.luck.store((luck + 1).min(LUCK), Ordering::Relaxed);
                return;
            }
        }
        self.luck.store(if luck == 0 { -PAUSE } else { luck - 1 }, Ordering::Relaxed);
    }

    fn stand_aside(&self) {
        let mut ended = self.ended.lock();
        while self.one.load(Ordering::Acquire) && !*ended {
            self.all.wait(&mut ended);
        }
    }

    /// Keeps the promise, until [`Servers::end`].
    pub fn watch(&self) {
        let mut ended = self.ended.lock();
        while !*ended {
            if !self.one.load(Ordering::Acquire) {
                self.watched.wait(&mut ended);
                continue;
            }
            let before = self.begun.load(Ordering::Relaxed);
            // Woken early: one more look.
            if self.watched.wait_for(&mut ended, TICK).timed_out()
                && self.begun.load(Ordering::Relaxed) == before
            {
                self.run.store(0, Ordering::Relaxed);
                self.one.store(false, Ordering::Release);
                self.all.notify_all();
            }
        }
    }

    /// The session is over: [`Servers::watch`] returns, and nobody stands aside any more.
    pub fn end(&self) {
        *self.ended.lock() = true;
        self.watched.notify_all();
        self.all.notify_all();
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let servers = self.0;
        let mut waiting = servers.waiting.load(Ordering::Acquire);
        loop {
            if waiting > 0 && servers.one.load(Ordering::Acquire) {
                servers.stand_aside();
                servers.waiting.fetch_add(1, Ordering::AcqRel);
                return;
            }
            match servers.waiting.compare_exchange_weak(
                waiting,
                waiting + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    if servers.one.load(Ordering::Acquire) {
                        servers.look_out();
                    }
                    return;
                }
                Err(now) => waiting = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    /// Serves one request of `caller` in a thread of its own; what comes back says that it waits again.
    fn serve_in_thread(servers: &Arc<Servers>, caller: u32) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel();
        let servers = servers.clone();
        thread::spawn(move || {
            drop(servers.serve(caller, false));
            let _ = sender.send(());
        });
        receiver
    }

    fn alone(servers: &Servers) {
        for _ in 0..=ALONE + 1 {
            let serving = servers.serve(7, false);
            // This thread is the one that goes on: the others are out.
            servers.waiting.store(0, Ordering::Release);
            drop(serving);
        }
        assert!(servers.one.load(Ordering::Acquire));
    }

    #[test]
    fn one_task_is_served_by_one_thread_and_another_task_brings_all_back() {
        let servers = Arc::new(Servers::new(2));
        alone(&servers);
        servers.waiting.store(2, Ordering::Release);
        let aside = serve_in_thread(&servers, 7);
        assert!(aside.recv_timeout(Duration::from_millis(200)).is_err(), "it stands aside");
        drop(servers.serve(8, false));
        assert!(aside.recv_timeout(LONG).is_ok(), "it came back");
        assert_eq!(servers.waiting.load(Ordering::Acquire), 2);
    }

    #[test]
    fn something_slow_brings_all_back() {
        let servers = Arc::new(Servers::new(2));
        alone(&servers);
        servers.waiting.store(2, Ordering::Release);
        let aside = serve_in_thread(&servers, 7);
        assert!(aside.recv_timeout(Duration::from_millis(200)).is_err());
        let slow = servers.serve(7, true);
        assert!(aside.recv_timeout(LONG).is_ok());
        drop(slow);
    }

    #[test]
    fn where_the_only_server_is_held_up_the_others_are_let_in() {
        let servers = Arc::new(Servers::new(2));
        let watching = {
            let servers = servers.clone();
            thread::spawn(move || servers.watch())
        };
        alone(&servers);
        servers.waiting.store(2, Ordering::Release);
        let aside = serve_in_thread(&servers, 7);
        let held_up = servers.serve(7, false);
        assert!(aside.recv_timeout(LONG).is_ok());
        drop(held_up);
        servers.end();
        watching.join().expect("the watch ends");
    }

    #[test]
    fn the_last_thread_never_stands_aside() {
        let servers = Servers::new(1);
        for _ in 0..10 * ALONE {
            drop(servers.serve(7, false));
        }
        assert!(servers.one.load(Ordering::Acquire));
        assert_eq!(servers.waiting.load(Ordering::Acquire), 1);
    }
}
