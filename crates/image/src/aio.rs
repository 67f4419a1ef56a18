//! The ring of events of an asynchronous I/O context (io_setup), as the kernel lays it out in the program's memory.

/// Bytes of a ring's header, and of each event behind it.
pub const EVENT: usize = 32;
/// The same, to reckon with addresses.
pub const EVENT_U64: u64 = 32;
/// Bytes of the longest ring that io_setup(2) makes.
pub const MAX_LENGTH: u64 = 65_537 * crate::PAGE_SIZE;

const MAGIC: u32 = 0xa10a_10a1;
const COMPATIBLE_FEATURES: u32 = 1;
const INCOMPATIBLE_FEATURES: u32 = 0;

/// What a ring's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Places for events.
    pub places: u32,
    /// The place of the first event that was not read yet.
    pub head: u32,
    /// The place behind the last one.
    pub tail: u32,
}

impl Ring {
    /// From the first bytes of a ring of `length` bytes.
    ///
    /// # Errors
    /// What about it is not the kernel's, in words.
    pub fn parse(bytes: &[u8], length: u64) -> Result<Self, String> {
        let Some(header) = bytes.first_chunk::<EVENT>() else {
            return Err(format!("a ring of events begins with {EVENT} bytes, it has {}", bytes.len()));
        };
        let (words, _) = header.as_chunks::<4>();
        let [_id, places, head, tail, magic, compatible, incompatible, header_length] =
            [0, 1, 2, 3, 4, 5, 6, 7].map(|index| u32::from_le_bytes(words[index]));
        if (magic, compatible, incompatible) != (MAGIC, COMPATIBLE_FEATURES, INCOMPATIBLE_FEATURES) {
            return Err(format!(
                "a ring of events of version {magic:#x}, {compatible}, {incompatible} is not known"
            ));
        }
        let whole = length > 0 && length.is_multiple_of(crate::PAGE_SIZE) && length <= MAX_LENGTH;
        if !whole
            || u64::from(places) + 1 != length / EVENT_U64
            || usize::try_from(header_length) != Ok(EVENT)
        {
            return Err(format!("a ring of {places} events in {length} bytes is impossible"));
        }
        if head >= places || tail >= places {
            return Err(format!("events {head} to {tail} in a ring of {places} are impossible"));
        }
        Ok(Self { places, head, tail })
    }

    /// Events that were not read yet.
    #[must_use]
    pub const fn unread(&self) -> u32 {
        if self.head <= self.tail { self.tail - self.head } else { self.places - self.head + self.tail }
    }

    /// Where these lie, in order: offsets in the ring and lengths, in bytes; the second part is empty unless they go on at the
    /// ring's beginning.
    #[must_use]
    pub fn parts(&self) -> [(u64, u64); 2] {
        let first = self.unread().min(self.places - self.head);
        let bytes = |events: u32| u64::from(events) * EVENT_U64;
        [(EVENT_U64 + bytes(self.head), bytes(first)), (EVENT_U64, bytes(self.unread() - first))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(words: [u32; 8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn ring(head: u32, tail: u32) -> Result<Ring, String> {
        Ring::parse(&header([9, 127, head, tail, MAGIC, 1, 0, 32]), 4096)
    }

    #[test]
    fn unread_events_are_found_around_the_end() {
        let plain = ring(3, 5).unwrap();
        assert_eq!((plain.unread(), plain.parts()), (2, [(4 * 32, 64), (32, 0)]));
        let around = ring(126, 2).unwrap();
        assert_eq!((around.unread(), around.parts()), (3, [(127 * 32, 32), (32, 64)]));
        let empty = ring(126, 126).unwrap();
        assert_eq!((empty.unread(), empty.parts()), (0, [(127 * 32, 0), (32, 0)]));
    }

    #[test]
    fn what_is_not_the_kernels_is_refused() {
        assert!(ring(127, 0).is_err() && ring(0, 127).is_err() && Ring::parse(&[0; 31], 4096).is_err());
        for (index, value) in [(1, 126), (1, 255), (4, 0), (5, 2), (6, 1), (7, 64)] {
            let mut words = [9, 127, 0, 0, MAGIC, 1, 0, 32];
            words[index] = value;
            assert!(Ring::parse(&header(words), 4096).is_err(), "word {index}");
        }
        assert!(Ring::parse(&header([9, 127, 0, 0, MAGIC, 1, 0, 32]), 8192).is_err());
    }
}
