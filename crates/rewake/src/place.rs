//! Where an image is.

use std::path::{Path, PathBuf};

use rewake_image::{ImageError, store};

use crate::failure::{Failure, chain};

/// The image that the user means: `path` itself, or the latest complete one of the store `path`.
pub fn image(path: &Path) -> Result<PathBuf, Failure> {
    if !path.exists() {
        let cause = format!("no such directory ({})", path.display());
        return Err(Failure::with_remedy(
            cause,
            Some("give the directory that chkpnt made, or a folder of such directories"),
        ));
    }
    Ok(store::resolve(path)?)
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::with_remedy(chain(&error), error.remedy())
    }
}
