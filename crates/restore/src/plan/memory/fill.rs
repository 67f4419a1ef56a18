//! Content: read from the page stream into place.
//!
//! Pages are given by the kernel in runs (MADV_POPULATE_WRITE) just before they are read into: a fault for each would cost more. Large
//! memory is filled by several hands: processes that share it, and the descriptors, with the leader, and are there only meanwhile.

use rewake_image::records::Extent;
use rewake_linux::program::{Accept, Sysno, TrackRef, Value};

use super::super::{Planner, args};

/// Parts of memory that one call fills at most: UIO_MAXIOV.
const BATCH_PARTS: usize = 1024;
/// Bytes that one call fills at most: what stays in a processor's cache between the clearing and the reading.
const BATCH_BYTES: u64 = 1 << 20;
/// More calls than this would make a large program of a terabyte: then each fills more. A read can transfer just under 2 GiB.
const BATCHES: u64 = 1 << 16;
const MOST_BYTES: u64 = 1 << 30;
/// A run of pages that is worth a call of its own.
const RUN: u64 = 64 << 10;
/// Memory that is worth another hand.
const WORTH: u64 = 32 << 20;
const MADV_POPULATE_WRITE: i32 = 23;
const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
/// Children that send no signal when they end are waited for, too.
const WALL: i32 = 0x4000_0000;
/// Exit status of one that could not go on.
const FAILED: i32 = 125;

/// Parts of memory that one call fills, from one place of the page stream on.
#[derive(Debug, Default)]
struct Batch {
    /// Address and length of each.
    parts: Vec<u64>,
    begin: u64,
    bytes: u64,
}

/// Runs of the page stream, which lie one behind the other there, in as few calls as may be.
fn batches(extents: &[Extent], base: u64) -> Vec<Batch> {
    let total: u64 = extents.iter().map(|extent| extent.length).sum();
    let most = (total / BATCHES).next_multiple_of(BATCH_BYTES).clamp(BATCH_BYTES, MOST_BYTES);
    let mut all: Vec<Batch> = Vec::new();
    for extent in extents {
        let mut done = 0;
        while done < extent.length {
            let from = extent.stream_offset + done;
            let fits = |batch: &&mut Batch| {
                from == batch.begin + batch.bytes && batch.parts.len() < 2 * BATCH_PARTS && batch.bytes < most
            };
            let batch = match all.pop_if(|batch| fits(&batch)) {
                Some(batch) => batch,
                None => Batch { begin: from, ..Batch::default() },
            };
            let part = (extent.length - done).min(most - batch.bytes);
            all.push(batch.with(base + extent.address + done, part));
            done += part;
        }
    }
    all
}

impl Batch {
    fn with(mut self, address: u64, length: u64) -> Self {
        self.parts.extend([address, length]);
        self.bytes += length;
        self
    }
}

impl Planner<'_> {
    /// Reads extents into place, all by the leader.
    pub(super) fn fill(&mut self, extents: &[Extent], base: u64) {
        for batch in batches(extents, base) {
            self.read(self.leader, &batch);
        }
    }

    /// The same by as many hands as the host has for it. In turns, so that the stream is read from its beginning to its end.
    pub(super) fn fill_by_many(&mut self, extents: &[Extent]) {
        let total: u64 = extents.iter().map(|extent| extent.length).sum();
        let hands = usize::try_from(total / WORTH).unwrap_or(usize::MAX).min(self.site.hands);
        let helpers: Vec<(TrackRef, Value)> = (1..=hands).map(|number| self.helper(number)).collect();
        let mut tracks = vec![self.leader];
        tracks.extend(helpers.iter().map(|(track, _)| *track));
        for (batch, track) in batches(extents, 0).iter().zip(tracks.into_iter().cycle()) {
            self.read(track, batch);
        }
        for (track, id) in helpers {
            self.end_of_helper(track, id);
        }
    }

    /// Somebody who fills memory with us; its id is its own affair, since it is gone before any other is chosen.
    fn helper(&mut self, number: usize) -> (TrackRef, Value) {
        let flags = CLONE_VM | CLONE_FILES;
        let track = self.program.track(format!("helper {number}"));
        let made = if self.site.own {
            self.program.thread(self.leader, track, flags)
        } else {
            // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
            let clone = self.program.words(&[flags, 0, 0, 0, 0, 0, 0, 0]);
            self.program.spawn(self.leader, track, clone)
        };
        let id = made.note(format!("helper {number}")).done();
        let call = self.program.call(track, Sysno::prctl, args![libc::PR_SET_PDEATHSIG, libc::SIGKILL]);
        call.note("die with the parent");
        (track, Value::Result(id))
    }

    /// It is waited for, and has to have done its work: its status is 0, as only this position in a file is 0.
    fn end_of_helper(&mut self, track: TrackRef, id: Value) {
        self.program.call(track, Sysno::exit_group, args![0]);
        self.program.on_failure(track);
        self.program.call(track, Sysno::exit_group, args![FAILED]).accept(Accept::Any);
        let status = self.program.zeros(8);
        let wait = self.program.call(
            self.leader,
            Sysno::wait4,
            [id, status.into(), Value::from(WALL), Value::from(0)],
        );
        wait.retry().note("a helper is gone again");
        let seek = [self.site.pages().into(), Value::Word(status), Value::from(libc::SEEK_SET)];
        let call = self.program.call(self.leader, Sysno::lseek, seek).accept(Accept::Exactly(0));
        call.note("the work of a helper");
    }

    fn read(&mut self, track: TrackRef, batch: &Batch) {
        for run in batch.parts.chunks_exact(2).filter(|part| part[1] >= RUN) {
            // Where the kernel cannot, or may not yet say why, the read comes to the same.
            let args = args![run[0], run[1], MADV_POPULATE_WRITE];
            self.program.call(track, Sysno::madvise, args).accept(Accept::Any);
        }
        let parts = self.program.words(&batch.parts);
        let count = u64::try_from(batch.parts.len() / 2).expect("a batch is small");
        let args = args![self.site.pages(), parts, count, batch.begin, 0];
        let call = self.program.call(track, Sysno::preadv, args).accept(Accept::Exactly(batch.bytes));
        call.note(format!("memory at {:#x} in {count} parts", batch.parts[0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(address: u64, length: u64, stream_offset: u64) -> Extent {
        Extent { address, length, stream_offset }
    }

    #[test]
    fn every_byte_of_the_stream_goes_to_its_place_once() {
        let extents =
            [extent(0x1000, 0x3000, 0), extent(0x10_0000, 3 << 20, 0x3000), extent(0x8000, 0x1000, 0)];
        let mut seen = Vec::new();
        for batch in batches(&extents, 0x1_0000_0000) {
            assert!(batch.bytes <= BATCH_BYTES);
            let mut from = batch.begin;
            for part in batch.parts.chunks_exact(2) {
                seen.push((part[0] - 0x1_0000_0000, part[1], from));
                from += part[1];
            }
            assert_eq!(from, batch.begin + batch.bytes);
        }
        for extent in extents {
            let mine = |place: &&(u64, u64, u64)| {
                (extent.address..extent.address + extent.length).contains(&place.0)
            };
            let parts: Vec<_> = seen.iter().filter(mine).collect();
            assert_eq!(parts.iter().map(|part| part.1).sum::<u64>(), extent.length);
            assert!(parts.iter().all(|part| part.0 - extent.address == part.2 - extent.stream_offset));
        }
    }

    #[test]
    fn a_terabyte_takes_no_more_than_so_many_calls() {
        let huge = batches(&[extent(1 << 40, 1 << 40, 0)], 0);
        assert!(
            u64::try_from(huge.len()).unwrap() <= BATCHES + 1
                && huge.iter().all(|batch| batch.bytes <= MOST_BYTES)
        );
    }
}
