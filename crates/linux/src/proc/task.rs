//! Threads and descendants of a process.

use rustix::fs::{Dir, Mode, OFlags};

use super::text::{decimal, words};
use super::{Proc, ProcError, Stat};

impl Proc {
    /// Ids of the threads, in ascending order. More may appear until all are stopped.
    ///
    /// # Errors
    /// [`ProcError::Gone`] when the process ended; otherwise as [`ProcError`] tells apart.
    pub fn threads(&self) -> Result<Vec<i32>, ProcError> {
        let threads = self.numbered("task")?;
        if threads.is_empty() {
            Err(ProcError::Gone { pid: self.id, file: "task".to_owned() })
        } else {
            Ok(threads)
        }
    }

    /// Children of all threads, in ascending order, zombies included.
    ///
    /// The list is exact only when the process and its children are stopped. Kernels without `children` files are searched
    /// through by parent.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn children(&self) -> Result<Vec<i32>, ProcError> {
        let mut children = Vec::new();
        for tid in self.threads()? {
            let file = format!("task/{tid}/children");
            match self.read(&file) {
                Ok(text) => {
                    for word in words(text.trim_ascii()) {
                        children.push(decimal(word, "a child").map_err(self.malformed(&file))?);
                    }
                }
                // The thread ended meanwhile: its children went to another thread, or the file is not there at all.
                Err(error) if error.is_missing() || error.is_gone() => return children_by_scan(self.id),
                Err(error) => return Err(error),
            }
        }
        children.sort_unstable();
        Ok(children)
    }

    /// Entries of a folder that are numbers, in ascending order.
    pub(super) fn numbered(&self, folder: &str) -> Result<Vec<i32>, ProcError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self, folder, flags, Mode::empty());
        let opened = opened.map_err(|errno| self.error(folder, errno))?;
        numbers(opened).map_err(|errno| self.error(folder, errno))
    }
}

/// The names in a folder that are numbers, in ascending order.
fn numbers(folder: rustix::fd::OwnedFd) -> rustix::io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in Dir::new(folder)? {
        if let Ok(number) = decimal(entry?.file_name().to_bytes(), "a number") {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Ids of all processes that we can see, in ascending order.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes() -> std::io::Result<Vec<i32>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(numbers(rustix::fs::open("/proc", flags, Mode::empty())?)?)
}

/// Children of a process, found by asking every process for its parent; in ascending order.
///
/// # Errors
/// When `/proc` cannot be read. Processes that end meanwhile are left out.
pub fn children_by_scan(pid: i32) -> Result<Vec<i32>, ProcError> {
    let all = processes().map_err(|source| ProcError::from_io(pid, "..", source))?;
    let parent = |child: &i32| Proc::open(*child).and_then(|child| child.stat());
    Ok(all.into_iter().filter(|child| parent(child).is_ok_and(|Stat { ppid, .. }| ppid == pid)).collect())
}

/// All descendants of a process, parents before children, without the process itself.
///
/// # Errors
/// As [`ProcError`] tells apart for the process itself; descendants that end meanwhile are left out.
pub fn descendants(pid: i32) -> Result<Vec<i32>, ProcError> {
    let mut found = Proc::open(pid)?.children()?;
    let mut next = 0;
    while let Some(&child) = found.get(next) {
        next += 1;
        match Proc::open(child).and_then(|child| child.children()) {
            // A process seen twice (its id used again while we looked) must not make us walk in circles.
            Ok(more) => {
                let new: Vec<i32> = more.into_iter().filter(|id| *id != pid && !found.contains(id)).collect();
                found.extend(new);
            }
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_and_grandchildren() {
        let script = "sleep 100 & echo ready; wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = i32::try_from(child.id()).unwrap();

        let proc = Proc::open(pid).unwrap();
        let children = proc.children().unwrap();
        assert_eq!(children.len(), 1);
        assert_eq!(children_by_scan(pid).unwrap(), children);
        assert_eq!(proc.threads().unwrap(), [pid]);
        assert!(Proc::own().unwrap().children().unwrap().contains(&pid));
        let all = descendants(std::process::id().cast_signed()).unwrap();
        let place = |id: i32| all.iter().position(|&found| found == id).unwrap();
        assert!(place(pid) < place(children[0]));

        let sleep = rustix::process::Pid::from_raw(children[0]).unwrap();
        rustix::process::kill_process(sleep, rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn threads() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            ended.recv().unwrap_err();
        });
        let tid = told.recv().unwrap();
        let proc = Proc::own().unwrap();
        assert!(proc.threads().unwrap().contains(&tid));
        let view = proc.thread(tid).unwrap();
        let stat = view.stat().unwrap();
        assert_eq!(stat.pid, tid);
        assert_eq!(view.status().unwrap().tgid, proc.id());
        drop(end);
        thread.join().unwrap();
        assert!(proc.thread(1).unwrap_err().is_gone());
        assert!(processes().unwrap().contains(&proc.id()));
    }
}
