//! What an ordinary user cannot have: the tool refuses it by name, when he saves or when he resumes. Programs that cannot even set up
//! their state without a right say SKIP themselves and stand nowhere here.

/// A program whose state takes a right to bring back.
#[derive(Debug)]
pub struct Privilege {
    /// The program and its arguments, as in the catalogue.
    pub call: &'static str,
    /// What the refusal says; stands in the table, too.
    pub words: &'static str,
}

/// All of them.
pub const PRIVILEGES: &[Privilege] = &[];

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
