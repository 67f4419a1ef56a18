//! What a restore that failed leaves is removed.

use rewake_linux::{mqueue, sysv};

use super::Seed;
use crate::sockets;

impl Seed<'_> {
    /// What it made for a moment and did not come to remove again; and files of sockets, for which those that were there come back.
    pub(super) fn remove_what_it_made(&self) {
        let happened = |call| self.stage.result(&self.assembled, call) != 0;
        for made in self.plan.made.iter().rev() {
            if happened(made.made) && !made.gone.is_some_and(happened) {
                let path = rewake_image::records::path_of(&made.path);
                if let Some(outside) = self.folders.get(made.outside) {
                    self.left.remove(outside, &made.names, made.folder, path);
                }
            }
        }
        for made in self.plan.made_sockets.iter().rev().filter(|made| happened(made.made)) {
            if let Some(folder) = self.folders.get(made.folder) {
                sockets::remove_abandoned(folder, &made.name);
            }
        }
        for removed in self.plan.removed_sockets.iter().filter(|removed| happened(removed.removed)) {
            if let Some(folder) = self.folders.get(removed.folder) {
                sockets::put_back(folder, &removed.name, &removed.was);
            }
        }
    }

    /// System V objects that were not there before.
    pub(super) fn remove_objects(&self) {
        let failed = self.stage.failure(&self.assembled).map(|failure| failure.at);
        for made in self.plan.made_objects.iter().filter(|_| !self.own_ipc) {
            // 0 is an id too, but also what stands there before the call.
            let result = self.stage.result(&self.assembled, made.made).cast_signed();
            let called = result != 0
                || self.stage.result(&self.assembled, made.mark) != 0
                || failed == Some(made.made);
            if let (true, Ok(id @ 0..)) = (called, i32::try_from(result)) {
                let removed = sysv::remove(made.kind, id);
                tracing::debug!(kind = ?made.kind, id, ?removed, "left by a restore that failed");
            }
        }
    }

    /// POSIX message queues that were not there before.
    pub(super) fn remove_queues(&self) {
        for made in self.plan.made_queues.iter().filter(|_| !self.own_ipc) {
            if self.stage.result(&self.assembled, made.mark) != 0 {
                let removed = mqueue::unlink(&made.name);
                tracing::debug!(?made.name, ?removed, "left by a restore that failed");
            }
        }
    }
}
