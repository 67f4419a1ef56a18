//! A [`Program`] as text, for people and for snapshot tests.

use std::fmt::Write as _;

use super::{Accept, Action, Call, DataRef, Program, Value};

impl Program {
    /// The program, one line per entry, in the manner of strace. Results of earlier entries are `$track.entry`.
    #[must_use]
    pub fn listing(&self) -> String {
        let mut out = String::new();
        for (number, track) in self.tracks().iter().enumerate() {
            let _ = writeln!(out, "{} ({} entries):", track.name, track.calls.len());
            for (index, call) in track.calls.iter().enumerate() {
                if track.on_failure == Some(index) {
                    let _ = writeln!(out, "  on failure:");
                }
                let _ = writeln!(out, "  {number}.{index:<4} {}", self.line(call));
            }
        }
        out
    }

    /// One entry as text, without its number.
    #[must_use]
    pub fn line(&self, call: &Call) -> String {
        let name = match call.action {
            Action::Call(nr) => nr.name().to_owned(),
            Action::Thread(track) => format!("clone[{}]", self.tracks()[track.0].name),
            Action::Spawn(track) => format!("clone3[{}]", self.tracks()[track.0].name),
            Action::Barrier => "barrier".to_owned(),
            Action::Leave => "leave".to_owned(),
        };
        let args: Vec<String> = call.args.iter().map(|value| self.value(*value)).collect();
        let mut line = format!("{name}({})", args.join(", "));
        match call.accept {
            Accept::Success => {}
            Accept::Any => line.push_str(" = any"),
            Accept::SuccessOr(errno) => {
                let _ = write!(line, " or errno {errno}");
            }
            Accept::Exactly(value) => {
                let _ = write!(line, " = {}", number(value));
            }
            Accept::FullTransfer => line.push_str(" = all"),
        }
        if !call.note.is_empty() {
            let _ = write!(line, "   # {}", call.note);
        }
        line
    }

    fn value(&self, value: Value) -> String {
        match value {
            Value::Const(value) => number(value),
            Value::Result(at) => format!("${}.{}", at.track.0, at.index),
            Value::Data(data) => self.data_text(data),
            Value::Word(data) => format!("*&[{:#x}]", data.offset),
        }
    }

    fn data_text(&self, data: DataRef) -> String {
        let bytes = &self.data()[data.offset..data.offset + data.len];
        match bytes.split_last() {
            Some((0, text)) if !text.is_empty() && text.iter().all(|byte| (b' '..=b'~').contains(byte)) => {
                format!("{:?}", String::from_utf8_lossy(text))
            }
            _ => format!("&[{} bytes]", data.len),
        }
    }
}

/// Small numbers and error-like negatives in decimal, the rest in hexadecimal.
fn number(value: u64) -> String {
    match value.cast_signed() {
        small @ -4096..=9999 => small.to_string(),
        _ => format!("{value:#x}"),
    }
}
