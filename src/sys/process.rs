//! This process and others.

use std::io;

/// Whether this process acts as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The user this process acts as.
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The group this process acts as.
pub fn gid() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Whether a process with this number exists.
pub fn is_alive(pid: u32) -> bool {
    match rustix::process::Pid::from_raw(pid as i32) {
        Some(pid) => !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH)),
        None => false,
    }
}

/// Files are made with exactly the bits that are asked for.
pub fn clear_umask() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Makes this process the leader of a session of its own, away from the terminal.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Sets how many descriptors the process may hold to what the hard limit allows; returns that number.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(1024)
}

/// The number of this thread's or process's memory in bytes that nobody else shares (`Private_Dirty` and
/// `Private_Clean` of `smaps_rollup`).
pub fn private_memory(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let mut kib = 0;
    for line in text.lines() {
        if let Some(rest) =
            line.strip_prefix("Private_Clean:").or_else(|| line.strip_prefix("Private_Dirty:"))
        {
            kib += rest.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0);
        }
    }
    Ok(kib * 1024)
}
