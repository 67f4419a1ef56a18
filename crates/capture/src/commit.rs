//! From a pending image to a durable one.

use rewake_image::{Image, ImageError, PendingImage};

use crate::error::{CaptureError, Result};

/// Makes a place for the image, after clearing what dead runs for the same name left.
///
/// # Errors
/// When something is there already or the parent folder cannot be written.
pub(crate) fn create(pid: i32, dir: &std::path::Path) -> Result<PendingImage> {
    let cleared = rewake_image::clear_stale(dir).map_err(|error| image_error("create", pid, error))?;
    for path in cleared {
        tracing::info!(path = %path.display(), "cleared what an interrupted run had left");
    }
    PendingImage::create(dir).map_err(|error| image_error("create", pid, error))
}

/// Writes the records and makes the image durable under its name, which it gets after `before_name`. Bytes of the records.
///
/// # Errors
/// When the records contradict one another, the disk or `before_name` fails; the image is removed then.
pub(crate) fn commit(
    pid: i32,
    pending: PendingImage,
    image: &Image,
    before_name: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let bytes = pending.write_records(image).map_err(|error| image_error("write", pid, error))?;
    let synced = pending.sync().map_err(|error| image_error("commit", pid, error))?;
    before_name()?;
    synced.publish().map_err(|error| image_error("commit", pid, error))?;
    Ok(bytes)
}

/// An error of the image, with what was being done to it.
pub(crate) fn image_error(operation: &str, pid: i32, error: ImageError) -> CaptureError {
    let remedy = error.remedy();
    let failed = CaptureError::failed(operation, pid, "image", error);
    match remedy {
        Some(remedy) => failed.advise(remedy),
        None => failed,
    }
}
