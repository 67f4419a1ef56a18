//! Where an image is.

use std::path::{Path, PathBuf};

use rewake_image::{ImageError, store};

use crate::failure::{Failure, chain};

/// The image that the user means: `path` itself, or the latest complete one of the store `path`.
pub fn image(path: &Path) -> Result<PathBuf, Failure> {
    existing(path)?;
    Ok(store::resolve(path)?)
}

/// Makes sure that there is something at `path`.
pub fn existing(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let remedy = "give the directory that chkpnt made, or a folder of such directories";
    Err(Failure::with_remedy(format!("no such directory ({})", path.display()), Some(remedy)))
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::with_remedy(chain(&error), error.remedy())
    }
}
