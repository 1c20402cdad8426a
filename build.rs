//! Made at build: nothing yet.
fn main() {}
