//! Numbers and names as people read them.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// A size in decimal units: `512 B`, `106.2 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let (whole, tenths) = (bytes / unit, bytes % unit / (unit / 10));
            return format!("{whole}.{tenths} {name}");
        }
    }
    format!("{bytes} B")
}

/// A time with about three digits: `0.42 ms`, `12.3 ms`, `190 ms`, `12.3 s`.
pub fn time(duration: Duration) -> String {
    let ms = milliseconds(duration);
    if ms < 1.0 {
        format!("{ms:.2} ms")
    } else if ms < 100.0 {
        format!("{ms:.1} ms")
    } else if ms < 10_000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

/// Milliseconds, to the microsecond, for scripts.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Megabytes per second, to one decimal.
pub fn rate(bytes: u64, duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64().max(1e-9);
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let megabytes = bytes as f64 / 1e6;
    (megabytes / seconds * 10.0).round() / 10.0
}

/// A count with its noun: `1 thread`, `4 threads`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A moment in nanoseconds since 1970: `2026-11-22 20:31:07 UTC`.
pub fn date(unix_ns: u64) -> String {
    let seconds = unix_ns / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March end with the leap day; 400 of them have 146,097 days. 719,468 days lead from 0000-03-01 to 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on have 153 days in five.
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Text from outside (names, paths) without control characters: it may come from an image that somebody made to play with the reader's
/// terminal.
pub fn plain(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Text of ours that must stay on its line, whatever was put into it.
pub fn one_line(text: &str) -> String {
    plain(text.replace('\n', " ").trim_end().as_bytes())
}

/// A relative path so that it is seen to be one: `./image`.
pub fn dotted(path: &Path) -> PathBuf {
    match path.components().next() {
        Some(Component::Normal(_)) => Path::new(".").join(path),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal() {
        let sizes = [0, 999, 1_000, 106_240_000, 1_999_999_999, 5_000_000_000_000];
        assert_eq!(sizes.map(size), ["0 B", "999 B", "1.0 kB", "106.2 MB", "1.9 GB", "5.0 TB"]);
    }

    #[test]
    fn times_have_three_digits() {
        let times = [420, 12_345, 190_400, 9_999_000, 12_345_000].map(Duration::from_micros);
        assert_eq!(times.map(time), ["0.42 ms", "12.3 ms", "190 ms", "9999 ms", "12.3 s"]);
    }

    #[test]
    fn dates_know_leap_years() {
        let moments = [0, 951_782_399, 951_782_400, 1_709_164_800, 1_795_379_467, 4_107_542_400];
        let dates = moments.map(|seconds: u64| date(seconds * 1_000_000_000));
        let expected = [
            "1970-01-01 00:00:00 UTC",
            "2000-02-28 23:59:59 UTC",
            "2000-02-29 00:00:00 UTC",
            "2024-02-29 00:00:00 UTC",
            "2026-11-22 20:31:07 UTC",
            "2100-03-01 00:00:00 UTC",
        ];
        assert_eq!(dates, expected);
        assert!(date(u64::MAX).starts_with("2554-"));
    }

    #[test]
    fn rates_do_not_divide_by_zero() {
        assert!(rate(1, Duration::ZERO).is_finite());
        assert_eq!(rate(106_200_000, Duration::from_millis(190)).to_string(), "558.9");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(plain(b"a\x1b[2Jb\nc\xff\xc3\xa9"), "a\\u{1b}[2Jb\\nc\\xff\u{e9}");
        assert_eq!(one_line("a\nb\t"), "a b");
    }

    #[test]
    fn relative_paths_show_that_they_are() {
        assert_eq!(dotted(Path::new("a")), Path::new("./a"));
        assert_eq!(dotted(Path::new("/a")), Path::new("/a"));
        assert_eq!(dotted(Path::new("../a")), Path::new("../a"));
    }
}
