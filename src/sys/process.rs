//! This process and others.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, SystemTime};

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

/// When the process of that number began; `None` if there is none or it has ended and nobody has waited for it.
pub fn began(pid: u32) -> Option<SystemTime> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; after it come the state and, as the 20th, the time in ticks
    // since the machine started (proc_pid_stat(5)).
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let ticks: f64 = fields.nth(18)?.parse().ok()?;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    let age = (uptime - ticks / a_second).max(0.0);
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(age).ok()?)
}

/// The numbers of a line of a thread's `status` (`proc_pid_status(5)`); none if there is no such thread any more.
fn status(tid: u32, line: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let numbers = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_default();
    numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// The further groups of a thread.
pub fn groups(tid: u32) -> Vec<u32> {
    status(tid, "Groups:")
}

/// Whether a thread acts on files as root.
pub fn is_roots(tid: u32) -> bool {
    status(tid, "Uid:").get(3) == Some(&0)
}

/// Files are made with exactly the bits that are asked for.
pub fn clear_umask() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Lets everybody else go before this thread: for work that nobody waits for. Its disk accesses come when the disk has
/// nothing else to do, where the disk's scheduler knows of that.
pub fn yield_to_others() {
    // `IOPRIO_WHO_PROCESS`, and `IOPRIO_CLASS_IDLE` in its place.
    const WHO: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    // Not the lowest: it holds locks for moments in which others wait.
    const NICE: libc::c_int = 10;
    // SAFETY: both calls take numbers only; number 0 is this thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
        libc::syscall(libc::SYS_ioprio_set, WHO, 0, IDLE);
    }
}

/// Makes this process the leader of a session of its own, away from the terminal.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Makes `dir` the root directory and the working directory of this process.
pub fn change_root(dir: &std::path::Path) -> io::Result<()> {
    std::os::unix::fs::chroot(dir)?;
    std::env::set_current_dir("/")
}

/// Sets how many descriptors the process may hold to what the hard limit allows; returns that number.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(1024)
}

/// As [`raise_descriptor_limit`], and raises the hard limit first, to what the kernel allows (`fs.nr_open`): what the kernel
/// starts has 4,096.
pub fn lift_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let text = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    if let Ok(most) = text.trim().parse::<u64>() {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) });
    }
}

/// Large buffers are mapped each by itself, whatever was freed before: where they lie on one of the allocator's heaps (glibc), it
/// writes zeroes over the beginning of each thread's, 132 KiB of memory for nothing.
pub fn map_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's (mallopt(3)); called before there are threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Lifts the limit on the length of files (`RLIMIT_FSIZE`) as far as it can be lifted: the kernel holds each program to
/// its own before it asks the daemon. Where a limit stays, a write beyond it is an error (`EFBIG`) and not the end of
/// this process.
pub fn lift_file_size_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // SAFETY: sets how a signal is treated to one of the system's own ways; no function of ours is called.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if setrlimit(Resource::Fsize, Rlimit { current: None, maximum: None }).is_err() {
        let maximum = getrlimit(Resource::Fsize).maximum;
        let _ = setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum });
    }
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

/// The program that `command` starts is killed when the thread that starts it ends, and so whatever ends this process
/// (`PR_SET_PDEATHSIG`); it inherits the descriptors `keep` under the numbers that they have here.
pub fn tie(command: &mut Command, keep: Vec<OwnedFd>) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: both calls take numbers only and may be made between fork and exec (they allocate and lock nothing).
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before it was asked for.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for fd in &keep {
                if libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls that are allowed there, and nothing else.
    unsafe { command.pre_exec(prepare) };
}

/// Asks a process to end (`SIGTERM`); one that has ended is fine.
pub fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Gives the threads that are started from now on stacks of 64 MiB, of which only what is used takes memory.
/// To be called first in `main`.
pub fn use_deep_stacks() {
    const NAME: &str = "RUST_MIN_STACK";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: called before any other thread exists, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(NAME, (64 << 20).to_string()) }
    }
}
