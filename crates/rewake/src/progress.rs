//! The progress bar, on a terminal only.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Common;

/// A bar on standard error, drawn when it is told something: there is no thread behind it, so that the caller may fork.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar that begins empty; hidden where nobody would see it, or among messages that it would disturb.
    pub fn new(common: &Common, json: bool) -> Self {
        let visible = io::stderr().is_terminal() && !json && common.verbose == 0;
        let target =
            if visible { ProgressDrawTarget::stderr_with_hz(15) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(ProgressStyle::with_template("{msg}").expect("the template is right"));
        Self { bar }
    }

    /// A phase begins.
    pub fn phase(&self, name: &str) {
        tracing::info!("{name}");
        self.bar.set_message(name.to_owned());
    }

    /// Bytes done, of all.
    pub fn bytes(&self, done: u64, total: u64) {
        if self.bar.length() != Some(total) {
            let style = "{msg:12} [{bar:32}] {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
            self.bar.set_style(
                ProgressStyle::with_template(style).expect("the template is right").progress_chars("=> "),
            );
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
