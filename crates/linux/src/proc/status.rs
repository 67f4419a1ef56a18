//! `/proc/PID/status`: credentials, signal masks and other facts, one per line.

use super::text::{ParseError, decimal, key_value, lines, number, words};
use super::{Proc, ProcError};

/// The five capability sets of a thread, bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Kept over execve of a file that inherits.
    pub inheritable: u64,
    /// What the thread may make effective.
    pub permitted: u64,
    /// What it has now.
    pub effective: u64,
    /// What it can ever gain.
    pub bounding: u64,
    /// Kept over execve of any file.
    pub ambient: u64,
}

/// The fields of `/proc/PID/status` that a checkpoint needs. Signal sets have bit n-1 for signal n.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Name, with the kernel's escapes (`\n`, `\\`); [`Proc::comm`] gives the plain bytes.
    pub name: Vec<u8>,
    /// File mode creation mask. `None` for a zombie.
    pub umask: Option<u32>,
    /// State letter; 0 when absent.
    pub state: u8,
    /// Thread group, that is process.
    pub tgid: i32,
    /// This thread.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Who traces this thread; 0 for nobody.
    pub tracer_pid: i32,
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// Real, effective, saved and file system group.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Ids of the process in the pid namespaces from the reader's to its own; one entry when it is in the reader's.
    pub ns_tgids: Vec<i32>,
    /// Ids of the thread likewise.
    pub ns_pids: Vec<i32>,
    /// Its process group and its session likewise; 0 where the namespace has no number for them.
    pub ns_pgids: Vec<i32>,
    /// See [`Status::ns_pgids`].
    pub ns_sids: Vec<i32>,
    /// Whether it is a kernel thread (told since Linux 6.9).
    pub kernel_thread: bool,
    /// Whether the process has memory of its own: false for kernel threads and zombies.
    pub has_memory: bool,
    /// Resident memory in bytes.
    pub vm_rss: u64,
    /// Memory swapped out, in bytes.
    pub vm_swap: u64,
    /// Memory locked, in bytes.
    pub vm_locked: u64,
    /// Whether transparent huge pages are allowed (not switched off by `PR_SET_THP_DISABLE`).
    pub thp_enabled: Option<bool>,
    /// Number of threads.
    pub threads: u32,
    /// Signals pending for this thread.
    pub pending: u64,
    /// Signals pending for the process.
    pub shared_pending: u64,
    /// Blocked signals.
    pub blocked: u64,
    /// Ignored signals.
    pub ignored: u64,
    /// Signals with a handler.
    pub caught: u64,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filters.
    pub seccomp: u32,
    /// Number of seccomp filters.
    pub seccomp_filters: u32,
    /// Which bits of addresses count (x86-64 since Linux 6.4): all, unless the program masks some off for tags (LAM).
    pub untag_mask: Option<u64>,
}

impl Status {
    /// Parses the text of the file. Unknown lines are skipped.
    ///
    /// # Errors
    /// When a known line is not as Linux writes it, or the ones every process has are missing.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        let mut status = Self::default();
        for line in lines(text) {
            if let Some((key, value)) = key_value(line) {
                status.line(key, value)?;
            }
        }
        if status.pid <= 0 || status.tgid <= 0 {
            return Err(ParseError::expected("Tgid and Pid", text));
        }
        Ok(status)
    }

    fn line(&mut self, key: &[u8], value: &[u8]) -> Result<(), ParseError> {
        match key {
            b"Name" => self.name = value.to_vec(),
            b"Umask" => self.umask = Some(number(value, 8, "a mask")?),
            b"State" => self.state = value.first().copied().unwrap_or(0),
            b"Tgid" => self.tgid = decimal(value, "Tgid")?,
            b"Pid" => self.pid = decimal(value, "Pid")?,
            b"PPid" => self.ppid = decimal(value, "PPid")?,
            b"TracerPid" => self.tracer_pid = decimal(value, "TracerPid")?,
            b"Uid" => self.uids = four(value)?,
            b"Gid" => self.gids = four(value)?,
            b"Groups" => self.groups = list(value)?,
            b"NStgid" => self.ns_tgids = list(value)?,
            b"NSpid" => self.ns_pids = list(value)?,
            b"NSpgid" => self.ns_pgids = list(value)?,
            b"NSsid" => self.ns_sids = list(value)?,
            b"Kthread" => self.kernel_thread = value == b"1",
            b"VmSize" => self.has_memory = true,
            b"VmRSS" => self.vm_rss = kilobytes(value)?,
            b"VmSwap" => self.vm_swap = kilobytes(value)?,
            b"VmLck" => self.vm_locked = kilobytes(value)?,
            b"THP_enabled" => self.thp_enabled = Some(value == b"1"),
            b"Threads" => self.threads = decimal(value, "Threads")?,
            b"NoNewPrivs" => self.no_new_privs = value == b"1",
            b"Seccomp" => self.seccomp = decimal(value, "Seccomp")?,
            b"Seccomp_filters" => self.seccomp_filters = decimal(value, "Seccomp_filters")?,
            b"untag_mask" => {
                let digits = value.strip_prefix(b"0x").unwrap_or(value);
                self.untag_mask = Some(number(digits, 16, "a mask")?);
            }
            _ => return self.mask(key, value),
        }
        Ok(())
    }

    fn mask(&mut self, key: &[u8], value: &[u8]) -> Result<(), ParseError> {
        let place = match key {
            b"SigPnd" => &mut self.pending,
            b"ShdPnd" => &mut self.shared_pending,
            b"SigBlk" => &mut self.blocked,
            b"SigIgn" => &mut self.ignored,
            b"SigCgt" => &mut self.caught,
            b"CapInh" => &mut self.capabilities.inheritable,
            b"CapPrm" => &mut self.capabilities.permitted,
            b"CapEff" => &mut self.capabilities.effective,
            b"CapBnd" => &mut self.capabilities.bounding,
            b"CapAmb" => &mut self.capabilities.ambient,
            _ => return Ok(()),
        };
        *place = number(value, 16, "a mask")?;
        Ok(())
    }
}

/// All numbers of a line.
fn list<T: TryFrom<i128>>(value: &[u8]) -> Result<Vec<T>, ParseError> {
    words(value).map(|word| decimal(word, "a list of ids")).collect()
}

/// Exactly four ids.
fn four(value: &[u8]) -> Result<[u32; 4], ParseError> {
    list(value)?.try_into().map_err(|_| ParseError::expected("four ids", value))
}

/// `123 kB` in bytes.
fn kilobytes(value: &[u8]) -> Result<u64, ParseError> {
    let digits = value.strip_suffix(b"kB").unwrap_or(value).trim_ascii();
    decimal::<u64>(digits, "a size")?.checked_mul(1024).ok_or_else(|| ParseError::expected("a size", value))
}

impl Proc {
    /// `/proc/PID/status`.
    ///
    /// # Errors
    /// As [`ProcError`] tells apart.
    pub fn status(&self) -> Result<Status, ProcError> {
        Status::parse(&self.read("status")?).map_err(self.malformed("status"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"Name:\ta\\nb: c\nUmask:\t0027\nState:\tt (tracing stop)\nTgid:\t100\nNgid:\t0\nPid:\t101\nPPid:\t7\n\
        TracerPid:\t55\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t4294967295\nFDSize:\t64\nGroups:\t4 24 27 \nNStgid:\t100\t1\n\
        NSpid:\t101\t2\nNSpgid:\t100\t1\nNSsid:\t50\t0\nKthread:\t0\nVmSize:\t  100 kB\nVmLck:\t       4 kB\nVmRSS:\t    4567 kB\nVmSwap:\t 8 kB\n\
        CoreDumping:\t0\nTHP_enabled:\t1\nThreads:\t3\nSigQ:\t0/7799\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\n\
        SigBlk:\t0000000000010000\nSigIgn:\tfffffffe00000000\nSigCgt:\t0000000000004002\nCapInh:\t0000000000000001\n\
        CapPrm:\t000001fffeffffff\nCapEff:\t0000000000000004\nCapBnd:\t0000000000000008\nCapAmb:\t0000000000000010\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\nCpus_allowed:\t3\nx86_Thread_features:\t\nuntag_mask:\t0x81ffffffffffffff\n";

    #[test]
    fn sample() {
        let status = Status::parse(SAMPLE).unwrap();
        assert_eq!(status.name, b"a\\nb: c");
        assert_eq!((status.umask, status.state), (Some(0o27), b't'));
        assert_eq!((status.tgid, status.pid, status.ppid, status.tracer_pid), (100, 101, 7, 55));
        assert_eq!(status.uids, [1000, 1001, 1002, 1003]);
        assert_eq!(status.gids, [5, 6, 7, u32::MAX]);
        assert_eq!(status.groups, [4, 24, 27]);
        assert_eq!((status.ns_tgids, status.ns_pids), (vec![100, 1], vec![101, 2]));
        assert_eq!((status.ns_pgids, status.ns_sids), (vec![100, 1], vec![50, 0]));
        assert_eq!((status.vm_rss, status.vm_swap, status.vm_locked), (4567 * 1024, 8192, 4096));
        assert!(status.has_memory && !status.kernel_thread && status.no_new_privs);
        assert_eq!((status.thp_enabled, status.threads), (Some(true), 3));
        assert_eq!((status.pending, status.shared_pending, status.blocked), (1, 2, 0x10000));
        assert_eq!((status.ignored, status.caught), (0xffff_fffe_0000_0000, 0x4002));
        let Capabilities { inheritable, permitted, effective, bounding, ambient } = status.capabilities;
        assert_eq!((inheritable, permitted, effective, bounding, ambient), (1, 0x1ff_feff_ffff, 4, 8, 16));
        assert_eq!((status.seccomp, status.seccomp_filters), (2, 3));
        assert_eq!(status.untag_mask, Some(0x81ff_ffff_ffff_ffff));
    }

    #[test]
    fn hostile_text() {
        for text in
            [&b""[..], b"Pid:\t1\n", b"Tgid:\t1\nPid:\t1\nUid:\t1 2 3\n", b"Pid:\tx\n", b"SigBlk:\tzz\n"]
        {
            assert!(Status::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn our_own() {
        let status = Proc::own().unwrap().status().unwrap();
        assert_eq!(status.pid, std::process::id().cast_signed());
        assert_eq!(status.uids[0], rustix::process::getuid().as_raw());
        assert!(status.has_memory && status.vm_rss > 0 && status.threads >= 1);
        assert_eq!(status.ns_pids.first(), Some(&status.pid));
    }
}
