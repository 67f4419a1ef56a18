//! Files that wait to be made what they were before a `resume -o` that died. Every command looks for them as it starts, and those
//! that are about an image look into that image too.

use std::io::{self, Write};
use std::path::Path;

use rewake_image::store;
use rewake_restore::putback::recover::{self, Found};
use rewake_restore::putback::{PutBackError, Undone};

use crate::failure::{Failure, chain};
use crate::format::{count, one_line};

/// More entries than this in a folder, and it is no store.
const MOST: usize = 1000;

/// Settles what waits anywhere. What cannot be settled is said, and does not keep the command from its work.
pub fn everywhere() {
    for outcome in recover::pending() {
        match outcome {
            Ok(undone) => say(&told(&undone)),
            Err(error) => complain(&error),
        }
    }
}

/// Settles what waits in an image, or fails.
pub fn of_image(dir: &Path) -> Result<(), Failure> {
    match recover::image(dir) {
        Ok(Found::Undone(undone)) => say(&told(&undone)),
        Ok(Found::Nothing | Found::Live) | Err(PutBackError::SetUserId) => {}
        Err(error) => return Err(Failure::with_remedy(chain(&error), error.remedy())),
    }
    Ok(())
}

/// Settles what waits in an image that is only looked at.
pub fn around_image(dir: &Path) {
    match recover::image(dir) {
        Ok(Found::Undone(undone)) => say(&told(&undone)),
        Ok(Found::Nothing | Found::Live) | Err(PutBackError::SetUserId) => {}
        Err(error) => complain(&error),
    }
}

/// Settles what waits in the images of a store.
pub fn in_store(dir: &Path) {
    if store::is_image(dir) { around_image(dir) } else { in_folder(dir) }
}

/// Settles what waits in the images of a folder.
pub fn in_folder(dir: &Path) {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().take(MOST) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && store::is_image(&entry.path()) {
            around_image(&entry.path());
        }
    }
}

fn told(undone: &Undone) -> String {
    let image = undone.image.display();
    let files = count(undone.files, "file is as it was", "files are as they were");
    let mut text = format!("an earlier resume of {image} did not come to its end: {files} before it");
    if let Some(kept) = &undone.kept {
        let names = undone.foreign.iter().map(|(path, how)| format!("{} ({how})", path.display()));
        let names = names.collect::<Vec<_>>().join(", ");
        let kept = kept.display();
        text.push_str(&format!(
            "; left alone, since others were there: {names}; their old bytes are kept in {kept}"
        ));
    }
    text
}

fn complain(error: &PutBackError) {
    let remedy = error.remedy().map(|remedy| format!("\n  remedy: {remedy}")).unwrap_or_default();
    say(&(one_line(&chain(error)) + &remedy));
}

fn say(text: &str) {
    // Nobody is left to be told when this fails.
    let _ = io::stderr().write_all(format!("rewake: {text}\n").as_bytes());
}
