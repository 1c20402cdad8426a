//! Rows and columns, and how sizes and digests are written in them.

/// Rows under headings.
pub struct Table {
    headings: Vec<&'static str>,
    /// Columns of numbers stand at the right.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A heading that begins with `>` makes its column stand at the right.
    pub fn new(headings: &[&'static str]) -> Table {
        Table {
            headings: headings.iter().map(|h| h.trim_start_matches('>')).collect(),
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// One more row. Line ends and tabs in a cell become spaces.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |c: String| c.replace(['\n', '\t', '\r'], " ");
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// Headings and rows in columns.
    pub fn aligned(&self) -> Vec<String> {
        let headings: Vec<String> = self.headings.iter().map(|h| h.to_string()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |i: usize| all.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.headings.len()).map(|i| width(i).unwrap_or_default()).collect();
        let write = |row: &Vec<String>| {
            let mut out = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                if !out.is_empty() {
                    out.push_str("  ");
                }
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                if *right {
                    out.push_str(&pad);
                    out.push_str(cell);
                } else {
                    out.push_str(cell);
                    out.push_str(&pad);
                }
            }
            out.trim_end().to_string()
        };
        all.into_iter().map(write).collect()
    }

    /// Rows with tabs between their cells.
    pub fn plain(&self) -> Vec<String> {
        self.rows.iter().map(|r| r.join("\t")).collect()
    }
}

/// So many bytes in so long, as people read it: `1.0 GiB in 2.5 s, 429 MB/s`. Of a few bytes the speed says nothing.
pub fn rate(bytes: u64, seconds: f64) -> String {
    let mut out = format!("{} in {seconds:.1} s", size(bytes));
    if bytes >= 1_000_000 {
        out += &format!(", {:.0} MB/s", bytes as f64 / 1e6 / seconds.max(1e-3));
    }
    out
}

/// A time as scripts read it: seconds, to the millisecond.
pub fn seconds_since(began: std::time::Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1e3).round() / 1e3
}

/// Bytes as people read them: `512 B`, `1.5 KiB`, `20 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `1 path`, `2 paths`.
pub fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let all = [0, 1023, 1024, 1536, 10 << 10, (1 << 20) - 1, 3 << 30, u64::MAX].map(size);
        assert_eq!(all, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "1.0 MiB", "3.0 GiB", "16 EiB"]);
    }

    #[test]
    fn columns_line_up_on_a_terminal_and_are_tabbed_elsewhere() {
        let mut table = Table::new(&["NAME", ">SIZE", "TEXT"]);
        table.row(["a".into(), "10".into(), "x\ny".into()]);
        table.row(["long".into(), "9".into(), "é".into()]);
        assert_eq!(table.aligned(), ["NAME  SIZE  TEXT", "a       10  x y", "long     9  é"]);
        assert_eq!(table.plain(), ["a\t10\tx y", "long\t9\té"]);
    }
}
