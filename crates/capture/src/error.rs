//! What can go wrong in a capture, and what its reader can do about it.

use std::error::Error;
use std::fmt;

use rewake_linux::proc::ProcError;

/// Something about the target that cannot be captured; found without touching it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The process it was found in.
    pub pid: i32,
    /// What it is, as the target's user knows it: `descriptor 7 (socket:[4711])`.
    pub object: String,
    /// Why that cannot be captured.
    pub reason: String,
    /// What its reader can do.
    pub remedy: String,
    /// It may be over in a moment, by itself.
    pub passing: bool,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}): {}", self.pid, self.object, self.reason)
    }
}

type Source = Box<dyn Error + Send + Sync>;

/// Why there is no image. The target goes on as if nothing had happened.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// One step failed.
    #[error("{operation} failed for pid {pid} ({object}): {source}")]
    Failed {
        /// What was being done: a system call or a phase.
        operation: String,
        /// The target.
        pid: i32,
        /// What it was done to.
        object: String,
        /// The cause.
        source: Source,
        /// What its reader can do, where something can be done.
        remedy: Option<String>,
    },
    /// The target has state that cannot be captured; all that is known is listed.
    #[error("{}", refusal(.0))]
    Refused(Vec<Obstacle>),
}

fn refusal(obstacles: &[Obstacle]) -> String {
    match obstacles {
        [] => "capture refused".to_owned(),
        [only] => format!("capture refused for {only}"),
        [first, rest @ ..] => {
            let pid = first.pid;
            let mut text = format!(
                "capture refused for pid {pid} for {} reasons: ({}): {}",
                rest.len() + 1,
                first.object,
                first.reason
            );
            for other in rest {
                text.push_str(&format!("; ({}): {}", other.object, other.reason));
            }
            text
        }
    }
}

impl CaptureError {
    /// What the reader of the error can do, one line; `None` where nothing is known to help.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Failed { remedy, .. } => remedy.clone(),
            Self::Refused(obstacles) => {
                let mut remedies: Vec<&str> = Vec::new();
                for obstacle in obstacles {
                    if !obstacle.remedy.is_empty() && !remedies.contains(&obstacle.remedy.as_str()) {
                        remedies.push(&obstacle.remedy);
                    }
                }
                (!remedies.is_empty()).then(|| remedies.join("; "))
            }
        }
    }

    /// Whether all that stands in the way may be over in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Refused(obstacles) if obstacles.iter().all(|obstacle| obstacle.passing))
    }

    /// The obstacles, when there are any: a caller with more room lists them one by one.
    #[must_use]
    pub fn obstacles(&self) -> &[Obstacle] {
        match self {
            Self::Failed { .. } => &[],
            Self::Refused(obstacles) => obstacles,
        }
    }

    /// A step of the caller's that failed.
    #[must_use]
    pub fn of(operation: &str, pid: i32, object: &str, source: std::io::Error) -> Self {
        Self::failed(operation, pid, object, source)
    }

    /// The same with what its reader can do.
    #[must_use]
    pub fn with_remedy(self, remedy: &str) -> Self {
        self.advise(remedy)
    }

    /// A step that failed.
    pub(crate) fn failed(
        operation: impl Into<String>,
        pid: i32,
        object: impl Into<String>,
        source: impl Into<Source>,
    ) -> Self {
        let (operation, object) = (operation.into(), object.into());
        let (source, remedy) = match source.into().downcast::<ProcError>() {
            Ok(error) => proc_cause(*error),
            Err(source) => (source, None),
        };
        Self::Failed { operation, pid, object, source, remedy: remedy.map(str::to_owned) }
    }

    /// The same with a line of advice.
    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        match self {
            Self::Failed { operation, pid, object, source, .. } => {
                Self::Failed { operation, pid, object, source, remedy: Some(advice.into()) }
            }
            refused @ Self::Refused(_) => refused,
        }
    }
}

/// An error of `/proc` without the words that are said around it anyway, and what helps.
fn proc_cause(error: ProcError) -> (Source, Option<&'static str>) {
    match error {
        ProcError::Gone { .. } => ("no such process".into(), None),
        ProcError::Denied { source, .. } => {
            (source.into(), Some("run the command as the owner of the process, or as root"))
        }
        ProcError::Io { source, .. } => (source.into(), None),
        other => (other.into(), None),
    }
}

/// Result of a step of the capture.
pub(crate) type Result<T, E = CaptureError> = std::result::Result<T, E>;

/// Names operation, pid and object where an error arises.
pub(crate) trait During<T> {
    /// The error becomes a [`CaptureError::Failed`].
    fn during(self, operation: &str, pid: i32, object: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Source>> During<T> for std::result::Result<T, E> {
    fn during(self, operation: &str, pid: i32, object: impl fmt::Display) -> Result<T> {
        self.map_err(|error| CaptureError::failed(operation, pid, object.to_string(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacle(object: &str, remedy: &str) -> Obstacle {
        Obstacle { pid: 7, object: object.into(), reason: "no".into(), remedy: remedy.into(), passing: false }
    }

    #[test]
    fn a_failure_names_operation_pid_and_object() {
        let error = Err::<(), _>(std::io::Error::from_raw_os_error(libc::ENOSPC))
            .during("write", 12, "pages")
            .unwrap_err()
            .advise("make room");
        assert_eq!(
            error.to_string(),
            "write failed for pid 12 (pages): No space left on device (os error 28)"
        );
        assert_eq!(error.remedy().as_deref(), Some("make room"));
    }

    #[test]
    fn an_error_of_proc_is_told_once() {
        let source = std::io::Error::from_raw_os_error(libc::EACCES);
        let denied = ProcError::Denied { pid: 12, file: "maps".into(), source };
        let error = Err::<(), _>(denied).during("read maps", 12, "mappings").unwrap_err();
        assert_eq!(
            error.to_string(),
            "read maps failed for pid 12 (mappings): Permission denied (os error 13)"
        );
        assert!(error.remedy().is_some());
    }

    #[test]
    fn a_refusal_lists_every_obstacle_and_each_remedy_once() {
        let error = CaptureError::Refused(vec![
            obstacle("a", "close it"),
            obstacle("b", "close it"),
            obstacle("c", ""),
        ]);
        assert_eq!(error.to_string(), "capture refused for pid 7 for 3 reasons: (a): no; (b): no; (c): no");
        assert_eq!(error.remedy().as_deref(), Some("close it"));
        assert_eq!(error.obstacles().len(), 3);
    }
}
