//! Messages for those who want to know more, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::args::Common;
use crate::output::Paint;

/// The environment variable that filters messages.
const VARIABLE: &str = "REWAKE_LOG";

/// Starts to write messages, if any are wanted. Starts no thread: the guardian is forked later.
pub fn start(common: &Common) {
    let filter = match std::env::var(VARIABLE) {
        Ok(directives) if !directives.is_empty() => EnvFilter::builder().parse_lossy(directives),
        _ => match common.verbose {
            0 => return,
            1 => EnvFilter::new("info"),
            2 => EnvFilter::new("debug"),
            _ => EnvFilter::new("trace"),
        },
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(Paint::for_stderr(common).is_on())
        .without_time()
        .init();
}
