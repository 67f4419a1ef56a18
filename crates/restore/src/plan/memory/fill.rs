//! Content: read from the page stream into place.

use rewake_image::records::Extent;
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};

/// Parts of memory that one call fills at most: UIO_MAXIOV, and bytes well under the 2 GiB that a read can transfer.
const BATCH_PARTS: usize = 1024;
const BATCH_BYTES: u64 = 256 << 20;

impl Planner<'_> {
    /// Reads runs of the page stream, which lie one behind the other there, in as few calls as may be.
    pub(super) fn fill(&mut self, extents: &[Extent], base: u64) {
        let mut batch: Vec<u64> = Vec::new();
        let (mut begin, mut bytes) = (0, 0);
        for extent in extents {
            let mut done = 0;
            while done < extent.length {
                let contiguous = extent.stream_offset + done == begin + bytes;
                if !contiguous || batch.len() == 2 * BATCH_PARTS || bytes >= BATCH_BYTES {
                    self.read(&batch, begin, bytes);
                    batch.clear();
                    (begin, bytes) = (extent.stream_offset + done, 0);
                }
                let part = (extent.length - done).min(BATCH_BYTES - bytes);
                batch.extend([base + extent.address + done, part]);
                bytes += part;
                done += part;
            }
        }
        self.read(&batch, begin, bytes);
    }

    fn read(&mut self, batch: &[u64], from: u64, bytes: u64) {
        if batch.is_empty() {
            return;
        }
        let parts = self.program.words(batch);
        let count = u64::try_from(batch.len() / 2).expect("a batch is small");
        let args = args![self.site.pages(), parts, count, from, 0];
        let call = self.program.call(self.leader, Sysno::preadv, args).accept(Accept::Exactly(bytes));
        call.note(format!("memory at {:#x} in {count} parts", batch[0]));
    }
}
