//! Whether objects without content of their own make sense: eventfds, timers, watches, files of the kernel.

use super::{ensure, path};
use crate::ImageError;
use crate::records::open_file::Kind;

pub(super) fn check(kind: &Kind, record: &str) -> Result<(), ImageError> {
    match kind {
        Kind::KernelFile(file) => path(&file.path, record, "path"),
        Kind::Symlink(link) => path(&link.path, record, "path"),
        Kind::Timerfd(timer) => {
            ensure!(timer.clock >= 0, record, "clock {} is impossible", timer.clock);
            Ok(())
        }
        _ => Ok(()),
    }
}
