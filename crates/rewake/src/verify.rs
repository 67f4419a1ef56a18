//! `rewake verify`: check every byte of an image.

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use serde::Serialize;

use crate::args::Verify;
use crate::failure::Failure;
use crate::format::{milliseconds, plain, rate, size, time};
use crate::output;
use crate::place;
use crate::progress::Bar;
use crate::waiting;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    image: String,
    ok: bool,
    bytes: u64,
    memory_bytes: u64,
    total_ms: f64,
    mb_per_s: f64,
}

/// Verifies, and says that all is well.
pub fn run(arguments: &Verify) -> Result<ExitCode, Failure> {
    let dir = place::image(&arguments.dir)?;
    waiting::around_image(&dir);
    let started = Instant::now();
    let bar = Bar::new(&arguments.common, arguments.json);
    bar.phase("verify");
    let shared = Mutex::new(bar);
    let outcome = rewake_image::verify(&dir, |done, total| {
        if let Ok(bar) = shared.lock() {
            bar.bytes(done, total);
        }
    });
    if let Ok(bar) = shared.into_inner() {
        bar.clear();
    }
    let summary = outcome?;
    let elapsed = started.elapsed();
    let speed = rate(summary.bytes, elapsed);
    let text = if arguments.json {
        output::json(&Report {
            image: dir.to_string_lossy().into_owned(),
            ok: true,
            bytes: summary.bytes,
            memory_bytes: summary.memory_bytes,
            total_ms: milliseconds(elapsed),
            mb_per_s: speed,
        })
    } else {
        let name = plain(dir.as_os_str().as_encoded_bytes());
        format!("OK {name}: {} verified, total {}, {speed:.0} MB/s\n", size(summary.bytes), time(elapsed))
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
