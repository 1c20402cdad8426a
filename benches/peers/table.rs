//! Rounds and their ratios, as lines of the table.

use crate::ground::Peer;
use crate::page;

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
    pub fn line(&self, row: &page::Row, ours: Peer) -> String {
        let (work, overlay, fuse) = row;
        let time = |peer| median(&mut self.values(peer)).map_or_else(|| "–".into(), seconds);
        let ratio = |to, wanted: Option<f64>| {
            let text = ratio(&mut self.ratios(ours, to));
            let verdict = page::verdict(&text, wanted);
            format!("{text} | {verdict}")
        };
        format!(
            "| {work} | {} | {} | {} | {} | {} | {} |",
            time(Peer::Native),
            time(Peer::Overlay),
            time(Peer::FuseOverlay),
            time(ours),
            ratio(Peer::Overlay, *overlay),
            ratio(Peer::FuseOverlay, *fuse),
        )
    }
}

/// The middle value; sorts.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Ratios as they are written; sorts.
pub fn ratio(all: &mut [f64]) -> String {
    match median(all) {
        Some(middle) => page::ratio(middle, all[0], all[all.len() - 1]),
        None => "–".into(),
    }
}

/// A time as it is written.
pub fn seconds(s: f64) -> String {
    if s >= 1.0 {
        format!("{s:.2} s")
    } else if s >= 1e-3 {
        format!("{:.1} ms", s * 1e3)
    } else {
        format!("{:.0} µs", s * 1e6)
    }
}
