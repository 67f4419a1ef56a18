//! Holds the borders of the architecture: who may depend on whom, where `unsafe` may stand, how long a file may be.
//! Plain reading of `Cargo.toml` files and sources; what clippy holds already (length of functions, SAFETY
//! comments) is only checked to be switched on.

use std::fs;
use std::path::{Path, PathBuf};

use rewake_suite::workshop::root;

/// Folders of the source tree with code in Rust.
const FOLDERS: &[&str] = &["crates", "tests", "xtask", "fuzz"];
/// Lines a source file may have.
const LONGEST_FILE: usize = 500;
/// Lines a function may have. Clippy counts those with code, and only in the workspace; here all count, everywhere.
const LONGEST_FUNCTION: usize = 85;
/// What nobody else's machine has: places of a home or of a checkout. Examples use `/home/user` and `~`.
const MACHINE_PATHS: &[&str] =
    &["/root/", "/work/", "/tmp/w", "/tmp/t/", "CARGO_TARGET_DIR=/", ".cargo/registry"];
/// Bytes a file of `fuzz/seeds` may have.
const LARGEST_SEED: u64 = 16 << 10;
/// Where `unsafe` may stand: in the crate that talks to the kernel, in the library that lives in signal handlers, in what calls that
/// library, and where `resume`
/// passes signals on.
const UNSAFE_PLACES: &[&str] =
    &["crates/linux/", "crates/libckpt/", "crates/ckpt/", "crates/rewake/src/foreground/signals.rs"];
/// Lines before an unsafe block in which its SAFETY comment must begin.
const NEAR: usize = 12;

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable source tree").flatten() {
            let path = entry.path();
            // cargo-fuzz keeps what it makes beside the targets.
            let made = ["target", "corpus", "artifacts", "coverage"].iter().any(|name| path.ends_with(name));
            if path.is_dir() && !made {
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

/// Functions of a file that are too long: `name: lines`. A function ends where a brace closes at the depth of its first line.
fn long_functions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let depth = line.len() - code.len();
        let words: Vec<&str> = code.split(' ').collect();
        // A type `fn(...)` is no function.
        let Some(place) = words.iter().position(|word| *word == "fn") else { continue };
        if code.starts_with("//") || place > 4 || code.ends_with(';') {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(depth));
        let length = lines[first..].iter().position(|line| *line == closing).unwrap_or(0) + 1;
        if length > LONGEST_FUNCTION {
            let name = words.get(place + 1).and_then(|word| word.split(['(', '<']).next());
            found.push(format!("{}: {length} lines", name.unwrap_or("?")));
        }
    }
    found
}

#[test]
fn no_function_is_too_long() {
    let mut offences = Vec::new();
    for path in rust_files() {
        offences
            .extend(long_functions(&read(&path)).into_iter().map(|text| format!("{}: {text}", short(&path))));
    }
    fail_if_any("functions too long", &offences);
    let long = format!("impl X {{\n    fn long() {{\n{}    }}\n}}\n", "        call();\n".repeat(100));
    assert_eq!(long_functions(&long), ["long: 102 lines"], "a long one would be found");
}

/// Text files that people read: documentation, manifests, sources, programs.
fn texts() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = rust_files();
    for folder in
        [".", "docs", "tests/programs", "tests/programs/real", "fuzz", ".cargo", "crates/image/proto"]
    {
        let Ok(entries) = fs::read_dir(root().join(folder)) else { continue };
        let wanted = ["md", "toml", "c", "h", "proto", "py", "pl", "sql", "js", "m", "java"];
        let text =
            |path: &PathBuf| path.extension().is_some_and(|end| wanted.iter().any(|wanted| end == *wanted));
        files.extend(entries.flatten().map(|entry| entry.path()).filter(text));
    }
    files
}

#[test]
fn nothing_names_a_place_of_one_machine() {
    let mut offences = Vec::new();
    for path in texts().iter().filter(|path| !path.ends_with("architecture.rs")) {
        for (number, line) in read(path).lines().enumerate() {
            if MACHINE_PATHS.iter().any(|place| line.contains(place)) {
                offences.push(format!("{}:{}: {}", short(path), number + 1, line.trim()));
            }
        }
    }
    fail_if_any("places of one machine", &offences);
}

#[test]
fn seeds_of_the_fuzz_targets_are_small() {
    let mut offences = Vec::new();
    for folder in fs::read_dir(root().join("fuzz/seeds")).expect("seeds").flatten() {
        for seed in fs::read_dir(folder.path()).expect("seeds of a target").flatten() {
            let bytes = seed.metadata().expect("a seed's length").len();
            if bytes > LARGEST_SEED {
                offences.push(format!("{}: {bytes} bytes", short(&seed.path())));
            }
        }
    }
    fail_if_any("large seeds", &offences);
}

#[test]
fn fuzz_targets_hold_the_same_borders() {
    let manifest = read(&root().join("fuzz/Cargo.toml"));
    assert!(manifest.contains("unsafe_code = \"forbid\""), "unsafe code is possible in the fuzz targets");
    assert!(
        !manifest.contains("rewake-capture"),
        "the fuzz targets read images and /proc, they capture nothing"
    );
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
