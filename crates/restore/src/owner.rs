//! Whose an image is: it is run with the rights of who resumes it, so nobody else may have written it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rewake_image::FILES;
use rewake_image::records::path_of;
use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use crate::error::RestoreError;

/// Writing by the group or by all others.
const WRITABLE: u32 = 0o022;

/// Refuses an image that another user made or may have changed. For root as well: it would run what that user wrote. Looks at the
/// directory that is open, whatever is at `dir` by now: who passes this has it for himself, and nobody can swap files in it.
///
/// # Errors
/// [`RestoreError::Foreign`], naming the directory or the file.
pub fn check(pid: i32, directory: &OwnedFd, dir: &Path) -> Result<(), RestoreError> {
    let own = rustix::process::geteuid().as_raw();
    // Those that are read, even where the directory cannot be listed; and whatever else is there.
    let known = FILES.iter().map(|name| name.as_bytes().to_vec());
    for name in std::iter::once(b".".to_vec()).chain(known).chain(others(directory)) {
        // Of a file that is gone meanwhile nothing is read either.
        let Ok(facts) = rustix::fs::statat(directory, &*name, AtFlags::empty()) else { continue };
        let path = if name == b"." { dir.to_path_buf() } else { dir.join(path_of(&name)) };
        let refuse = |reason, remedy| {
            Err(RestoreError::Foreign { pid, path: path.display().to_string(), reason, remedy })
        };
        if facts.st_uid != own {
            let reason = format!("it belongs to user {}, not to {own}", facts.st_uid);
            return refuse(reason, "look at it with `rewake show`, then copy it or make it yours (chown -R)");
        }
        if facts.st_mode & WRITABLE != 0 {
            let reason = format!("others may write it (mode {:o})", facts.st_mode & 0o7777);
            return refuse(reason, "look at it with `rewake show`, then take that away (chmod -R go-w)");
        }
    }
    Ok(())
}

fn others(directory: &OwnedFd) -> Vec<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(directory, ".", flags, Mode::empty()).and_then(Dir::new);
    let names = listed.into_iter().flatten().flatten().map(|entry| entry.file_name().to_bytes().to_vec());
    names.filter(|name| name != b"." && name != b"..").collect()
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
        let open = rewake_image::open_directory(&dir).expect("open");
        let check = |pid, dir: &Path| super::check(pid, &open, dir);
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
        // A journal of files to be undone, say.
        fs::write(dir.join("undo"), "").expect("a file");
        set(&dir.join("undo"), 0o666);
        assert!(check(1, &dir).expect_err("writable").to_string().contains("undo"));
        set(&dir.join("undo"), 0o600);
        assert!(check(1, &dir).is_ok());
        if rustix::process::geteuid().is_root() {
            chown(&file, Some(1000), None).expect("another owner");
            assert!(check(1, &dir).expect_err("another's").to_string().contains("belongs to user 1000"));
        }
        // What counts is the directory that is open, not what has its name by now.
        let (moved, fine) = (dir.with_extension("moved"), Path::new("fine"));
        set(&dir, 0o777);
        fs::rename(&dir, &moved).expect("moved");
        fs::create_dir(&dir).expect("a folder");
        set(&dir, 0o700);
        assert!(check(1, &dir).is_err() && check(1, fine).is_err());
        fs::remove_dir_all(&moved).expect("removed");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
