//! Whose an image is: it is run with the rights of who resumes it, so nobody else may have written it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::RestoreError;

/// Writing by the group or by all others.
const WRITABLE: u32 = 0o022;

/// Refuses an image that another user made or may have changed. For root as well: it would run what that user wrote.
///
/// # Errors
/// [`RestoreError::Foreign`], naming the directory or the file.
pub fn check(pid: i32, dir: &Path) -> Result<(), RestoreError> {
    let own = rustix::process::geteuid().as_raw();
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in std::iter::once(dir.to_path_buf()).chain(files) {
        // Of a file that is gone meanwhile nothing is read either.
        let Ok(facts) = std::fs::metadata(&path) else { continue };
        let refuse = |reason, remedy| {
            Err(RestoreError::Foreign { pid, path: path.display().to_string(), reason, remedy })
        };
        if facts.uid() != own {
            let reason = format!("it belongs to user {}, not to {own}", facts.uid());
            return refuse(reason, "look at it with `rewake show`, then copy it or make it yours (chown -R)");
        }
        if facts.mode() & WRITABLE != 0 {
            let reason = format!("others may write it (mode {:o})", facts.mode() & 0o7777);
            return refuse(reason, "look at it with `rewake show`, then take that away (chmod -R go-w)");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown};

    #[test]
    fn what_others_wrote_or_may_write_is_refused() {
        let dir = std::env::temp_dir().join(format!("rewake-owner-test-{}", std::process::id()));
        fs::create_dir(&dir).expect("a folder");
        let file = dir.join("records");
        fs::write(&file, "").expect("a file");
        let set =
            |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
        set(&dir, 0o700);
        set(&file, 0o600);
        assert!(check(1, &dir).is_ok());
        set(&file, 0o620);
        assert!(check(1, &dir).expect_err("writable").to_string().contains("others may write it"));
        set(&file, 0o644);
        set(&dir, 0o777);
        assert!(check(1, &dir).is_err());
        set(&dir, 0o700);
        if rustix::process::geteuid().is_root() {
            chown(&file, Some(1000), None).expect("another owner");
            assert!(check(1, &dir).expect_err("another's").to_string().contains("belongs to user 1000"));
        }
        fs::remove_dir_all(&dir).expect("removed");
    }
}
