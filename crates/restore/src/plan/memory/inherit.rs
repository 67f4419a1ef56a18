//! What a process keeps of the memory that it is born with: private mappings with pages that it has had in common with its maker ever
//! since. They are the maker's pages, shared as long as nobody writes to them; only what differs is filled.

use std::ops::Range;

use rewake_image::records::{AddressSpace, Extent, Vma, vma::Backing};

/// What is kept, in order of address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// Mapped already.
    pub(super) ranges: Vec<Range<u64>>,
    /// Content that is there already.
    pub(super) same: Vec<Range<u64>>,
    /// Content that must go, where there is none.
    pub(super) surplus: Vec<Range<u64>>,
}

impl Kept {
    /// Compares the memory of a maker and of one that it makes.
    pub(super) fn of(maker: &AddressSpace, made: &AddressSpace) -> Self {
        let same = same_pages(&maker.pages, &made.pages);
        let mut ranges = Vec::new();
        let mut old = maker.vmas.iter().peekable();
        for vma in &made.vmas {
            while old.next_if(|old| old.end <= vma.start).is_some() {}
            let mut candidates = old.clone();
            while let Some(before) = candidates.next_if(|before| before.start < vma.end) {
                let range = before.start.max(vma.start)..before.end.min(vma.end);
                let has_some = same.iter().any(|same| overlaps(same, &range));
                if has_some && is_alike(before, vma) {
                    ranges.push(range);
                }
            }
        }
        let same = clipped(&same, &ranges);
        let theirs = clipped(&as_ranges(&maker.pages), &ranges);
        let surplus = without(&without(&theirs, &same), &as_ranges(&made.pages));
        Self { ranges, same, surplus }
    }

    /// The extents, without the content that is there.
    pub(super) fn missing(&self, extents: &[Extent]) -> Vec<Extent> {
        let mut missing = Vec::new();
        for extent in extents {
            let whole = extent.address..extent.address + extent.length;
            for part in without(&[whole], &self.same) {
                missing.push(Extent {
                    address: part.start,
                    length: part.end - part.start,
                    stream_offset: extent.stream_offset + (part.start - extent.address),
                });
            }
        }
        missing
    }

    /// The parts of a range that are not mapped yet.
    pub(super) fn unmapped(&self, range: Range<u64>) -> Vec<Range<u64>> {
        without(&[range], &self.ranges)
    }
}

/// Whether a mapping can be kept as another one, as far as they overlap.
fn is_alike(before: &Vma, now: &Vma) -> bool {
    let private = |vma: &Vma| !vma.shared && matches!(vma.backing(), Backing::Anonymous | Backing::File);
    let file = before.backing() != Backing::File
        || before.object == now.object
            && before.offset.wrapping_sub(before.start) == now.offset.wrapping_sub(now.start);
    // A stack is one piece.
    let whole = !now.grows_down || (before.start, before.end) == (now.start, now.end);
    private(before) && before.backing() == now.backing() && file && whole && settings(before) == settings(now)
}

/// What a mapping has been given before it is filled.
fn settings(vma: &Vma) -> (bool, bool, u32, &[u32], &[u8], u32, &[u8]) {
    let policy = (vma.memory_policy, &vma.memory_policy_nodes[..]);
    (vma.grows_down, vma.no_reserve, vma.huge_page_shift, &vma.advice, &vma.name, policy.0, policy.1)
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn as_ranges(extents: &[Extent]) -> Vec<Range<u64>> {
    extents.iter().map(|extent| extent.address..extent.address + extent.length).collect()
}

/// Where both have the same part of the page stream at the same address.
fn same_pages(one: &[Extent], other: &[Extent]) -> Vec<Range<u64>> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let mut same = Vec::new();
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        let (start, a_end, b_end) = (a.address.max(b.address), a.address + a.length, b.address + b.length);
        let end = a_end.min(b_end);
        let place = |extent: &Extent| extent.stream_offset.wrapping_sub(extent.address);
        if start < end && place(a) == place(b) {
            same.push(start..end);
        }
        if a_end <= b_end {
            one.next();
        } else {
            other.next();
        }
    }
    same
}

/// Parts that lie in one of the ranges; all in order.
fn clipped(parts: &[Range<u64>], ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut clipped = Vec::new();
    for part in parts {
        let first = ranges.partition_point(|range| range.end <= part.start);
        for range in ranges[first..].iter().take_while(|range| range.start < part.end) {
            clipped.push(part.start.max(range.start)..part.end.min(range.end));
        }
    }
    clipped
}

/// Parts that lie in none of the ranges; all in order.
fn without(parts: &[Range<u64>], ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    for part in parts {
        let mut at = part.start;
        let first = ranges.partition_point(|range| range.end <= part.start);
        for range in ranges[first..].iter().take_while(|range| range.start < part.end) {
            if at < range.start {
                left.push(at..range.start);
            }
            at = range.end;
        }
        if at < part.end {
            left.push(at..part.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn extent(page: u64, pages: u64, stream: u64) -> Extent {
        Extent { address: page * PAGE, length: pages * PAGE, stream_offset: stream * PAGE }
    }

    fn vma(start: u64, end: u64) -> Vma {
        Vma { start: start * PAGE, end: end * PAGE, protection: 3, ..Vma::default() }
    }

    fn pages(ranges: &[Range<u64>]) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.start / PAGE, range.end / PAGE)).collect()
    }

    #[test]
    fn what_is_common_is_kept_and_what_differs_is_not() {
        let maker = AddressSpace {
            vmas: vec![vma(10, 20), vma(30, 40)],
            pages: vec![extent(10, 8, 0), extent(30, 2, 8)],
            ..AddressSpace::default()
        };
        let made = AddressSpace {
            vmas: vec![vma(10, 24), vma(30, 40)],
            // Page 12 changed, page 16 given back, 22 new; nothing in common in the other mapping.
            pages: vec![
                extent(10, 2, 0),
                extent(12, 1, 20),
                extent(13, 3, 3),
                extent(17, 1, 7),
                extent(22, 1, 21),
                extent(30, 2, 22),
            ],
            ..AddressSpace::default()
        };
        let kept = Kept::of(&maker, &made);
        assert_eq!(pages(&kept.ranges), [(10, 20)]);
        assert_eq!(pages(&kept.same), [(10, 12), (13, 16), (17, 18)]);
        assert_eq!(pages(&kept.surplus), [(16, 17)]);
        assert_eq!(kept.missing(&made.pages), [extent(12, 1, 20), extent(22, 1, 21), extent(30, 2, 22)]);
        assert_eq!(pages(&kept.unmapped(10 * PAGE..24 * PAGE)), [(20, 24)]);
        assert_eq!(pages(&kept.unmapped(30 * PAGE..40 * PAGE)), [(30, 40)]);
    }

    #[test]
    fn another_kind_of_mapping_is_not_kept() {
        let space =
            |vma| AddressSpace { vmas: vec![vma], pages: vec![extent(10, 1, 0)], ..AddressSpace::default() };
        let advised = Vma { advice: vec![14], ..vma(10, 20) };
        assert_eq!(Kept::of(&space(vma(10, 20)), &space(advised)).ranges, []);
        let file = Vma { backing: Backing::File.into(), ..vma(10, 20) };
        assert_eq!(Kept::of(&space(vma(10, 20)), &space(file)).ranges, []);
        assert_eq!(Kept::of(&space(vma(10, 20)), &space(vma(10, 20))).ranges.len(), 1);
    }
}
