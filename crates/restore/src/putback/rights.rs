//! Files are touched with the rights of whoever called us, not with those of our binary.

use rustix::process::{getegid, geteuid, getgid, getuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::error::PutBackError;
use crate::host;

/// All that a capability of our file is for: choosing process ids, and reading what a process has mapped.
const OF_OUR_FILE: CapabilitySet = CapabilitySet::CHECKPOINT_RESTORE;

/// Gives up, for good, every capability that our file gave us but [`OF_OUR_FILE`]: with others, files named by an image would be
/// opened with rights that the invoker has not. What is inheritable is the invoker's own and stays; ambient ones he had, the kernel
/// took away when it started us. To be called before anything is opened, while this process has one thread.
///
/// # Errors
/// When the kernel refuses it, and we still have them.
pub fn give_up_rights_of_our_file() -> std::io::Result<()> {
    if !host::is_privileged_binary() {
        return Ok(());
    }
    let have = capabilities(None)?;
    let (effective, permitted) = (have.effective & OF_OUR_FILE, have.permitted & OF_OUR_FILE);
    Ok(set_capabilities(None, CapabilitySets { effective, permitted, ..have })?)
}

/// While this lives, capabilities that came from our binary are of no effect.
#[derive(Debug)]
pub struct InvokersRights {
    before: Option<CapabilitySets>,
}

impl InvokersRights {
    /// Takes the binary's rights out of effect.
    ///
    /// # Errors
    /// When the binary is set-user-id, which nothing here is made for.
    pub fn assume() -> Result<Self, PutBackError> {
        if getuid() != geteuid() || getgid() != getegid() {
            return Err(PutBackError::SetUserId);
        }
        if !host::is_privileged_binary() {
            return Ok(Self { before: None });
        }
        let path = std::path::Path::new("/proc/self");
        let before = capabilities(None).map_err(PutBackError::io("capget", path))?;
        let without = CapabilitySets { effective: CapabilitySet::empty(), ..before };
        set_capabilities(None, without).map_err(PutBackError::io("capset", path))?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for InvokersRights {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // What is permitted may always be made effective again.
            let _ = set_capabilities(None, before);
        }
    }
}
