//! Memory that many processes share until one of them changes it: it is stored once, and shared again afterwards.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::subject::Subject;
use crate::workshop::Workshop;

const MEGABYTES: u64 = 200;
/// Of the image, and of files in it.
const MOST_MEGABYTES: f64 = 230.0;
const MOST_FILES: usize = 10;
/// Of what all together take of the host's memory, by the kernel's own account (PSS).
const MORE: f64 = 1.1;

/// What it measured, for the line of the test.
pub(super) fn run(workshop: &Workshop, processes: u32, name: &str) -> Result<String> {
    let program = workshop.compile("tree_cow", &[])?;
    let arguments = [processes.to_string(), MEGABYTES.to_string()];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut subject = Subject::start_in(workshop, &program, &arguments, workshop.folder(name)?)?;
    let pid = subject.pid();
    let before = memory_of_tree(pid);
    subject.save_and_kill(workshop)?;
    let (size, files) = size_of(&subject.image())?;
    let running = process::Running::start(subject.resume_command(workshop), &subject.folder, "resume")?;
    let told = subject.folder.join("resume.err");
    let woken = process::await_some(process::PATIENCE, || {
        fs::read_to_string(&told).ok().filter(|told| told.contains("woke "))
    });
    // In a namespace of their own they have other ids out here; its first process is another child.
    let after: f64 = process::children(running.child.id()).into_iter().map(memory_of_tree).sum();
    subject.go()?;
    let ended = running.finish(process::PATIENCE)?;
    subject.expect_pass(ended.status, &ended.errors)?;
    woken.context("it does not wake")?;
    process::nothing_left(&[], std::time::Duration::from_secs(5))?;
    ensure!(before > 100e6 && after > 100e6, "{before} and {after} bytes of memory cannot be");
    ensure!(size < MOST_MEGABYTES * 1e6 && files <= MOST_FILES, "the image: {size} bytes in {files} files");
    ensure!(after < before * MORE, "memory in use: {before} bytes before, {after} after");
    Ok(format!(
        "image {:.0} MB, memory {:.0} MB before and {:.0} MB after",
        size / 1e6,
        before / 1e6,
        after / 1e6
    ))
}

/// Bytes that all below a process, and it, take together: what several share counts once.
fn memory_of_tree(pid: u32) -> f64 {
    let own = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kilobytes = own.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).map(str::trim);
    let kilobytes =
        kilobytes.and_then(|text| text.strip_suffix(" kB")).and_then(|text| text.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1024.0 + process::children(pid).into_iter().map(memory_of_tree).sum::<f64>()
}

fn size_of(image: &Path) -> Result<(f64, usize)> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(image).context("the image")? {
        sizes.push(f64::from(u32::try_from(entry?.metadata()?.len())?));
    }
    Ok((sizes.iter().sum(), sizes.len()))
}
