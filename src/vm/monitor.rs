//! What QEMU tells of its machine, and what it is asked (QMP, the QEMU Machine Protocol: lines of JSON).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use serde_json::Value;

use super::Event;
use crate::error::{Doing, Result};

/// A line of QEMU's is never longer.
const LINE: u64 = 1 << 20;

/// The connection to a running QEMU.
#[derive(Debug)]
pub struct Monitor {
    ours: UnixStream,
    reader: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Makes the connection; gives QEMU's end of it. What happens is sent as events.
    pub fn connect(events: Sender<Event>) -> Result<(Monitor, OwnedFd)> {
        let doing = "making a connection to QEMU";
        let (ours, theirs) = UnixStream::pair().doing(doing)?;
        let lines = ours.try_clone().doing(doing)?;
        let reader = std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || read(lines, &events))
            .doing(doing)?;
        let mut monitor = Monitor { ours, reader: Some(reader) };
        // QEMU tells nothing before this. It may be sent at once: the socket keeps it.
        monitor.ask("qmp_capabilities");
        Ok((monitor, theirs.into()))
    }

    /// Presses the machine's power button: a system that listens to it shuts down.
    pub fn press_power_button(&mut self) {
        self.ask("system_powerdown");
    }

    /// Pulls the plug: the machine ends at once, and QEMU with it.
    pub fn pull_the_plug(&mut self) {
        self.ask("quit");
    }

    /// A QEMU that has gone is asked nothing; that it has gone is noticed elsewhere.
    fn ask(&mut self, command: &str) {
        let _ = self.ours.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes());
    }

    /// Waits until everything that QEMU told has been sent on. To be called when QEMU has ended.
    pub fn finish(&mut self) {
        // A descriptor of QEMU's end that somebody else has inherited must not hold up this.
        let _ = self.ours.set_read_timeout(Some(std::time::Duration::from_secs(1)));
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn read(stream: UnixStream, events: &Sender<Event>) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut lines).take(LINE).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        if let Some(event) = event(&line)
            && events.send(event).is_err()
        {
            return;
        }
    }
}

/// What a line tells, where it is of interest.
fn event(line: &[u8]) -> Option<Event> {
    let value: Value = serde_json::from_slice(line).ok()?;
    match value.get("event")?.as_str()? {
        "SHUTDOWN" => {
            let reason = value.pointer("/data/reason").and_then(Value::as_str).unwrap_or_default();
            Some(Event::Shutdown(reason.into()))
        }
        "GUEST_PANICKED" => Some(Event::Shutdown("guest-panic".into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_machine_is_read_with_its_reason() {
        let line = br#"{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert!(matches!(event(line), Some(Event::Shutdown(r)) if r == "guest-reset"));
        let line = br#"{"event": "GUEST_PANICKED", "data": {"action": "poweroff"}}"#;
        assert!(matches!(event(line), Some(Event::Shutdown(r)) if r == "guest-panic"));
        assert!(event(br#"{"return": {}}"#).is_none() && event(b"{").is_none());
    }
}
