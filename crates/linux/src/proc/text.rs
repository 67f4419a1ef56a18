//! Small tools for the texts of `/proc`: they are bytes, since names in them may be anything.

use std::io::BufRead;

/// What a parser expected and did not find.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

impl ParseError {
    /// `what` was expected in `text`.
    pub(crate) fn expected(what: &str, text: &[u8]) -> Self {
        let shown = &text[..text.len().min(120)];
        Self(format!("expected {what} in \"{}\"", shown.escape_ascii()))
    }
}

/// Takes the next line, without its end, off the front of `rest`; `None` at the end.
///
/// `skip_until` searches with the C library's `memchr`, which is what makes tens of megabytes of smaps cheap.
pub(crate) fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    let whole = *rest;
    let taken = rest.skip_until(b'\n').expect("a slice never fails to read");
    let line = &whole[..taken];
    Some(line.strip_suffix(b"\n").unwrap_or(line))
}

/// The lines of `text`, without their ends.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || next_line(&mut rest))
}

/// Words separated by spaces or tabs.
pub(crate) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty())
}

/// Splits `Key:\tvalue`; the value is trimmed.
pub(crate) fn key_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

/// A number that fills all of `digits` in the given base.
pub(crate) fn number<T: TryFrom<i128>>(digits: &[u8], base: u32, what: &str) -> Result<T, ParseError> {
    let text = std::str::from_utf8(digits).map_err(|_| ParseError::expected(what, digits))?;
    let value = i128::from_str_radix(text, base).map_err(|_| ParseError::expected(what, digits))?;
    T::try_from(value).map_err(|_| ParseError::expected(what, digits))
}

/// A decimal number.
pub(crate) fn decimal<T: TryFrom<i128>>(digits: &[u8], what: &str) -> Result<T, ParseError> {
    number(digits, 10, what)
}

/// A run of hexadecimal digits at the front of `rest`, which is moved behind them. Written for maps, where speed counts.
pub(crate) fn take_hex(rest: &mut &[u8], what: &str) -> Result<u64, ParseError> {
    take_digits(rest, 16, what)
}

/// A run of digits of `base` at the front of `rest`, which is moved behind them.
pub(crate) fn take_digits(rest: &mut &[u8], base: u32, what: &str) -> Result<u64, ParseError> {
    let mut value = 0u64;
    let mut length = 0;
    while let Some(digit) = rest.get(length).and_then(|&byte| char::from(byte).to_digit(base)) {
        value = value
            .checked_mul(u64::from(base))
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or_else(|| ParseError::expected(what, rest))?;
        length += 1;
    }
    if length == 0 {
        return Err(ParseError::expected(what, rest));
    }
    *rest = &rest[length..];
    Ok(value)
}

/// Moves `rest` behind `byte`, which must come next.
pub(crate) fn take_byte(rest: &mut &[u8], byte: u8) -> Result<(), ParseError> {
    match rest.split_first() {
        Some((&first, after)) if first == byte => {
            *rest = after;
            Ok(())
        }
        _ => Err(ParseError::expected(&format!("'{}'", byte.escape_ascii()), rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_words() {
        assert_eq!(lines(b"a b\n\nc").collect::<Vec<_>>(), [&b"a b"[..], b"", b"c"]);
        assert_eq!(words(b" a\t b  c").collect::<Vec<_>>(), [b"a", b"b", b"c"]);
        assert_eq!(key_value(b"Key:\t12 kB"), Some((&b"Key"[..], &b"12 kB"[..])));
        assert_eq!(key_value(b"none"), None);
    }

    #[test]
    fn numbers() {
        assert_eq!(decimal::<i32>(b"-7", "x"), Ok(-7));
        assert_eq!(decimal::<u64>(b"18446744073709551615", "x"), Ok(u64::MAX));
        assert!(decimal::<u32>(b"-7", "x").is_err());
        assert!(decimal::<u32>(b"", "x").is_err());
        let mut rest = &b"7fff-"[..];
        assert_eq!(take_hex(&mut rest, "x"), Ok(0x7fff));
        assert_eq!(rest, b"-");
        assert!(take_hex(&mut rest, "x").is_err());
        assert!(take_hex(&mut &b"10000000000000000"[..], "x").is_err());
    }
}
