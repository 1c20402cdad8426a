//! Rounds, ratios and the table that BENCHMARKS.md holds.

use crate::ground::Peer;

/// The table's first line. A test compares BENCHMARKS.md with it, so that an old table is noticed.
pub const HEAD: &str = "| work | native | overlayfs | fuse-overlayfs | Reroot | to overlayfs | wanted | to fuse-overlayfs | wanted |";

/// What was measured of one row: per round, one value for each peer (seconds, or what the row says).
#[derive(Debug, Default)]
pub struct Measured {
    rounds: Vec<Vec<(Peer, f64)>>,
}

impl Measured {
    /// Adds a round.
    pub fn round(&mut self, values: Vec<(Peer, f64)>) {
        self.rounds.push(values);
    }

    fn values(&self, peer: Peer) -> Vec<f64> {
        self.rounds.iter().filter_map(|r| r.iter().find(|(p, _)| *p == peer).map(|(_, v)| *v)).collect()
    }

    fn ratios(&self, peer: Peer, to: Peer) -> Vec<f64> {
        let value = |round: &Vec<(Peer, f64)>, p| round.iter().find(|(q, _)| *q == p).map(|(_, v)| *v);
        self.rounds.iter().filter_map(|r| Some(value(r, peer)? / value(r, to)?)).collect()
    }

    /// The row as a line of the table.
    pub fn line(&self, work: &str, ours: Peer, wanted: (Option<f64>, Option<f64>)) -> String {
        let time = |peer| median(&mut self.values(peer)).map_or_else(|| "–".into(), seconds);
        let ratio = |to, wanted: Option<f64>| {
            let mut all = self.ratios(ours, to);
            let Some(middle) = median(&mut all) else { return ("–".to_string(), "–".to_string()) };
            let text = format!("{middle:.2} ({:.2}–{:.2})", all[0], all[all.len() - 1]);
            match wanted {
                Some(limit) if middle <= limit => (text, format!("≤ {limit}")),
                Some(limit) => (text, format!("≤ {limit}: **missed**")),
                None => (text, "–".into()),
            }
        };
        let (overlay, overlay_wanted) = ratio(Peer::Overlay, wanted.0);
        let (fuse, fuse_wanted) = ratio(Peer::FuseOverlay, wanted.1);
        format!(
            "| {work} | {} | {} | {} | {} | {overlay} | {overlay_wanted} | {fuse} | {fuse_wanted} |",
            time(Peer::Native),
            time(Peer::Overlay),
            time(Peer::FuseOverlay),
            time(ours),
        )
    }
}

/// The middle value; sorts.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn seconds(s: f64) -> String {
    if s >= 1.0 {
        format!("{s:.2} s")
    } else if s >= 1e-3 {
        format!("{:.1} ms", s * 1e3)
    } else {
        format!("{:.0} µs", s * 1e6)
    }
}
