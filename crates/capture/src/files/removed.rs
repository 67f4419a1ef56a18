//! Folders and fifos that were removed while the target uses them: as working folder, open, or around another such folder. The kernel
//! still knows what a removed folder was in, so that a chain of them is found whole.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rewake_image::records::{Process, RemovedFile, path_of};
use rewake_linux::proc::{Link, Proc};
use rustix::fs::{FileType, Mode, OFlags};

use super::kind::{self, LET_FINISH, refuse};
use super::{Seen, identity};
use crate::error::{During, Result};
use crate::findings::Findings;
use crate::findings::Refusal;
use crate::spaces::Ids;

/// A path has no more names.
const DEEPEST: usize = 2048;
const OPEN: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Removed files, each once.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) files: Vec<RemovedFile>,
    /// Those that are working folders of processes, by the processes' ids out here.
    pub(crate) cwd: BTreeMap<i32, u32>,
    /// Those that are working folders of threads on their own, by the threads' ids out here.
    pub(crate) cwds: BTreeMap<i32, u32>,
    /// Ids by device and inode.
    known: HashMap<(u64, u64), u32>,
}

impl Removed {
    /// All that the target uses. What cannot be made again goes to `findings`; descriptors of it are refused by the same words later.
    ///
    /// # Errors
    /// When the target is gone.
    pub(super) fn find(procs: &[Proc], seen: &[Seen], findings: &mut Findings) -> Result<Self> {
        let mut removed = Self::default();
        for proc in procs {
            findings.turn_to(proc.id());
            removed.working_folders(proc, findings)?;
        }
        // Fifos do not know what they were in: by its name, when all folders are known.
        for kind in [FileType::Directory, FileType::Fifo] {
            for one in seen.iter().filter(|one| is_removed(&one.link, kind)) {
                let Some(proc) = procs.iter().find(|proc| proc.id() == one.pid) else { continue };
                // Said about the descriptor when it is classified.
                let _said = removed.add(proc, &format!("fd/{}", one.fd), &one.link);
            }
        }
        Ok(removed)
    }

    fn working_folders(&mut self, proc: &Proc, findings: &mut Findings) -> Result<()> {
        let pid = proc.id();
        let cwd = proc.cwd().during("readlink", pid, "working directory")?;
        if let Some(id) = self.working_folder(proc, &cwd, findings) {
            self.cwd.insert(pid, id);
        }
        for tid in proc.threads().during("list threads", pid, "task")? {
            // One that ends meanwhile does not count, and where it shares that of the process it is the same once more.
            let Ok(thread) = proc.thread(tid) else { continue };
            if let Ok(link) = thread.cwd()
                && let Some(id) = self.working_folder(&thread, &link, findings)
            {
                self.cwds.insert(tid, id);
            }
        }
        Ok(())
    }

    /// Says in the record of the process which of them are working folders.
    pub(crate) fn tell(&self, pid: i32, ids: &Ids, process: &mut Process) {
        process.cwd_removed = self.cwd.get(&pid).copied();
        for (tid, id) in self.cwds.iter().map(|(tid, id)| (ids.inner(*tid), *id)) {
            let thread = process.threads.iter_mut().find(|thread| thread.tid == tid);
            if let Some(own) = thread.and_then(|thread| thread.own_fs.as_mut()) {
                own.cwd_removed = Some(id);
            }
        }
    }

    /// The id of a removed file.
    pub(super) fn id(&self, link: &Link) -> Option<u32> {
        self.known.get(&(link.stat.device, link.stat.inode)).copied()
    }

    fn working_folder(&mut self, proc: &Proc, link: &Link, findings: &mut Findings) -> Option<u32> {
        if !is_removed(link, FileType::Directory) {
            return None;
        }
        self.add(proc, "cwd", link)
            .map_err(|refusal| {
                let name = format!("working directory {}", String::from_utf8_lossy(&link.target));
                findings.refuse(name, refusal);
            })
            .ok()
    }

    /// Adds one, and what it was in as far as that is removed as well.
    fn add(&mut self, proc: &Proc, file: &str, link: &Link) -> Result<u32, Refusal> {
        if let Some(id) = self.id(link) {
            return Ok(id);
        }
        if let Some(system) = kind::virtual_file_system(proc, file) {
            let name = system.name();
            return refuse(format!("removed folders of {name} cannot be made again"), LET_FINISH);
        }
        if FileType::from_raw_mode(link.stat.mode) == FileType::Fifo {
            return Ok(self.push(link, self.folder_of(&link.target)));
        }
        let lost = |what: &str| {
            let reason = format!("it was removed, and what it was in cannot be told: {what}");
            Refusal::new(reason, "run the command as root, or let the program change to another folder")
        };
        let mut chain = vec![link.clone()];
        let mut at = rustix::fs::openat(proc, file, OPEN | OFlags::DIRECTORY, Mode::empty())
            .map_err(|error| lost(&error.to_string()))?;
        while chain.len() < DEEPEST {
            let above = above(&at).map_err(|error| lost(&error))?;
            if !is_removed(&above.0, FileType::Directory) || self.id(&above.0).is_some() {
                chain.push(above.0);
                break;
            }
            chain.push(above.0);
            at = above.1;
        }
        let mut parent = chain.pop().and_then(|top| self.id(&top));
        while let Some(link) = chain.pop() {
            parent = Some(self.push(&link, parent));
        }
        parent.ok_or_else(|| lost("it is in itself"))
    }

    fn push(&mut self, link: &Link, parent: Option<u32>) -> u32 {
        let id = u32::try_from(self.files.len()).expect("fewer files than 2^32");
        let (uid, gid) = (link.stat.uid, link.stat.gid);
        self.files.push(RemovedFile { id, identity: Some(identity(link)), uid, gid, parent });
        self.known.insert((link.stat.device, link.stat.inode), id);
        id
    }

    /// The one removed folder of the name that this path has without its last part.
    fn folder_of(&self, path: &[u8]) -> Option<u32> {
        let folder = path_of(path).parent()?;
        if folder.exists() {
            return None;
        }
        let is_it = |file: &&RemovedFile| {
            file.is_folder() && file.identity.as_ref().is_some_and(|identity| identity.as_path() == folder)
        };
        self.files.iter().rev().find(is_it).map(|file| file.id)
    }
}

/// Whether a link leads to a file of that kind that has no name any more.
pub(super) fn is_removed(link: &Link, kind: FileType) -> bool {
    link.deleted && link.target.starts_with(b"/") && FileType::from_raw_mode(link.stat.mode) == kind
}

/// The folder that one is or was in, and where that is or was.
fn above(folder: impl AsFd) -> Result<(Link, OwnedFd), String> {
    let above = rustix::fs::openat(folder, "..", OPEN | OFlags::DIRECTORY, Mode::empty());
    let above = above.map_err(|error| error.to_string())?;
    let own = Proc::own().and_then(|own| own.link(&format!("fd/{}", above.as_raw_fd())));
    Ok((own.map_err(|error| error.to_string())?, above))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_removed_chain_is_found_whole_and_each_folder_once() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().canonicalize().unwrap().join("a");
        fs::create_dir_all(top.join("b/c")).unwrap();
        let (first, inner) = (File::open(&top).unwrap(), File::open(top.join("b/c")).unwrap());
        let again = inner.try_clone().unwrap();
        fs::remove_dir_all(&top).unwrap();
        let proc = Proc::own().unwrap();
        let mut removed = Removed::default();
        let mut add = |file: &File| {
            let name = format!("fd/{}", file.as_raw_fd());
            removed.add(&proc, &name, &proc.link(&name).unwrap()).unwrap()
        };
        assert_eq!([add(&inner), add(&first), add(&again)], [2, 0, 2]);
        let parents: Vec<_> = removed.files.iter().map(|file| file.parent).collect();
        assert_eq!(parents, [None, Some(0), Some(1)]);
        assert_eq!(removed.files[1].name(), b"b");
        assert_eq!(removed.files[2].identity.as_ref().unwrap().as_path(), top.join("b/c"));
        assert_eq!(removed.folder_of(top.join("b/fifo").as_os_str().as_encoded_bytes()), Some(1));
    }
}
