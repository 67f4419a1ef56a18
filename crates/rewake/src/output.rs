//! Standard output and colours.

use std::io::{self, ErrorKind, IsTerminal, Write};

use clap::ColorChoice;
use serde::Serialize;

use crate::args::Common;
use crate::failure::Failure;

/// Writes text to standard output. A reader that has gone away (`| head`) is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format_args!("write failed (standard output): {error}")))
        }
        _ => Ok(()),
    }
}

/// Whether standard output is looked at by a person.
pub fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

/// One JSON object on one line.
pub fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("our own structures have string keys and finite numbers");
    format!("{text}\n")
}

/// Colours, where they are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For standard error.
    pub fn for_stderr(common: &Common) -> Self {
        Self::decide(common, io::stderr().is_terminal())
    }

    /// For standard output.
    pub fn for_stdout(common: &Common) -> Self {
        Self::decide(common, io::stdout().is_terminal())
    }

    /// None at all.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { on: false }
    }

    fn decide(common: &Common, terminal: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let on = match common.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !unwanted,
        };
        Self { on }
    }

    /// Whether there are any.
    pub fn is_on(self) -> bool {
        self.on
    }

    /// The name of a tool that failed.
    pub fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Advice.
    pub fn advice(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
