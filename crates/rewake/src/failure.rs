//! What a command says when it fails: a line of cause and a line of remedy, for each thing that stands in the way.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};

use rewake_capture::CaptureError;

use crate::args::Common;
use crate::format::one_line;
use crate::output::Paint;

/// Why a command failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Failure {
    causes: Vec<Cause>,
}

#[derive(Debug, PartialEq, Eq)]
struct Cause {
    cause: String,
    remedy: Option<String>,
}

impl Failure {
    /// A failure nobody can do anything about from here.
    pub fn new(cause: impl Display) -> Self {
        Self { causes: vec![Cause { cause: cause.to_string(), remedy: None }] }
    }

    /// A failure with a remedy, where there is one.
    pub fn with_remedy(cause: impl Display, remedy: Option<impl Display>) -> Self {
        let remedy = remedy.map(|remedy| remedy.to_string());
        Self { causes: vec![Cause { cause: cause.to_string(), remedy }] }
    }

    /// An option that this version does not have a way to honour.
    pub fn unsupported(option: &str, remedy: &str) -> Self {
        Self::with_remedy(format_args!("{option} is not supported by this version"), Some(remedy))
    }

    /// Says it on standard error.
    pub fn print(&self, tool: &str, common: &Common) {
        let mut stderr = io::stderr().lock();
        // Nobody is left to be told when this fails.
        let _ = stderr.write_all(self.text(tool, Paint::for_stderr(common)).as_bytes());
    }

    fn text(&self, tool: &str, paint: Paint) -> String {
        let mut text = String::new();
        for Cause { cause, remedy } in &self.causes {
            text.push_str(&format!("{}: {}\n", paint.error(tool), one_line(cause)));
            if let Some(remedy) = remedy {
                text.push_str(&format!("  {}: {}\n", paint.advice("remedy"), one_line(remedy)));
            }
        }
        text
    }
}

/// The message with those of its causes that it does not already contain.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let message = inner.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        source = inner.source();
    }
    text
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        if error.obstacles().is_empty() {
            return Self::with_remedy(chain(&error), error.remedy());
        }
        let causes = error.obstacles().iter().map(|obstacle| Cause {
            cause: format!("capture refused for {obstacle}"),
            remedy: (!obstacle.remedy.is_empty()).then(|| obstacle.remedy.clone()),
        });
        Self { causes: causes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use rewake_capture::Obstacle;

    use super::*;

    #[test]
    fn every_obstacle_has_its_cause_and_its_remedy() {
        let obstacle = |object: &str, remedy: &str| Obstacle {
            pid: 7,
            object: object.into(),
            reason: "cannot be\ncaptured".into(),
            remedy: remedy.into(),
            passing: false,
        };
        let error = CaptureError::Refused(vec![obstacle("descriptor 3", "close it"), obstacle("timer", "")]);
        assert_eq!(
            Failure::from(error).text("chkpnt", Paint::plain()),
            "chkpnt: capture refused for pid 7 (descriptor 3): cannot be captured\n  \
             remedy: close it\n\
             chkpnt: capture refused for pid 7 (timer): cannot be captured\n"
        );
    }
}
