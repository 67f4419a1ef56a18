//! What the host must offer, checked before anything is created.

mod aio;
mod fifos;
mod kernel;
mod memory;
mod needs;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;

use rewake_image::records::{Cpu, Device, FileIdentity, OpenFile, Process, open_file};
use rewake_image::{Image, PageReader, build_id};
use rewake_linux::proc::Proc;
use rewake_linux::{attributes, cpu, host};

pub use self::memory::check_memory;
use crate::OnChanged;
use crate::credentials::Identity;
use crate::error::RestoreError;
use crate::putback::decide::{Decisions, Now, decide};
use crate::putback::{self, Saved};

pub use needs::{check_architecture, check_limits};

/// `S_IFMT`.
const KIND: u32 = 0o170_000;
/// `S_IFCHR`.
const CHARACTER_DEVICE: u32 = 0o020_000;
/// First bits of an xsave area's header: which components hold something.
const XSTATE_BV: usize = 512;

/// Refuses, by name, what this host's CPU lacks.
///
/// # Errors
/// [`RestoreError::Cpu`] with everything that is missing.
pub fn check_cpu(image: &Image) -> Result<(), RestoreError> {
    let Some(wanted) = &image.manifest.cpu else { return Ok(()) };
    let own = own_cpu().map_err(|source| RestoreError::System {
        operation: "survey",
        pid: image.root().pid,
        object: "CPU of this host".into(),
        source,
    })?;
    let missing = missing(wanted, &own, used_components(image));
    if missing.is_empty() {
        return Ok(());
    }
    Err(RestoreError::Cpu { pid: image.root().pid, missing: missing.join(", ") })
}

fn own_cpu() -> io::Result<Cpu> {
    let own = cpu::Cpu::here()?;
    Ok(Cpu {
        features: own.features,
        xcr0: own.xcr0,
        components: own
            .components
            .iter()
            .map(|part| rewake_image::records::XsaveComponent {
                index: part.index,
                offset: part.offset,
                size: part.size,
            })
            .collect(),
        ..Cpu::default()
    })
}

/// Components that any thread's saved state really holds.
fn used_components(image: &Image) -> u64 {
    let threads = image.processes.iter().flat_map(|process| &process.threads);
    threads
        .filter_map(|thread| thread.xstate.get(XSTATE_BV..XSTATE_BV + 8)?.first_chunk::<8>())
        .fold(0, |all, bits| all | u64::from_le_bytes(*bits))
}

fn missing(wanted: &Cpu, own: &Cpu, used: u64) -> Vec<String> {
    let have: BTreeSet<&String> = own.features.iter().collect();
    let mut missing: Vec<String> =
        wanted.features.iter().filter(|feature| !have.contains(feature)).cloned().collect();
    for index in 2..63 {
        if used & 1 << index == 0 {
            continue;
        }
        let find = |cpu: &Cpu| cpu.components.iter().find(|part| part.index == index).copied();
        match (find(wanted), find(own)) {
            (Some(wanted), Some(own)) if own.offset == wanted.offset && own.size == wanted.size => {}
            (None, _) => {}
            _ => missing.push(format!("xsave state component {index} at the same place")),
        }
    }
    missing
}

/// Refuses credentials that the invoker cannot give: see [`Identity`].
///
/// # Errors
/// [`RestoreError::Credentials`] with everything that differs.
pub fn check_credentials<'a>(image: &'a Image) -> Result<(), RestoreError> {
    let pid = image.root().pid;
    let own = Identity::own_for(pid)?;
    let invoker_has_ours = !is_privileged_binary();
    let mut differences = Vec::new();
    let threads = |process: &'a Process| process.threads.iter().map(move |thread| (process, thread));
    for (process, thread) in image.processes.iter().flat_map(threads) {
        for one in Identity::of(process, thread).differences(&own, invoker_has_ours) {
            if !differences.contains(&one) {
                differences.push(one);
            }
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(RestoreError::Credentials { pid, differences: differences.join(", ") })
}

/// Refuses what takes a right that the invoker has not: another root directory, seccomp, fanotify.
///
/// # Errors
/// [`RestoreError::Unsupported`], naming it.
pub fn check_rights(image: &Image) -> Result<(), RestoreError> {
    image.processes.iter().try_for_each(check_rights_of)?;
    let mut kinds = image.open_files.iter().filter_map(|file| file.kind.as_ref());
    if kinds.any(|kind| matches!(kind, open_file::Kind::Fanotify(_))) && is_privileged_binary() {
        let reason =
            "they would have the rights of the file of this command; use one without capabilities of its own";
        let (pid, object) = (image.root().pid, "fanotify groups".into());
        return Err(RestoreError::Unsupported { pid, object, reason: reason.into() });
    }
    Ok(())
}

fn check_rights_of(process: &Process) -> Result<(), RestoreError> {
    const CAP_SYS_CHROOT: u32 = 18;
    let unsupported = |object: String, reason: &str| {
        Err(RestoreError::Unsupported { pid: process.pid, object, reason: reason.into() })
    };
    let roots = process.threads.iter().filter_map(|thread| thread.own_fs.as_ref()).map(|own| &own.root);
    let may_change_root = !is_privileged_binary()
        && Identity::own().is_ok_and(|own| own.capabilities.effective & 1 << CAP_SYS_CHROOT != 0);
    let own = process.exit_status.is_none().then_some(&process.root);
    if let Some(root) = roots.chain(own).find(|root| *root != b"/")
        && !may_change_root
    {
        let object = format!("root directory {}", String::from_utf8_lossy(root));
        return unsupported(object, "changing to it takes CAP_SYS_CHROOT; resume as root");
    }
    let filtered = process.threads.iter().any(|thread| thread.seccomp_mode != 0);
    if filtered && !attributes::can_suspend_seccomp() {
        let reason = "putting the filters back takes CAP_SYS_ADMIN, outside of any sandbox; resume as root";
        return unsupported("seccomp".into(), reason);
    }
    Ok(())
}

/// Refuses a program that has its terminal open (`/dev/tty`), where we have none to give it.
///
/// # Errors
/// [`RestoreError::Unsupported`].
pub fn check_terminal(image: &Image) -> Result<(), RestoreError> {
    let own_terminal = rustix::fs::makedev(5, 0);
    let has_it = |file: &OpenFile| match &file.kind {
        Some(open_file::Kind::Device(device)) => device.rdev == own_terminal,
        _ => false,
    };
    if !image.open_files.iter().any(has_it) || std::fs::File::open("/dev/tty").is_ok() {
        return Ok(());
    }
    Err(RestoreError::Unsupported {
        pid: image.root().pid,
        object: "/dev/tty".into(),
        reason: "the program has its terminal open, and this command has none to give it; resume in a terminal, or \
                 under script(1)"
            .into(),
    })
}

/// Whether our capabilities came from the file we were started from (or from a set-user-id bit), not from the invoker.
pub(crate) fn is_privileged_binary() -> bool {
    const AT_SECURE: u64 = 23;
    let secure = Proc::own().and_then(|own| own.auxv_entry(AT_SECURE));
    // In doubt the invoker has nothing.
    secure.ok().flatten().is_none_or(|secure| secure != 0)
}

/// Compares every file the image refers to with what is there now, and decides what to do about those that differ. Files that the
/// program had mapped are compared with their saved content too: writing to memory changes no time.
///
/// # Errors
/// [`RestoreError::Changed`] with all differences that forbid the resume, or those of reading.
pub fn check_files(
    image: &Image,
    reader: &PageReader,
    on_changed: OnChanged,
) -> Result<Decisions, RestoreError> {
    let pid = image.root().pid;
    let same_host = is_same_host(image);
    let mut decisions = decide(image, on_changed, &mut |identity| look(identity, same_host));
    let failed = |source| RestoreError::PutBack { pid, source };
    let mut saved = Saved::new(reader)?;
    for id in std::mem::take(&mut decisions.compare) {
        let content = image.file_contents.iter().find(|content| content.id == id);
        if let Some(content) = content
            && putback::differs(content, &mut saved).map_err(failed)?
        {
            decisions.differs(content, on_changed);
        }
    }
    let devices = image.open_files.iter().filter_map(|file| match file.kind.as_ref()? {
        open_file::Kind::Device(device) => another_device(device),
        _ => None,
    });
    decisions.refused.extend(devices);
    let the_same = same_host && on_changed != OnChanged::AsIs;
    decisions.refused.extend(watched_elsewhere(image, the_same));
    decisions.refused.extend(fifos::changed(image, the_same));
    decisions.refused.extend(kernel::missing(image));
    if decisions.refused.is_empty() {
        return Ok(decisions);
    }
    let Decisions { refused, remedies, .. } = decisions;
    Err(RestoreError::Changed { pid, changes: refused, remedies, level: image.manifest.file_level })
}

/// What inotify instances watch and fanotify groups mark must be there, and on the host of the capture be the very same.
fn watched_elsewhere(image: &Image, the_same: bool) -> Vec<String> {
    let change = |identity: &FileIdentity| {
        let path = identity.as_path();
        match std::fs::symlink_metadata(path) {
            // A mount or a whole file system has no inode.
            Ok(now)
                if the_same
                    && identity.inode != 0
                    && (now.dev(), now.ino()) != (identity.device, identity.inode) =>
            {
                Some(format!("{} was watched and was replaced since", path.display()))
            }
            Ok(_) => None,
            Err(error) => Some(format!("{} was watched and cannot be now: {error}", path.display())),
        }
    };
    let watched = image.open_files.iter().flat_map(|file| -> Vec<&FileIdentity> {
        match &file.kind {
            Some(open_file::Kind::Inotify(inotify)) => {
                let named = inotify.watches.iter().filter(|watch| !watch.deleted);
                named.filter_map(|watch| watch.identity.as_ref()).collect()
            }
            Some(open_file::Kind::Fanotify(fanotify)) => {
                let named = fanotify.marks.iter().filter(|mark| !mark.deleted);
                named.filter_map(|mark| mark.identity.as_ref()).collect()
            }
            _ => Vec::new(),
        }
    });
    watched.filter_map(change).collect()
}

fn another_device(device: &Device) -> Option<String> {
    let path = rewake_image::records::path_of(&device.path);
    match std::fs::metadata(path) {
        Ok(now) if now.rdev() == device.rdev && now.mode() & KIND == CHARACTER_DEVICE => None,
        Ok(_) => Some(format!("{} is another device now", path.display())),
        Err(error) => Some(format!("{} cannot be used: {error}", path.display())),
    }
}

fn is_same_host(image: &Image) -> bool {
    let Some(then) = &image.manifest.host else { return false };
    let Ok(now) = host::Host::here() else { return false };
    let machine_id = now.machine_id.unwrap_or_default();
    then.machine_id == machine_id && (!machine_id.is_empty() || then.hostname == now.hostname)
}

/// How a file is now. A program or library that was built again, or came with another package, is the same if its build id is.
fn look(identity: &FileIdentity, same_host: bool) -> Now {
    match facts(identity, same_host) {
        Now::Changed(_)
            if !identity.build_id.is_empty() && build_id::of(identity.as_path()) == identity.build_id =>
        {
            Now::Same
        }
        now => now,
    }
}

/// Device and inode name a file on its own host only; elsewhere size and time of change have to do.
fn facts(identity: &FileIdentity, same_host: bool) -> Now {
    let now = match std::fs::metadata(identity.as_path()) {
        Ok(now) => now,
        Err(error) => return Now::Unusable(format!("cannot be used: {error}")),
    };
    // Another kind of file is no other state of the same file; opening a pipe could wait for ever.
    if identity.mode & KIND != 0 && now.mode() & KIND != identity.mode & KIND {
        return Now::Unusable("is a file of another kind now".into());
    }
    if same_host && (now.dev(), now.ino()) != (identity.device, identity.inode) {
        return Now::Changed("was replaced by another file since".into());
    }
    if now.len() != identity.size {
        return Now::Changed(format!("changed since: {} bytes, was {}", now.len(), identity.size));
    }
    if (now.mtime(), now.mtime_nsec()) != (identity.mtime_s, identity.mtime_ns.into()) {
        return Now::Changed("changed since: written at another time".into());
    }
    Now::Same
}

#[cfg(test)]
mod tests {
    use super::*;
    use rewake_image::records::XsaveComponent;

    #[test]
    fn a_missing_feature_is_named() {
        let wanted = Cpu { features: vec!["avx2".into(), "avx512f".into()], ..Cpu::default() };
        let own = Cpu { features: vec!["avx2".into()], ..Cpu::default() };
        assert_eq!(missing(&wanted, &own, 0), ["avx512f"]);
        assert!(missing(&own, &wanted, 0).is_empty());
    }

    #[test]
    fn only_components_in_use_matter() {
        let part = |offset| XsaveComponent { index: 9, offset, size: 8 };
        let wanted = Cpu { components: vec![part(2688)], ..Cpu::default() };
        let own = Cpu { components: vec![part(2432)], ..Cpu::default() };
        assert!(missing(&wanted, &own, 0).is_empty());
        assert_eq!(missing(&wanted, &own, 1 << 9).len(), 1);
    }

    #[test]
    fn a_changed_file_is_told_apart() {
        let path = std::env::temp_dir().join(format!("rewake-host-test-{}", std::process::id()));
        std::fs::write(&path, b"before").expect("a file");
        let now = std::fs::metadata(&path).expect("its facts");
        let mut identity = FileIdentity {
            path: path.to_str().expect("a name").into(),
            device: now.dev(),
            inode: now.ino(),
            size: now.len(),
            mtime_s: now.mtime(),
            mtime_ns: u32::try_from(now.mtime_nsec()).expect("below a second"),
            mode: 0,
            ..FileIdentity::default()
        };
        let changed = |now: Now, word: &str| matches!(now, Now::Changed(how) if how.contains(word));
        assert_eq!(look(&identity, true), Now::Same);
        identity.inode += 1;
        assert!(changed(look(&identity, true), "replaced"));
        assert_eq!(look(&identity, false), Now::Same);
        identity.size += 1;
        assert!(changed(look(&identity, false), "was 7"));
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(look(&identity, false), Now::Unusable(_)));
    }
}
