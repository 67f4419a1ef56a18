//! What a program with the library inside shows to others, and how it is asked for a checkpoint: a mark in its memory map, a signal with
//! a token, and a socket whose name the token tells, where the program's copy answers.
//!
//! # Safety
//! The unsafe calls pass a `siginfo_t` of our own to the kernel, which checks the rest.

#![allow(unsafe_code, reason = "a signal with a value, see Safety above")]

/// Beginning of the mark's name; the number of the signal follows it.
pub const MARK: &str = "rewake-ckpt-";
/// How the kernel shows memory of that name: mapped from a memfd, or named.
pub const SHOWN: [&str; 2] = ["/memfd:rewake-ckpt-", "[anon:rewake-ckpt-"];

/// The signal that a mark in one line of a memory map names.
#[must_use]
pub fn signal_in(line: &str) -> Option<i32> {
    let name = line.splitn(6, ' ').nth(5)?.trim_start();
    let rest = SHOWN.iter().find_map(|shown| name.strip_prefix(shown))?;
    let digits = rest.strip_suffix(" (deleted)").or_else(|| rest.strip_suffix(']'))?;
    digits.parse().ok().filter(|signal| (1..=64).contains(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_known_by_the_name_the_kernel_shows() {
        let line = |name: &str| format!("7f0000000000-7f0000001000 ---p 00000000 00:01 4711      {name}");
        assert_eq!(signal_in(&line("/memfd:rewake-ckpt-34 (deleted)")), Some(34));
        assert_eq!(signal_in(&line("[anon:rewake-ckpt-40]")), Some(40));
        for other in
            ["", "/memfd:rewake-ckpt-65 (deleted)", "/tmp/rewake-ckpt-34", "/memfd:rewake-ckpt-34", "[heap]"]
        {
            assert_eq!(signal_in(&line(other)), None, "{other}");
        }
        assert_eq!(signal_in("7f0000000000-7f0000001000 ---p 00000000 00:00 0"), None);
    }
}
