//! What an image needs of the host beside CPU, files and credentials: its architecture, and limits as high as the program's were.

use std::io;

use rewake_image::Image;
use rewake_linux::host::Host;
use rewake_linux::proc::{Proc, ProcError, RESOURCES};

use crate::error::RestoreError;

/// Who has it may raise hard limits.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// Refuses the image of another kind of machine: nothing else in it means anything here.
///
/// # Errors
/// [`RestoreError::Unsupported`] naming both.
pub fn check_architecture(image: &Image) -> Result<(), RestoreError> {
    let pid = image.root().pid;
    let own = Host::here().map_err(|source| RestoreError::System {
        operation: "survey",
        pid,
        object: "this host".into(),
        source: io::Error::other(source),
    })?;
    let wanted = image.manifest.host.as_ref().map_or("", |host| host.architecture.as_str());
    if wanted == own.architecture {
        return Ok(());
    }
    Err(RestoreError::Unsupported {
        pid,
        object: "architecture".into(),
        reason: format!("the image is of {wanted:?}, this host is {:?}", own.architecture),
    })
}

/// Refuses hard limits above ours that we may not raise, all of them at once.
///
/// # Errors
/// [`RestoreError::Limits`] naming each.
pub fn check_limits(image: &Image) -> Result<(), RestoreError> {
    let pid = image.root().pid;
    let failed = |source: ProcError| RestoreError::System {
        operation: "survey",
        pid,
        object: "our own limits".into(),
        source: io::Error::other(source),
    };
    let own = Proc::own().map_err(failed)?;
    if own.status().map_err(failed)?.capabilities.effective & CAP_SYS_RESOURCE != 0 {
        return Ok(());
    }
    let ours = own.limits().map_err(failed)?.map(|limit| limit.hard);
    let higher = higher(image, &ours);
    if higher.is_empty() { Ok(()) } else { Err(RestoreError::Limits { pid, limits: higher.join(", ") }) }
}

fn higher(image: &Image, ours: &[u64]) -> Vec<String> {
    let shown = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
    let limits = image.processes.iter().flat_map(|process| &process.limits).filter_map(|limit| {
        let place = usize::try_from(limit.resource).ok()?;
        let (name, ours) = (RESOURCES.get(place)?, *ours.get(place)?);
        (limit.hard > ours).then(|| format!("{name} ({}, ours {})", shown(limit.hard), shown(ours)))
    });
    let mut names: Vec<String> = limits.collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use rewake_image::sample;

    #[test]
    fn every_limit_above_ours_is_named() {
        let image = sample::image();
        assert_eq!(higher(&image, &[u64::MAX; 16]), Vec::<String>::new());
        assert_eq!(higher(&image, &[4096; 16]), ["Max open files (unlimited, ours 4096)"]);
    }

    #[test]
    fn another_machine_is_named() {
        let mut image = sample::image();
        assert!(check_architecture(&image).is_ok());
        image.manifest.host.as_mut().expect("a host").architecture = "aarch64".into();
        let error = check_architecture(&image).expect_err("another one").to_string();
        assert!(error.contains("aarch64") && error.contains("x86_64"), "{error}");
    }
}
