//! Who a thread is and what it may: what the image says, what `resume` has, and whether the one can be made of the other.
//!
//! An image is its owner's to edit. So nobody is given more than the *invoker* has: ids must be equal, unless he may choose them;
//! capabilities must be his own. Those that only the binary has (file capabilities) are nobody's to be given.

use std::io;

use rewake_image::records::{Process, Thread};
use rewake_linux::proc::{Capabilities, Proc};

use crate::error::RestoreError;

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
/// The secure bit of `PR_SET_KEEPCAPS`, which everybody may set.
pub const KEEP_CAPS: u32 = 1 << 4;
/// Every other secure bit locks the one below.
const LOCKS: u32 = 0xaaaa_aaaa;

/// A thread's credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    /// Real, effective, saved, file system.
    pub gids: [u32; 4],
    /// In ascending order.
    pub groups: Vec<u32>,
    /// All five sets.
    pub capabilities: Capabilities,
    /// `SECBIT_*`.
    pub securebits: u32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

impl Identity {
    /// Our own.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        let status = Proc::own().and_then(|own| own.status()).map_err(io::Error::other)?;
        let mut groups = status.groups;
        groups.sort_unstable();
        Ok(Self {
            uids: status.uids,
            gids: status.gids,
            groups,
            capabilities: status.capabilities,
            securebits: rustix::thread::capabilities_secure_bits()?.bits(),
            no_new_privs: status.no_new_privs,
        })
    }

    /// Our own, for the restore of process `pid`.
    ///
    /// # Errors
    /// As [`Identity::own`], naming the process.
    pub fn own_for(pid: i32) -> Result<Self, RestoreError> {
        let object = "our own credentials".into();
        Self::own().map_err(|source| RestoreError::System { operation: "survey", pid, object, source })
    }

    /// What a thread of the image had.
    #[must_use]
    pub fn of(process: &Process, thread: &Thread) -> Self {
        let found = thread.credentials.as_ref().or(process.credentials.as_ref());
        let credentials = found.cloned().unwrap_or_default();
        let four = |ids: &[u32]| ids.first_chunk().copied().unwrap_or_default();
        let mut groups = credentials.groups;
        groups.sort_unstable();
        Self {
            uids: four(&credentials.uids),
            gids: four(&credentials.gids),
            groups,
            capabilities: Capabilities {
                inheritable: credentials.cap_inheritable,
                permitted: credentials.cap_permitted,
                effective: credentials.cap_effective,
                bounding: credentials.cap_bounding,
                ambient: credentials.cap_ambient,
            },
            securebits: thread.securebits,
            no_new_privs: credentials.no_new_privs,
        }
    }

    /// Whether any id differs from that of `own`.
    #[must_use]
    pub fn has_other_ids(&self, own: &Self) -> bool {
        (self.uids, self.gids, &self.groups) != (own.uids, own.gids, &own.groups)
    }

    /// What a program with these credentials would have that somebody with `own` ones cannot give it; empty: it can be made.
    /// `invoker_has_ours`: our capabilities are the invoker's, not only the binary's.
    #[must_use]
    pub fn differences(&self, own: &Self, invoker_has_ours: bool) -> Vec<String> {
        let (wanted, have) = (self.capabilities, own.capabilities);
        let rights = if invoker_has_ours { have.permitted } else { 0 };
        let may = |capability: u32| rights & 1 << capability != 0;
        let mut out = Vec::new();
        if self.uids != own.uids && !may(CAP_SETUID) {
            out.push(format!("user ids {:?}, ours {:?}", self.uids, own.uids));
        }
        if self.gids != own.gids && !may(CAP_SETGID) {
            out.push(format!("group ids {:?}, ours {:?}", self.gids, own.gids));
        }
        if self.groups != own.groups && !may(CAP_SETGID) {
            out.push(format!("supplementary groups {:?}, ours {:?}", self.groups, own.groups));
        }
        if own.no_new_privs && !self.no_new_privs {
            out.push("the right to gain privileges (no_new_privs unset), which we have given up".to_owned());
        }
        let inherit = if invoker_has_ours { have.inheritable } else { 0 };
        let fewer = wanted.bounding & !have.bounding == 0 && may(CAP_SETPCAP);
        let sets = [
            (
                "inheritable",
                wanted.inheritable,
                have.inheritable,
                wanted.inheritable & !(rights | inherit) == 0,
            ),
            ("permitted", wanted.permitted, have.permitted, wanted.permitted & !rights == 0),
            ("effective", wanted.effective, have.effective, wanted.effective & !rights == 0),
            ("bounding", wanted.bounding, have.bounding, fewer || wanted.bounding == have.bounding),
            ("ambient", wanted.ambient, have.ambient, wanted.ambient & !rights == 0),
        ];
        for (name, wanted, have, _) in sets.into_iter().filter(|(_, _, _, fits)| !fits) {
            out.push(format!("{name} capabilities {wanted:#x}, ours {have:#x}"));
        }
        let changed = self.securebits ^ own.securebits;
        let locked = own.securebits & LOCKS;
        let only_keep = changed & !KEEP_CAPS == 0;
        if changed & (locked | locked >> 1) != 0 || !only_keep && !may(CAP_SETPCAP) {
            out.push(format!("secure bits {:#x}, ours {:#x}", self.securebits, own.securebits));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(permitted: u64) -> Identity {
        let capabilities = Capabilities { permitted, effective: permitted, ..Capabilities::default() };
        Identity { uids: [1000; 4], gids: [1000; 4], capabilities, ..Identity::default() }
    }

    #[test]
    fn nobody_gets_more_than_the_invoker_has() {
        let mut own = user(6);
        assert!(user(2).differences(&own, true).is_empty());
        assert!(user(0).differences(&own, false).is_empty());
        assert_eq!(user(2).differences(&own, false).len(), 2, "the binary's are not the invoker's");
        assert_eq!(user(8).differences(&own, true).len(), 2);
        own.uids[1] = 0;
        assert!(user(0).differences(&own, true)[0].starts_with("user ids"));
        own.securebits = 1;
        assert!(user(0).differences(&own, true)[1].starts_with("secure bits"));
    }

    #[test]
    fn one_who_may_become_another_may_wake_another() {
        let own = Identity { uids: [0; 4], gids: [0; 4], ..user(1 << 6 | 1 << 7 | 1 << 8) };
        let mut wanted = user(0);
        assert!(wanted.differences(&own, true).is_empty());
        assert_eq!(wanted.differences(&own, false).len(), 2, "with the binary's rights only");
        wanted.securebits = 1 | KEEP_CAPS;
        assert!(wanted.differences(&own, true).is_empty());
        assert!(wanted.differences(&Identity { securebits: 2, ..own }, true)[0].starts_with("secure bits"));
    }
}
