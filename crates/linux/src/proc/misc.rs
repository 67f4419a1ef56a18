//! The small files of `/proc/PID`.

use super::text::{decimal, number, take_hex};
use super::{Link, Proc, ProcError};
use crate::addr::RemoteAddr;

impl Proc {
    /// The auxiliary vector as the kernel handed it to the program: pairs of 8-byte words.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn auxv(&self) -> Result<Vec<u8>, ProcError> {
        self.read("auxv")
    }

    /// The arguments, each ended by a zero byte; empty for kernel threads and zombies.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn cmdline(&self) -> Result<Vec<u8>, ProcError> {
        self.read("cmdline")
    }

    /// Name of the thread, at most 15 bytes of any kind but zero.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn comm(&self) -> Result<Vec<u8>, ProcError> {
        let mut name = self.read("comm")?;
        // The kernel adds one line feed; another one may belong to the name.
        if name.last() == Some(&b'\n') {
            name.pop();
        }
        Ok(name)
    }

    /// Execution domain and flags, as personality(2) gives them.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn personality(&self) -> Result<u32, ProcError> {
        let text = self.read("personality")?;
        number(text.trim_ascii(), 16, "a personality").map_err(self.malformed("personality"))
    }

    /// Timer slack of a thread of this process, in nanoseconds.
    ///
    /// # Errors
    /// [`ProcError::Denied`] without `CAP_SYS_NICE`, for any thread but the caller: then only the thread itself can tell
    /// (`PR_GET_TIMERSLACK`). Otherwise as [`ProcError`] tells apart.
    pub fn timer_slack(&self, tid: i32) -> Result<u64, ProcError> {
        // The file is not in `task/TID`, but every thread also answers to `/proc/TID`.
        let thread = Self::open(tid)?;
        let text = thread.read("timerslack_ns")?;
        decimal(text.trim_ascii(), "nanoseconds").map_err(thread.malformed("timerslack_ns"))
    }

    /// Name of the kernel function the thread sleeps in; empty when it does not sleep or the kernel does not say.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn wchan(&self) -> Result<Vec<u8>, ProcError> {
        let text = self.read("wchan")?;
        Ok(if text == b"0" { Vec::new() } else { text })
    }

    /// The executable.
    ///
    /// # Errors
    /// [`ProcError::Missing`] for kernel threads; otherwise as [`ProcError`] tells apart.
    pub fn exe(&self) -> Result<Link, ProcError> {
        self.link("exe")
    }

    /// Working directory.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn cwd(&self) -> Result<Link, ProcError> {
        self.link("cwd")
    }

    /// Root directory.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn root(&self) -> Result<Link, ProcError> {
        self.link("root")
    }

    /// Inode of a namespace (`mnt`, `pid`, `user`, `net`, `ipc`, `uts`, `time`, `cgroup`): equal numbers, same namespace.
    ///
    /// # Errors
    /// [`ProcError::Missing`] when the kernel has no such namespaces; otherwise as [`ProcError`] tells apart.
    pub fn namespace(&self, kind: &str) -> Result<u64, ProcError> {
        Ok(self.link(&format!("ns/{kind}"))?.stat.inode)
    }

    /// Where the vdso is mapped, from the auxiliary vector; `None` without one.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn vdso_address(&self) -> Result<Option<RemoteAddr>, ProcError> {
        Ok(self.auxv_entry(libc::AT_SYSINFO_EHDR)?.map(RemoteAddr::new))
    }

    /// An entry of the auxiliary vector (`AT_*`).
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn auxv_entry(&self, key: u64) -> Result<Option<u64>, ProcError> {
        let auxv = self.auxv()?;
        let (words, _) = auxv.as_chunks::<8>();
        let mut pairs =
            words.chunks_exact(2).map(|pair| (u64::from_ne_bytes(pair[0]), u64::from_ne_bytes(pair[1])));
        Ok(pairs.find(|(found, _)| *found == key).map(|(_, value)| value))
    }

    /// Number of the system call the thread is in, from `syscall`; `None` when it runs or is not in one.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn system_call(&self) -> Result<Option<u64>, ProcError> {
        let text = self.read("syscall")?;
        let first = text.trim_ascii().split(|&byte| byte == b' ').next().unwrap_or(b"");
        if matches!(first, b"running" | b"-1") {
            return Ok(None);
        }
        decimal(first, "a system call").map(Some).map_err(self.malformed("syscall"))
    }

    /// Where the thread's instruction and stack pointers stand, from `syscall`: stack, instruction. `None` when it runs.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn stack_and_instruction(&self) -> Result<Option<(RemoteAddr, RemoteAddr)>, ProcError> {
        let text = self.read("syscall")?;
        let mut last_first = text.trim_ascii().rsplit(|&byte| byte == b' ');
        let (Some(instruction), Some(stack)) = (last_first.next(), last_first.next()) else {
            return Ok(None);
        };
        let address = |word: &[u8]| {
            let mut digits = word.strip_prefix(b"0x").unwrap_or(word);
            take_hex(&mut digits, "an address").map(RemoteAddr::new).map_err(self.malformed("syscall"))
        };
        Ok(Some((address(stack)?, address(instruction)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn our_own() {
        let proc = Proc::own().unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(proc.exe().unwrap().target, exe.as_os_str().as_bytes());
        assert_eq!(proc.cwd().unwrap().target, std::env::current_dir().unwrap().as_os_str().as_bytes());
        assert!(proc.root().unwrap().reachable);
        assert!(proc.cmdline().unwrap().ends_with(b"\0"));
        assert_eq!(proc.personality().unwrap() & 0xff, 0);
        assert!(proc.timer_slack(proc.id()).map_or_else(|error| error.is_denied(), |slack| slack > 0));
        assert!(!proc.comm().unwrap().is_empty());
        assert_eq!(proc.auxv_entry(libc::AT_PAGESZ).unwrap(), Some(4096));
        let mappings = proc.maps().unwrap();
        let vdso = proc.vdso_address().unwrap().unwrap();
        assert!(mappings.iter().any(|mapping| mapping.start == vdso && mapping.name == b"[vdso]"));
        assert!(proc.namespace("pid").unwrap() > 0);
        // We read the file inside read(2).
        assert!(proc.thread(rustix::thread::gettid().as_raw_nonzero().get()).unwrap().system_call().is_ok());
    }

    #[test]
    fn a_sleeping_child() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let proc = Proc::open(i32::try_from(child.id()).unwrap()).unwrap();
        while proc.comm().unwrap() != b"sleep" || proc.stat().unwrap().state != 'S' {
            std::thread::yield_now();
        }
        assert!(proc.system_call().unwrap().is_some());
        let (stack, instruction) = proc.stack_and_instruction().unwrap().unwrap();
        let mappings = proc.maps().unwrap();
        let at = |address| mappings.iter().find(|map| map.start <= address && address < map.end).unwrap();
        assert_eq!(at(stack).name, b"[stack]");
        assert!(at(instruction).protection & libc::PROT_EXEC.cast_unsigned() != 0);
        assert!(proc.wchan().is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
