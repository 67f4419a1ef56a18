//! The progress bar, on a terminal only.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Common;

/// What takes less is done before a bar could be read.
const DELAY: Duration = Duration::from_millis(200);
/// Least time between two drawings: the program may be frozen meanwhile, and has better to do than to wait for them.
const INTERVAL: Duration = Duration::from_millis(60);

/// A bar on standard error, drawn when it is told something: there is no thread behind it, so that the caller may fork.
pub struct Bar {
    bar: ProgressBar,
    /// Not before then is it drawn again.
    due: Cell<Instant>,
    visible: bool,
}

impl Bar {
    /// A bar that begins empty; hidden where nobody would see it, or among messages that it would disturb.
    pub fn new(common: &Common, json: bool) -> Self {
        let visible = io::stderr().is_terminal() && !json && common.verbose == 0;
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style("{msg}"));
        Self { bar, due: Cell::new(Instant::now() + DELAY), visible }
    }

    /// A phase begins.
    pub fn phase(&self, name: &str) {
        tracing::info!("{name}");
        self.bar.set_message(name.to_owned());
    }

    /// Bytes done, of all.
    pub fn bytes(&self, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            self.bar.set_style(style(
                "{msg:8} [{wide_bar}] {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
            ));
            self.bar.reset();
            self.bar.set_length(total);
        }
        if self.visible && Instant::now() >= self.due.get() {
            self.due.set(Instant::now() + INTERVAL);
            if self.bar.is_hidden() {
                self.bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            self.bar.set_position(done);
        }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are right").progress_chars("=> ")
}
