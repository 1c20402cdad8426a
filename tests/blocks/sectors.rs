//! Files whose sectors say what they are, and an account of what each may hold after a crash: what it held at the last
//! acknowledged fsync, or anything that was written since.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// What was written by the operation of that number; 0: what the stack has.
    Written(u64),
    /// Zeroes.
    Zeroes,
}

/// The bytes of a sector that an operation wrote.
pub fn written(operation: u64, file: u64, sector: u64) -> [u8; SECTOR] {
    let mut out = [0x5A ^ operation as u8; SECTOR];
    for (at, number) in [operation, file, sector, !operation].into_iter().enumerate() {
        out[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
    }
    out
}

/// What the bytes of a sector are; `None`: nothing that anybody wrote there.
pub fn read(bytes: &[u8], file: u64, sector: u64) -> Option<Holds> {
    if bytes.iter().all(|b| *b == 0) {
        return Some(Holds::Zeroes);
    }
    let operation = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == written(operation, file, sector)).then_some(Holds::Written(operation))
}

/// What a file may hold.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its number.
    pub file: u64,
    /// Lengths in sectors, the last one at the end.
    pub lengths: Vec<u64>,
    /// For each sector what it may hold, the last at the end; the first was acknowledged.
    sectors: Vec<Vec<Holds>>,
}

impl Account {
    /// Of a file of the stack.
    pub fn new(file: u64, sectors: u64) -> Account {
        Account { file, lengths: vec![sectors], sectors: vec![vec![Holds::Written(0)]; sectors as usize] }
    }

    /// Sectors are about to hold something else.
    pub fn will_hold(&mut self, from: u64, to: u64, what: Holds) {
        for sector in &mut self.sectors[from as usize..to as usize] {
            sector.push(what);
        }
    }

    /// Everything before is on the disk.
    pub fn synced(&mut self) {
        self.lengths.drain(..self.lengths.len() - 1);
        for sector in &mut self.sectors {
            sector.drain(..sector.len() - 1);
        }
    }

    /// Holds what is there against what may be there; from then on that is what it is.
    #[track_caller]
    pub fn check(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64 / SECTOR as u64;
        assert!(self.lengths.contains(&length), "file {}: {length} of {:?}", self.file, self.lengths);
        self.lengths = vec![length];
        for (at, (bytes, may)) in bytes.chunks(SECTOR).zip(&mut self.sectors).enumerate() {
            let found = read(bytes, self.file, at as u64);
            match found {
                Some(found) if may.contains(&found) => *may = vec![found],
                _ => panic!("file {}, sector {at}: {found:?}, may be {may:?}", self.file),
            }
        }
        // What was cut off shows zeroes when the file grows again.
        for may in &mut self.sectors[length as usize..] {
            *may = vec![Holds::Zeroes];
        }
    }
}
