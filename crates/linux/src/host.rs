//! Facts about this host, and what rights we have on it.

use std::io;
use std::time::Duration;

use crate::proc::{Proc, ProcError, Status};

/// What identifies a host, its boot and its kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name, as `hostname` prints it.
    pub hostname: String,
    /// `/etc/machine-id`; `None` when the file is missing or empty, as in many containers.
    pub machine_id: Option<String>,
    /// Random id of this boot.
    pub boot_id: String,
    /// Release of the kernel, as `uname -r`.
    pub kernel_release: String,
    /// `x86_64`.
    pub architecture: String,
}

impl Host {
    /// Reads the facts of this host.
    ///
    /// # Errors
    /// When `/proc/sys` cannot be read.
    pub fn here() -> io::Result<Self> {
        let read = |path: &str| match std::fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(bytes.trim_ascii()).into_owned()),
            Err(error) => Err(io::Error::new(error.kind(), format!("reading {path} failed: {error}"))),
        };
        Ok(Self {
            hostname: read("/proc/sys/kernel/hostname")?,
            machine_id: read("/etc/machine-id").ok().filter(|id| !id.is_empty()),
            boot_id: read("/proc/sys/kernel/random/boot_id")?,
            kernel_release: read("/proc/sys/kernel/osrelease")?,
            architecture: std::env::consts::ARCH.to_owned(),
        })
    }

    /// Major and minor number of the kernel's release; zeros when it has none.
    #[must_use]
    pub fn kernel_version(&self) -> (u32, u32) {
        let mut numbers =
            self.kernel_release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// Time since boot, suspended time included, to a hundredth of a second.
///
/// # Errors
/// When `/proc/uptime` cannot be read.
pub fn uptime() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let seconds = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "reading /proc/uptime failed: no number"))
}

/// Capabilities that decide what a checkpoint or a resume may do. The numbers are the kernel's `CAP_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Send signals to anyone.
    Kill = 5,
    /// Become any group.
    SetGid = 6,
    /// Become any user.
    SetUid = 7,
    /// Lock memory beyond the limit.
    IpcLock = 14,
    /// `chroot`.
    SysChroot = 18,
    /// Trace any process.
    SysPtrace = 19,
    /// Nearly everything else.
    SysAdmin = 21,
    /// Real-time scheduling, lower nice values, timer slack of others.
    SysNice = 23,
    /// Raise hard limits, `PR_SET_MM`.
    SysResource = 24,
    /// Set ids of new processes, open `map_files`, set the executable link (Linux 5.9).
    CheckpointRestore = 40,
}

/// A set of capabilities, bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(pub u64);

impl CapabilitySet {
    /// Our own effective capabilities.
    ///
    /// # Errors
    /// When `/proc/self/status` cannot be read.
    pub fn own_effective() -> Result<Self, ProcError> {
        Ok(Self::effective_of(&Proc::own()?.status()?))
    }

    /// The effective capabilities in a status.
    #[must_use]
    pub const fn effective_of(status: &Status) -> Self {
        Self(status.capabilities.effective)
    }

    /// Whether the capability is in the set. They count in our own user namespace only: root of a container may be nobody outside.
    #[must_use]
    pub const fn has(self, capability: Capability) -> bool {
        self.0 & (1 << (capability as u8)) != 0
    }

    /// Whether ids of new processes may be chosen and `map_files` be opened.
    #[must_use]
    pub const fn may_checkpoint_restore(self) -> bool {
        self.has(Capability::CheckpointRestore) || self.has(Capability::SysAdmin)
    }

    /// Whether every capability of `other` is in this set.
    #[must_use]
    pub const fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn here() {
        let host = Host::here().unwrap();
        assert_eq!(host.boot_id.len(), 36);
        assert!(!host.hostname.is_empty());
        assert_eq!(host.architecture, "x86_64");
        assert!(host.kernel_version() >= (4, 0));
        assert!(uptime().unwrap() > Duration::ZERO);
    }

    #[test]
    fn versions() {
        let mut host = Host::here().unwrap();
        for (release, version) in
            [("6.18.44-fc-v657", (6, 18)), ("5.4", (5, 4)), ("x", (0, 0)), ("6.1-rc3", (6, 1))]
        {
            release.clone_into(&mut host.kernel_release);
            assert_eq!(host.kernel_version(), version, "{release}");
        }
    }

    #[test]
    fn capabilities() {
        let set = CapabilitySet(1 << 21 | 1 << 40);
        assert!(set.has(Capability::SysAdmin) && set.has(Capability::CheckpointRestore));
        assert!(!set.has(Capability::SysPtrace) && set.may_checkpoint_restore());
        assert!(set.includes(CapabilitySet(1 << 21)) && !set.includes(CapabilitySet(1 << 19)));
        let own = CapabilitySet::own_effective().unwrap();
        assert!(!rustix::process::getuid().is_root() || own.has(Capability::SetUid));
    }
}
