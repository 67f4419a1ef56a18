//! Holds the borders of the architecture: who may depend on whom, where `unsafe` may stand, how long a file may be.
//! Plain reading of `Cargo.toml` files and sources; what clippy holds already (length of functions, SAFETY
//! comments) is only checked to be switched on.

use std::fs;
use std::path::{Path, PathBuf};

use rewake_suite::workshop::root;

/// Lines a source file may have.
const LONGEST_FILE: usize = 500;
/// Where `unsafe` may stand: in the crate that talks to the kernel, and where `resume` passes signals on.
const UNSAFE_PLACES: &[&str] = &["crates/linux/", "crates/rewake/src/foreground/signals.rs"];
/// Lines before an unsafe block in which its SAFETY comment must begin.
const NEAR: usize = 12;

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["crates", "tests", "xtask"].iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable source tree").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 10, "the source tree is not where it was");
    files
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of our own crates that a crate depends on, in whatever way.
fn dependencies(krate: &str) -> Vec<String> {
    let manifest = read(&root().join(krate).join("Cargo.toml"));
    let ours = manifest.lines().filter(|line| line.starts_with("rewake-") || line.starts_with("rewake ="));
    let names = ours.map(|line| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned());
    // A crate may name itself, to switch on a feature in its own tests.
    names.filter(|name| !krate.ends_with(name.trim_start_matches("rewake-"))).collect()
}

fn fail_if_any(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n{}", offences.join("\n"));
}

#[test]
fn capture_and_restore_never_meet() {
    assert!(
        !dependencies("crates/capture").contains(&"rewake-restore".to_owned()),
        "capture depends on restore"
    );
    assert!(
        !dependencies("crates/restore").contains(&"rewake-capture".to_owned()),
        "restore depends on capture"
    );
}

#[test]
fn linux_and_image_stand_alone() {
    assert_eq!(dependencies("crates/linux"), Vec::<String>::new(), "linux depends on other crates of ours");
    assert_eq!(dependencies("crates/image"), Vec::<String>::new(), "image depends on other crates of ours");
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    let offences: Vec<String> = rust_files()
        .iter()
        .filter(|path| {
            !read(path).lines().find(|line| !line.trim().is_empty()).unwrap_or_default().starts_with("//!")
        })
        .map(|path| short(path))
        .collect();
    fail_if_any("no module documentation (//!) at the head", &offences);
}

#[test]
fn no_file_is_too_long() {
    let offences: Vec<String> = rust_files()
        .iter()
        .map(|path| (short(path), read(path).lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(path, lines)| format!("{path}: {lines} lines, {LONGEST_FILE} allowed"))
        .collect();
    fail_if_any("files too long", &offences);
}

/// Is this line of code (not of a comment or an attribute) using `unsafe`?
fn is_unsafe(line: &str) -> bool {
    let code = line.trim_start();
    let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "#[unsafe("];
    !code.starts_with("//") && !code.contains('"') && opens.iter().any(|open| code.contains(open))
}

#[test]
fn unsafe_stands_where_it_may() {
    let mut offences = Vec::new();
    for path in rust_files() {
        let (name, text) = (short(&path), read(&path));
        // An attribute of a module holds for the modules inside it too.
        let outer = path.parent().map(|folder| folder.with_extension("rs")).filter(|outer| outer.exists());
        let said = text.clone() + &outer.map(|outer| read(&outer)).unwrap_or_default();
        let dense: String = said.chars().filter(|c| !c.is_whitespace()).collect();
        if !text.lines().any(is_unsafe) {
            continue;
        }
        if !UNSAFE_PLACES.iter().any(|place| name.starts_with(place)) {
            offences.push(format!("{name}: unsafe where it may not stand"));
        }
        if !dense.contains("#![allow(unsafe_code") && !dense.contains("#![expect(unsafe_code") {
            offences.push(format!("{name}: no module-level #![allow(unsafe_code, reason = ...)]"));
        }
        if !said.contains("//! # Safety") {
            offences.push(format!("{name}: no `# Safety` section in the module documentation"));
        }
    }
    fail_if_any("unsafe code out of place", &offences);
}

#[test]
fn unsafe_blocks_say_who_guarantees_what() {
    let mut offences = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let block = is_unsafe(line) && (line.contains("unsafe {") || line.contains("unsafe impl"));
            let before = &lines[index.saturating_sub(NEAR)..=index];
            if block && !before.iter().any(|near| near.contains("SAFETY:")) {
                offences.push(format!("{}:{}", short(&path), index + 1));
            }
        }
    }
    fail_if_any("unsafe blocks without a SAFETY comment", &offences);
}

#[test]
fn lints_are_switched_on() {
    let manifest = read(&root().join("Cargo.toml"));
    for lint in
        ["unsafe_code = \"deny\"", "undocumented_unsafe_blocks = \"deny\"", "too_many_lines = \"deny\""]
    {
        assert!(manifest.contains(lint), "{lint} is missing in the root Cargo.toml");
    }
    assert!(
        read(&root().join("clippy.toml")).contains("too-many-lines-threshold = 70"),
        "functions of 70 lines at most"
    );
    for folder in ["crates", "tests", "."] {
        for entry in fs::read_dir(root().join(folder)).expect("readable source tree").flatten() {
            let manifest = entry.path().join("Cargo.toml");
            if manifest.exists() {
                assert!(
                    read(&manifest).contains("[lints]\nworkspace = true"),
                    "{}: no workspace lints",
                    short(&manifest)
                );
            }
        }
    }
}
