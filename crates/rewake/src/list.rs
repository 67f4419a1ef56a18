//! `rewake list`: the images in a store.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rewake_image::store::{self, ImageState, StoredImage};
use serde::Serialize;

use crate::args::List;
use crate::failure::Failure;
use crate::format::{date, one_line, plain, size};
use crate::table::{Side, Table};
use crate::{output, place, waiting};

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    store: &'a Path,
    /// The image that `resume -d STORE` takes.
    latest: Option<&'a Path>,
    images: &'a [StoredImage],
}

/// Lists a store.
pub fn run(arguments: &List) -> Result<ExitCode, Failure> {
    let dir = arguments.store.as_path();
    place::existing(dir)?;
    waiting::in_store(dir);
    let images = store::list(dir)?;
    let latest: Option<PathBuf> = store::latest(dir).ok();
    let text = if arguments.json {
        output::json(&Report { store: dir, latest: latest.as_deref(), images: &images })
    } else if images.is_empty() {
        format!("no images in {}\n", plain(dir.as_os_str().as_encoded_bytes()))
    } else {
        table(&images, latest.as_deref()).text(output::to_terminal())
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(images: &[StoredImage], latest: Option<&Path>) -> Table {
    let mut table = Table::new(&[
        ("Image", Side::Left),
        ("State", Side::Left),
        ("Created", Side::Left),
        ("Pid", Side::Right),
        ("Threads", Side::Right),
        ("Size", Side::Right),
        ("Command", Side::Left),
    ]);
    for image in images {
        let name = plain(image.name.as_bytes());
        match &image.state {
            ImageState::Complete(facts) => table.row([
                name,
                if latest == Some(&image.path) { "latest" } else { "complete" }.to_owned(),
                date(facts.created_unix_ns),
                facts.pid.to_string(),
                facts.threads.to_string(),
                size(facts.bytes),
                plain(facts.command.as_bytes()),
            ]),
            ImageState::Broken { reason } => {
                let none = || "-".to_owned();
                table.row([name, "incomplete".to_owned(), none(), none(), none(), none(), one_line(reason)]);
            }
        }
    }
    table
}
