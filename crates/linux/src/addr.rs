//! Addresses in another process (or in a process yet to be made).
//!
//! They are numbers here: a type that cannot be dereferenced keeps them apart from our own pointers.

use std::fmt;

/// Bytes in a page on the only architecture supported so far.
pub const PAGE_SIZE: u64 = 4096;

/// An address in a target's address space, in bytes. It cannot be dereferenced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RemoteAddr(u64);

impl RemoteAddr {
    /// Wraps a raw address.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The raw number, to be handed to the kernel.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on; `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether the address is a multiple of the page size.
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE)
    }
}

impl std::ops::Add<u64> for RemoteAddr {
    type Output = Self;

    /// # Panics
    /// When the sum leaves the address space: a caller that adds unchecked numbers uses [`RemoteAddr::checked_add`].
    fn add(self, bytes: u64) -> Self {
        self.checked_add(bytes).expect("remote address within the address space")
    }
}

impl fmt::Debug for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Rounds `bytes` up to whole pages.
#[must_use]
pub const fn page_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_SIZE)
}
