//! Files are touched with the rights of whoever called us, not with those of our binary.

use rustix::process::{getegid, geteuid, getgid, getuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::error::PutBackError;
use crate::host;

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
