//! What may be said in `.ckptrc`, one setting a line, and in the environment: understood here, without taking memory.

use core::fmt;

use rewake_capture::Compression;

/// Signals that may be chosen: the real-time ones that glibc leaves to programs. Those queue, and none is lost.
const SIGNALS: core::ops::RangeInclusive<u64> = 34..=64;
/// Most images that `keep` may name.
const MOST_KEPT: u64 = 1_000_000;
/// Longest interval, in seconds.
const LONGEST_INTERVAL: u64 = 366 * 86_400;

/// A setting, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting<'a> {
    /// Whether checkpoints are made.
    Checkpointing(bool),
    /// The store.
    Directory(&'a [u8]),
    /// Whose content goes into images.
    Level(u32),
    /// Whether each checkpoint is told on standard error.
    Verbose(bool),
    /// Seconds between two checkpoints; 0: only when asked for.
    Interval(u32),
    /// How many images are kept; 0: all.
    Keep(u32),
    /// How pages are compressed.
    Compress(Compression),
    /// Whether the program goes on while its memory is written.
    Fork(bool),
    /// The signal that asks for a checkpoint.
    Signal(u32),
}

/// The keys, as they stand in `.ckptrc`. In the environment they are `CKPT_` and the same in capitals.
pub const KEYS: [&str; 9] = [
    "checkpointing",
    "directory",
    "store_files_level",
    "verbose",
    "interval",
    "keep",
    "compress",
    "mode",
    "signal",
];

/// Why a line or a variable says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong<'a> {
    /// No such setting.
    Key(&'a [u8]),
    /// A setting with a value that it cannot have: its name, the value, what it may be.
    Value(&'a [u8], &'a [u8], &'static str),
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => {
                write!(f, "there is no setting '{}' (there are:", Plain(key))?;
                KEYS.iter().try_for_each(|key| write!(f, " {key}"))?;
                f.write_str(")")
            }
            Self::Value(key, value, wanted) => {
                write!(f, "'{}' is no value of {}: {wanted}", Plain(value), Plain(key))
            }
        }
    }
}

/// Text of somebody else's, in a message.
struct Plain<'a>(&'a [u8]);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let shown = self.0.get(..80).unwrap_or(self.0);
        let mark = |byte: &u8| if matches!(byte, 0x20..=0x7e) { char::from(*byte) } else { '?' };
        shown.iter().try_for_each(|byte| f.write_char(mark(byte)))
    }
}

/// Understands one setting. A path may be no longer than `longest` bytes, its end included.
///
/// # Errors
/// What is wrong with it.
pub fn setting<'a>(key: &'a [u8], value: &'a [u8], longest: usize) -> Result<Setting<'a>, Wrong<'a>> {
    let known = KEYS.iter().position(|known| known.as_bytes() == key).ok_or(Wrong::Key(key))?;
    let wrong = |wanted| Wrong::Value(key, value, wanted);
    let within = |range: core::ops::RangeInclusive<u64>, wanted| {
        let number = number(value).filter(|number| range.contains(number));
        number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| wrong(wanted))
    };
    let either = |no: &[u8], yes: &[u8], wanted| match value {
        value if value == yes => Ok(true),
        value if value == no => Ok(false),
        _ => Err(wrong(wanted)),
    };
    match known {
        0 => either(b"off", b"on", "it is on or off").map(Setting::Checkpointing),
        1 if value.is_empty() => Err(wrong("it is the path of a folder")),
        1 if value.contains(&0) => Err(wrong("a path has no zero bytes")),
        1 if is_quoted(value) => Err(wrong("a path is written without quotation marks")),
        1 if value.len() >= longest => Err(wrong("the path is longer than CKPT_MAXPATHSIZE")),
        1 => Ok(Setting::Directory(value)),
        2 => within(0..=3, "it is 0, 1, 2 or 3").map(Setting::Level),
        3 => either(b"off", b"on", "it is on or off").map(Setting::Verbose),
        4 => interval(value)
            .map(Setting::Interval)
            .ok_or_else(|| wrong("it is a number of s, m, h or d, as in 30s or 10m, or off")),
        5 => within(1..=MOST_KEPT, "it is a number of images from 1, or all")
            .or_else(|wrong| if value == b"all" { Ok(0) } else { Err(wrong) })
            .map(Setting::Keep),
        6 => match value {
            b"none" => Ok(Compression::None),
            b"lz4" => Ok(Compression::Lz4),
            b"zstd" => Ok(Compression::Zstd),
            _ => Err(wrong("it is zstd, lz4 or none")),
        }
        .map(Setting::Compress),
        7 => either(b"stop", b"fork", "it is stop or fork").map(Setting::Fork),
        _ => within(SIGNALS, "it is the number of a real-time signal, 34 to 64").map(Setting::Signal),
    }
}

/// As shells want it, who would take the marks away.
fn is_quoted(value: &[u8]) -> bool {
    matches!(value, [b'"', .., b'"'] | [b'\'', .., b'\''])
}

/// A comment begins the line, or follows on white space: names of folders may have a `#` in them.
fn without_comment(text: &[u8]) -> &[u8] {
    let begins = |at: &usize| text[*at] == b'#' && (*at == 0 || text[*at - 1].is_ascii_whitespace());
    let end = (0..text.len()).find(begins).unwrap_or(text.len());
    &text[..end]
}

/// The setting of one line: `key value` or `key = value`; `None` for an empty line or a comment (`#`).
#[must_use]
pub fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = without_comment(text).trim_ascii();
    if text.is_empty() {
        return None;
    }
    let end = text.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'=').unwrap_or(text.len());
    let (key, rest) = text.split_at(end);
    let rest = rest.trim_ascii_start();
    Some((key, rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii_start()))
}

/// The key of a variable of the environment, if it is one of ours; written in small letters to `room`.
#[must_use]
pub fn key_of_variable<'a>(name: &[u8], room: &'a mut [u8; 32]) -> Option<&'a [u8]> {
    let key = name.strip_prefix(b"CKPT_")?;
    let room = room.get_mut(..key.len())?;
    room.copy_from_slice(key);
    if room.iter().any(u8::is_ascii_lowercase) {
        return None;
    }
    room.make_ascii_lowercase();
    KEYS.iter().any(|known| known.as_bytes() == room).then_some(&*room)
}

/// The key that a variable was probably meant to say: its name has small letters, one letter more, less or other, or is the beginning.
/// All others that begin with `CKPT_` are somebody else's.
#[must_use]
pub fn meant(name: &[u8]) -> Option<&'static str> {
    const PREFIX: &[u8] = b"CKPT_";
    const LEAST: usize = 3;
    let mut room = [0; 32];
    if !name.get(..PREFIX.len())?.eq_ignore_ascii_case(PREFIX) {
        return None;
    }
    let rest = &name[PREFIX.len()..];
    let word = room.get_mut(..rest.len())?;
    word.copy_from_slice(rest);
    word.make_ascii_lowercase();
    let word = &*word;
    let is_meant = |key: &&str| {
        word.len() >= LEAST && (key.as_bytes().starts_with(word) || differs_little(word, key.as_bytes()))
    };
    let all_capitals = !name.iter().any(u8::is_ascii_lowercase);
    KEYS.into_iter().find(is_meant).filter(|key| !all_capitals || key.as_bytes() != word)
}

/// By no more than one letter, or two that are the other way round.
fn differs_little(one: &[u8], other: &[u8]) -> bool {
    let (short, long) = if one.len() < other.len() { (one, other) } else { (other, one) };
    let same = short.iter().zip(long).take_while(|(a, b)| a == b).count();
    let rest = (&short[same..], &long[same..]);
    match rest {
        ([], []) => true,
        ([a, b, short @ ..], [c, d, long @ ..]) if (a, b) == (d, c) && short == long => true,
        ([_, short @ ..], [_, long @ ..]) if short == long => true,
        (short, [_, long @ ..]) => short == long,
        _ => false,
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.len() < 12 && text.iter().all(u8::is_ascii_digit);
    digits.then(|| text.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Seconds of `90`, `30s`, `10m`, `2h`, `1d`; 0 of `off`.
fn interval(text: &[u8]) -> Option<u32> {
    if text == b"off" {
        return Some(0);
    }
    let (count, unit) = match text.split_last()? {
        (b's', count) => (count, 1),
        (b'm', count) => (count, 60),
        (b'h', count) => (count, 3600),
        (b'd', count) => (count, 86_400),
        _ => (text, 1),
    };
    let seconds = number(count)?.checked_mul(unit)?;
    (1..=LONGEST_INTERVAL).contains(&seconds).then(|| u32::try_from(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(text: &'a str) -> Result<Setting<'a>, Wrong<'a>> {
        let (key, value) = line(text.as_bytes()).expect("a setting");
        setting(key, value, 4096)
    }

    #[test]
    fn every_key_is_understood() {
        assert_eq!(of("checkpointing off"), Ok(Setting::Checkpointing(false)));
        assert_eq!(of(" directory = /a b/c \r"), Ok(Setting::Directory(b"/a b/c")));
        assert_eq!(of("directory=/x=y"), Ok(Setting::Directory(b"/x=y")));
        assert_eq!(of("store_files_level\t3"), Ok(Setting::Level(3)));
        assert_eq!(of("verbose on"), Ok(Setting::Verbose(true)));
        assert_eq!(of("interval 10m"), Ok(Setting::Interval(600)));
        assert_eq!(of("interval 45"), Ok(Setting::Interval(45)));
        assert_eq!(of("interval off"), Ok(Setting::Interval(0)));
        assert_eq!(of("keep 2"), Ok(Setting::Keep(2)));
        assert_eq!(of("keep all"), Ok(Setting::Keep(0)));
        assert_eq!(of("compress lz4"), Ok(Setting::Compress(Compression::Lz4)));
        assert_eq!(of("compress zstd"), Ok(Setting::Compress(Compression::Zstd)));
        assert_eq!(of("mode fork"), Ok(Setting::Fork(true)));
        assert_eq!(of("signal 64"), Ok(Setting::Signal(64)));
        assert_eq!(line(b"  # directory /x"), None);
        assert_eq!(line(b"directory /x # mine"), Some((&b"directory"[..], &b"/x"[..])));
        assert_eq!(line(b"directory /x#1"), Some((&b"directory"[..], &b"/x#1"[..])));
        assert_eq!(line(b" \r"), None);
    }

    #[test]
    fn what_cannot_be_meant_is_told() {
        for text in [
            "checkpointing yes",
            "directory",
            "store_files_level 4",
            "store_files_level",
            "verbose 1",
            "interval 0",
            "interval 10x",
            "interval 400d",
            "interval -3s",
            "keep 0",
            "compress rar",
            "directory /a\0b",
            "directory \"/a b\"",
            "directory '/a b'",
            "mode both",
            "signal 33",
            "signal 65",
            "signal 99999999999999999999999",
        ] {
            assert!(matches!(of(text), Err(Wrong::Value(..))), "{text}: {:?}", of(text));
        }
        assert_eq!(of("directori /x"), Err(Wrong::Key(b"directori")));
        let told = of("signal 9").unwrap_err().to_string();
        assert_eq!(told, "'9' is no value of signal: it is the number of a real-time signal, 34 to 64");
        assert!(matches!(setting(b"directory", &[b'x'; 10], 10), Err(Wrong::Value(..))));
    }

    #[test]
    fn what_looks_like_one_of_ours_is_told() {
        for (name, key) in [
            ("CKPT_DIRECTORI", "directory"),
            ("CKPT_DIR", "directory"),
            ("CKPT_directory", "directory"),
            ("ckpt_keep", "keep"),
            ("CKPT_KEPP", "keep"),
            ("CKPT_INTERVALL", "interval"),
            ("CKPT_INTERAVL", "interval"),
            ("CKPT_SIGNALS", "signal"),
            ("CKPT_COMPRES", "compress"),
            ("CKPT_CHECKPOINT", "checkpointing"),
        ] {
            assert_eq!(meant(name.as_bytes()), Some(key), "{name}");
        }
        for name in
            ["CKPT_KEEP", "CKPT_PATH", "CKPT_MAXSHM", "CKPT_", "CKPT_X", "CKPT", "CKPTMODE", "CKPT_FREQ"]
        {
            assert_eq!(meant(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn only_our_variables_are_looked_at() {
        let mut room = [0; 32];
        assert_eq!(key_of_variable(b"CKPT_STORE_FILES_LEVEL", &mut room), Some(&b"store_files_level"[..]));
        assert_eq!(key_of_variable(b"CKPT_directory", &mut room), None);
        assert_eq!(key_of_variable(b"CKPT_DIR", &mut room), None);
        assert_eq!(key_of_variable(&[b'C'; 100], &mut room), None);
    }
}
