//! Contexts of asynchronous I/O: whether this host can make rings of the sizes that the image has.

use rewake_image::records::AioContext;

use super::memory::{Lack, parse_list};

const PAGE: u64 = rewake_image::PAGE_SIZE;

/// Refuses what this host cannot make.
pub(super) fn check(contexts: &[AioContext]) -> Result<(), Lack> {
    let Some(smallest) = contexts.iter().map(|context| context.length / PAGE).min() else { return Ok(()) };
    let object = || "contexts of asynchronous I/O".to_owned();
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (Some(used), Some(most)) = (number("aio-nr"), number("aio-max-nr")) else {
        return Err((object(), "this kernel is built without them".to_owned()));
    };
    let count = u64::try_from(contexts.len()).unwrap_or(u64::MAX);
    if used.saturating_add(count) > most {
        let reason = format!(
            "this host has {} left; write a larger number to /proc/sys/fs/aio-max-nr",
            most.saturating_sub(used)
        );
        return Err((object(), reason));
    }
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let possible = u64::try_from(parse_list(&possible).len()).unwrap_or(u64::MAX).max(1);
    fits(smallest, possible).map_err(|reason| (object(), reason))
}

/// Whether a kernel for so many processors makes rings of so few pages.
fn fits(pages: u64, processors: u64) -> Result<(), String> {
    let least = (32 * (2 * 4 * processors + 3)).div_ceil(PAGE);
    if pages >= least {
        return Ok(());
    }
    Err(format!(
        "a ring of its events has {pages} pages, and this host, which may have {processors} processors, makes none below {least}; resume \
         on a host with fewer"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_grow_with_the_processors_a_host_may_have() {
        assert!(fits(1, 1).is_ok() && fits(1, 15).is_ok() && fits(2, 16).is_ok() && fits(9, 128).is_ok());
        assert!(fits(1, 16).is_err_and(|reason| reason.contains("none below 2")));
        assert!(fits(8, 128).is_err());
        assert_eq!(check(&[]), Ok(()));
    }
}
