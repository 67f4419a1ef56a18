//! What an ordinary user cannot have: the tool refuses it by name, when he saves or when he resumes. Programs that cannot even set up
//! their state without a right say SKIP themselves and stand nowhere here.

/// How it shows that an ordinary user cannot have something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// The tool refuses it, with these words.
    Refusal,
    /// The program itself finds it, with these words: a limit that `docs/limits.md` tells of.
    Limit,
}

/// A program whose state takes a right to bring back.
#[derive(Debug)]
pub struct Privilege {
    /// The program and its arguments, as in the catalogue.
    pub call: &'static str,
    /// How it shows.
    pub shows: Shows,
    /// What is said; stands in the table, too.
    pub words: &'static str,
}

/// Files behind mappings alone are found through `/proc/PID/map_files`, for which it takes CAP_CHECKPOINT_RESTORE.
const ONLY_MAPPED: &str = "the deleted file may live on under another name";

/// Only CAP_SYS_ADMIN suspends seccomp.
const UNDER_SECCOMP: &str = "it runs under seccomp, and this user may not suspend that";

const fn refused(call: &'static str, words: &'static str) -> Privilege {
    Privilege { call, shows: Shows::Refusal, words }
}

/// All of them.
pub const PRIVILEGES: &[Privilege] = &[
    refused(
        "mem_shared_anon",
        "parts of this shared memory are mapped nowhere, and this user may not read them",
    ),
    refused(
        "mem_guards shared",
        "parts of this shared memory are mapped nowhere, and this user may not read them",
    ),
    refused("mem_file_truncated deleted", ONLY_MAPPED),
    refused("process_attributes untraceable", "the kernel does not let this user trace it"),
    refused("seccomp shared", UNDER_SECCOMP),
    refused("seccomp more", UNDER_SECCOMP),
    refused("seccomp own", UNDER_SECCOMP),
    refused("seccomp strict", UNDER_SECCOMP),
    refused("tree_seccomp", UNDER_SECCOMP),
    Privilege {
        call: "file_unlinked tmpfile",
        shows: Shows::Limit,
        words: "linkat: Invalid cross-device link",
    },
];

/// What is needed for this call of a program, if anything is.
#[must_use]
pub fn needed(call: &str) -> Option<&'static Privilege> {
    PRIVILEGES.iter().find(|privilege| privilege.call == call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::SECTIONS;

    #[test]
    fn each_is_in_the_catalogue() {
        let rows = || SECTIONS.iter().flat_map(|section| section.rows);
        for privilege in PRIVILEGES {
            let known = rows().flat_map(|row| row.probes).any(|probe| probe.call == privilege.call);
            assert!(known, "no program of the catalogue is called as {:?}", privilege.call);
        }
    }
}
