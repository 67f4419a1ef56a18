//! Remedies, as users of the library know what they speak of: what is an option of a command elsewhere is a setting here.

/// Words of remedies, and what is said instead.
const INSTEAD: [(&str, &str); 3] = [
    (" with -d", " (directory in .ckptrc)"),
    ("--files ", "store_files_level "),
    ("--on-changed as-is", "resume -d DIR --on-changed as-is"),
];

/// The remedy in the library's words.
#[must_use]
pub fn here(remedy: &str) -> String {
    INSTEAD.iter().fold(remedy.to_owned(), |text, (words, instead)| text.replace(words, instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_settings() {
        assert_eq!(here("choose one with -d"), "choose one (directory in .ckptrc)");
        assert_eq!(here("made with --files 0"), "made with store_files_level 0");
        assert_eq!(here("go on: --on-changed as-is"), "go on: resume -d DIR --on-changed as-is");
        assert_eq!(here("wait"), "wait");
    }
}
