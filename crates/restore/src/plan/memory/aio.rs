//! Contexts of asynchronous I/O: made anew by the kernel, moved to where they were (their address is their id), and filled with the
//! events that were not read yet.
//!
//! The kernel keeps the end of a ring to itself and goes on from there: requests that complete at once bring it to where it was, so that
//! whoever was about to read an event in the ring finds it in its place.

use rewake_image::aio::{EVENT, Ring};
use rewake_image::records::{AddressSpace, AioContext, Vma, vma::Backing};
use rewake_linux::addr::PAGE_SIZE;
use rewake_linux::program::{Accept, DataRef, Sysno, Value};

use super::super::{Planner, args};
use super::{MOVE, READ_WRITE, describe};

/// Requests that one call submits, at most.
const MOST: u32 = 1024;
/// Bytes of a `struct iocb`. All zeros: a read of nothing from descriptor 0.
const REQUEST: usize = 64;

/// What moves the ends of rings: pointers to a request, room for the events, no time to wait, and the file of descriptor 0.
struct Requests {
    pointers: DataRef,
    events: DataRef,
    no_time: DataRef,
}

impl Planner<'_> {
    /// Keeps the place of a ring free: the kernel puts new ones where it likes, and does not move one onto itself.
    pub(super) fn reserve(&mut self, vma: &Vma) {
        let flags = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let args = args![vma.start, vma.length(), libc::PROT_NONE, flags, -1, 0];
        let call = self.program.call(self.leader, Sysno::mmap, args).accept(Accept::Exactly(vma.start));
        call.note(format!("place for events, {}", describe(vma)));
    }

    pub(super) fn contexts(&mut self, memory: &AddressSpace) {
        let contexts = &self.process.aio_contexts;
        let rings = memory.vmas.iter().filter(|vma| vma.backing() == Backing::Aio);
        let rings: Vec<(&AioContext, &Vma, Ring)> = contexts
            .iter()
            .zip(rings)
            .filter_map(|(context, vma)| {
                Some((context, vma, Ring::parse(&context.ring, context.length).ok()?))
            })
            .collect();
        if rings.is_empty() {
            return;
        }
        let requests = self.requests(&rings);
        let mut stored = 0;
        for (context, vma, ring) in &rings {
            self.context(vma);
            self.advance(context.address, ring, &requests);
            let bytes = u64::from(ring.unread()) * u64::try_from(EVENT).expect("small");
            self.put_events(context.address, ring, stored);
            stored += bytes;
            if vma.protection != READ_WRITE {
                let args = args![vma.start, vma.length(), vma.protection];
                self.program.call(self.leader, Sysno::mprotect, args).note(describe(vma));
            }
            self.policy(vma, vma.start);
            self.advise(vma, false);
        }
        self.program.call(self.leader, Sysno::close, args![0]).note("events not read");
    }

    /// Descriptor 0 becomes a file of all events that were not read.
    fn requests(&mut self, rings: &[(&AioContext, &Vma, Ring)]) -> Requests {
        let (leader, program, note) = (self.leader, &mut self.program, "events not read");
        let name = program.string(b"events");
        let args = args![name, libc::MFD_CLOEXEC];
        program.call(leader, Sysno::memfd_create, args).accept(Accept::Exactly(0)).note(note);
        let events: Vec<u8> =
            rings.iter().flat_map(|(context, ..)| context.ring.iter().skip(EVENT)).copied().collect();
        if !events.is_empty() {
            let (data, len) = (program.bytes(&events), u64::try_from(events.len()).unwrap_or(u64::MAX));
            let call = program.call(leader, Sysno::pwrite64, args![0, data, len, 0]);
            call.accept(Accept::Exactly(len)).note(note);
        }
        let most = rings.iter().map(|(_, _, ring)| at_once(ring)).max().unwrap_or(1);
        let most = usize::try_from(most).expect("small");
        let (request, pointers) = (program.zeros(REQUEST), program.zeros(8 * most));
        for index in 0..most {
            program.point(pointers, 8 * index, request);
        }
        let (events, no_time) = (program.zeros(EVENT * most), program.zeros(16));
        Requests { pointers, events, no_time }
    }

    /// A new context of the same size, moved to its place.
    fn context(&mut self, vma: &Vma) {
        let (leader, len, note) = (self.leader, vma.length(), describe(vma));
        let id = self.program.zeros(8);
        let args = args![requests_for(len), id];
        self.program.call(leader, Sysno::io_setup, args).note(format!("context, {note}"));
        self.program.call(leader, Sysno::munmap, args![vma.start, len]).note(note.clone());
        let args = [Value::Word(id), len.into(), len.into(), MOVE.into(), vma.start.into()];
        let call = self.program.call(leader, Sysno::mremap, args).accept(Accept::Exactly(vma.start));
        call.note(format!("context to its place, {note}"));
    }

    /// Brings the ring's ends to where they were: what goes before its head is read again.
    fn advance(&mut self, id: u64, ring: &Ring, requests: &Requests) {
        let Requests { pointers, events, no_time } = *requests;
        for (count, read) in [(ring.head, true), (ring.unread(), false)] {
            let mut left = count;
            while left > 0 {
                let part = left.min(at_once(ring));
                let all = Accept::Exactly(part.into());
                let args = args![id, part, pointers];
                let call = self.program.call(self.leader, Sysno::io_submit, args).accept(all);
                call.note(format!("places of events, context {id:#x}"));
                if read {
                    let args = args![id, part, part, events, no_time];
                    self.program.call(self.leader, Sysno::io_getevents, args).accept(all);
                }
                left -= part;
            }
        }
    }

    fn put_events(&mut self, id: u64, ring: &Ring, stored: u64) {
        let parts = ring.parts();
        let bytes = parts[0].1 + parts[1].1;
        if bytes == 0 {
            return;
        }
        let used: Vec<u64> =
            parts.iter().filter(|(_, len)| *len > 0).flat_map(|(offset, len)| [id + offset, *len]).collect();
        let count = u64::try_from(used.len() / 2).expect("two at most");
        let parts = self.program.words(&used);
        let args = args![0, parts, count, stored, 0];
        let call = self.program.call(self.leader, Sysno::preadv, args).accept(Accept::Exactly(bytes));
        call.note(format!("events, context {id:#x}"));
    }
}

/// Requests submitted at once: the kernel gives each processor some of the places, less than half of all together.
fn at_once(ring: &Ring) -> u32 {
    (ring.places / 4).clamp(1, MOST)
}

/// The least number of requests for which the kernel makes a ring of this length: it doubles it, adds two, and fills up the last page.
/// Every context with such a ring was made for as many, or more.
fn requests_for(length: u64) -> u64 {
    let full = length / PAGE_SIZE - 1;
    if full == 0 { 1 } else { (full * (PAGE_SIZE / 32) - 3) / 2 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_number_of_requests_gives_the_same_pages() {
        let pages = |requests: u64| (32 + 32 * (2 * requests + 2)).div_ceil(PAGE_SIZE);
        for count in 1..200 {
            let requests = requests_for(count * PAGE_SIZE);
            assert_eq!(pages(requests), count);
            assert!(count == 1 || pages(requests - 1) == count - 1);
        }
    }
}
