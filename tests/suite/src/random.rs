//! Reproducible random numbers for instants and bits: a failing run is repeated by its seed.

/// The splitmix64 generator (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed; the environment's `REWAKE_SEED` is added to it, to try other instants.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let chosen = std::env::var("REWAKE_SEED").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        Random(seed.wrapping_add(chosen.wrapping_mul(0x0dd0_5eed)))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit` (0 when the limit is 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next_u64() % limit }
    }
}
