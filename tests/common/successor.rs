//! Ends of daemons that their mounts outlive.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Program;
use super::scratch::is_dead;

/// How long a daemon may take to be followed by another one.
const LIMIT: Duration = Duration::from_secs(120);

/// A daemon that ends sooner after its view answered counts as one that never came so far; five of those in a row end the
/// mount.
const QUICK: Duration = Duration::from_millis(1100);

fn mounted(program: &Program, desktop: &str) -> (u32, u64) {
    let status = program.json(&["status", desktop]);
    assert_eq!(status["mounted"], true, "{status}");
    (status["pid"].as_u64().unwrap() as u32, status["restarts"].as_u64().unwrap())
}

/// The process of a desktop's daemon.
#[track_caller]
pub fn daemon(program: &Program, desktop: &str) -> u32 {
    mounted(program, desktop).0
}

/// Kills a desktop's daemon, and not its supervisor; returns when it is dead.
#[track_caller]
pub fn kill_daemon(program: &Program, desktop: &str) {
    let pid = daemon(program, desktop);
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success(), "{pid} was there");
    let began = Instant::now();
    while !is_dead(pid) {
        assert!(began.elapsed() < LIMIT, "{pid} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same, and waits until another one goes on. Not so soon after the last time that the supervisor gives up.
#[track_caller]
pub fn replace_daemon(program: &Program, desktop: &str) {
    std::thread::sleep(QUICK);
    let (_, before) = mounted(program, desktop);
    kill_daemon(program, desktop);
    let began = Instant::now();
    while mounted(program, desktop).1 == before {
        assert!(began.elapsed() < LIMIT, "no daemon followed\n{}", log(program, desktop));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the daemons of a desktop have said.
pub fn log(program: &Program, desktop: &str) -> String {
    let path: PathBuf = program.store().join("desktops").join(desktop).join("daemon.log");
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Kills a desktop's daemon `times` times, until `stop`. How often it did.
pub fn kill_again_and_again(program: &Program, desktop: &str, times: usize, stop: &AtomicBool) -> usize {
    for done in 0..times {
        if stop.load(Ordering::Relaxed) {
            return done;
        }
        replace_daemon(program, desktop);
    }
    times
}
