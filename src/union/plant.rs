//! Faults that can be planted to see that tests find them.
//!
//! Only a build with the feature `planted-faults` has them; there the variable `REROOT_PLANT` names the one that is
//! planted. In every other build each place of a fault is `if false`.

/// Whether this fault is planted.
#[cfg(feature = "planted-faults")]
pub fn planted(fault: &str) -> bool {
    static NAME: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    NAME.get_or_init(|| std::env::var("REROOT_PLANT").ok()).as_deref() == Some(fault)
}

/// Whether this fault is planted: never in this build.
#[cfg(not(feature = "planted-faults"))]
#[inline(always)]
pub const fn planted(_fault: &str) -> bool {
    false
}
