//! What a restore that failed leaves in the file system is removed.

use super::Seed;
use crate::sockets;

impl Seed<'_> {
    /// What it made for a moment and did not come to remove again.
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
    }
}
