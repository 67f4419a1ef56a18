//! The command line from outside: help, usage errors, exit statuses, the form of errors, and the commands that look at images.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use snapbox::cmd::{Command, OutputAssert, cargo_bin};
use snapbox::{file, str};

/// The image of format version 1 that is kept in the tests of the format.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/tests/golden/v1")
}

fn run(program: &Path, arguments: &[&str]) -> OutputAssert {
    Command::new(program).args(arguments).env_remove("REWAKE_LOG").env("COLUMNS", "100").assert()
}

fn rewake(arguments: &[&str]) -> OutputAssert {
    run(cargo_bin!("rewake"), arguments)
}

/// Runs rewake by another of its names.
fn by_name(name: &str, arguments: &[&str]) -> OutputAssert {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let link = dir.path().join(name);
    symlink(cargo_bin!("rewake"), &link).expect("a link");
    run(&link, arguments)
}

/// A store with a complete image, a damaged one, and something else.
fn store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["good", "torn"] {
        let image = dir.path().join(name);
        fs::create_dir(&image).expect("a directory");
        for file in ["records", "pages"] {
            fs::copy(golden().join(file), image.join(file)).expect("a copy");
        }
    }
    fs::write(dir.path().join("torn/pages"), b"short").expect("a write");
    fs::create_dir(dir.path().join("else")).expect("a directory");
    dir
}

#[test]
fn help_teaches() {
    rewake(&["--help"]).success().stdout_eq(file!["snapshots/rewake.txt"]);
    by_name("chkpnt", &["--help"]).success().stdout_eq(file!["snapshots/chkpnt.txt"]);
    by_name("resume", &["--help"]).success().stdout_eq(file!["snapshots/resume.txt"]);
    by_name("ckpt", &["--help"]).success().stdout_eq(file!["snapshots/ckpt.txt"]);
    rewake(&["run", "--help"]).success().stdout_eq(file!["snapshots/run.txt"]);
    rewake(&["show", "--help"]).success().stdout_eq(file!["snapshots/show.txt"]);
    rewake(&["verify", "--help"]).success().stdout_eq(file!["snapshots/verify.txt"]);
    rewake(&["list", "--help"]).success().stdout_eq(file!["snapshots/list.txt"]);
}

#[test]
fn usage_errors_have_a_status_of_their_own() {
    by_name("chkpnt", &[]).code(2).stdout_eq("");
    by_name("chkpnt", &["-p", "0"]).code(2);
    by_name("chkpnt", &["-p", "1", "--files", "4"]).code(2);
    by_name("chkpnt", &["-p", "1", "--compress", "rar"]).code(2);
    by_name("resume", &[]).code(125).stdout_eq("");
    by_name("resume", &["-d", "x", "-o", "--on-changed", "error"]).code(125);
    rewake(&["resume", "--nonsense"]).code(125);
    by_name("ckpt", &[]).code(2).stdout_eq("");
    by_name("ckpt", &["0"]).code(2);
    rewake(&["ckpt", "1", "--timeout", "0"]).code(2);
    rewake(&["run", "--preload"]).code(125);
    rewake(&["run", "--", "true"]).code(125);
    rewake(&["save", "--nonsense"]).code(2);
    rewake(&["nonsense"]).code(2);
    rewake(&[]).code(2);
    by_name("resume", &["--version"]).success();
}

#[test]
fn what_comes_later_is_refused_with_a_remedy() {
    by_name("chkpnt", &["-p", "1", "--engine", "module"]).code(1).stdout_eq("").stderr_eq(str![[r#"
chkpnt: --engine module is not supported by this version
  remedy: leave it out: --engine auto takes ptrace

"#]]);
}

#[test]
fn a_process_that_is_not_there_cannot_be_captured() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    let image_name = image.to_str().expect("a name in UTF-8");
    let outcome = by_name("chkpnt", &["-p", "2147483646", "-d", image_name]).code(1).stdout_eq("");
    let message = String::from_utf8_lossy(&outcome.get_output().stderr).into_owned();
    assert!(message.starts_with("chkpnt: ") && message.contains("2147483646"), "{message}");
    assert!(!image.exists());
}

#[test]
fn resumes_own_failures_never_look_like_the_programs() {
    by_name("resume", &["-d", "/nonexistent"]).code(125).stdout_eq("").stderr_eq(str![[r#"
resume: no such directory (/nonexistent)
  remedy: give the directory that chkpnt made, or a folder of such directories

"#]]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let empty = dir.path().to_str().expect("a name in UTF-8");
    rewake(&["resume", "-d", empty]).code(125).stderr_eq(str![[r#"
rewake resume: [..]: no complete image in this store
  remedy: rewake list shows what is wrong with each image

"#]]);
}

#[test]
fn show_tells_what_is_in_an_image() {
    let image = golden();
    let image = image.to_str().expect("a name in UTF-8");
    rewake(&["show", image]).success().stderr_eq("").stdout_eq(file!["snapshots/show-golden.txt"]);
    let outcome = rewake(&["show", image, "--json"]).success();
    let value: serde_json::Value =
        serde_json::from_slice(&outcome.get_output().stdout).expect("one JSON object");
    assert_eq!(value["processes"][0]["pid"], 4711);
    assert_eq!(value["processes"][0]["threads"].as_array().map(Vec::len), Some(2));
    assert!(value["processes"][0]["threads"][0]["doing"].is_string());
}

#[test]
fn verify_finds_a_flipped_bit() {
    let store = store();
    let image = store.path().join("good");
    let name = image.to_str().expect("a name in UTF-8");
    rewake(&["verify", name]).success().stderr_eq("").stdout_eq(str![[r#"
OK [..]/good: [..] verified, total [..], [..] MB/s

"#]]);
    let pages = image.join("pages");
    let mut bytes = fs::read(&pages).expect("pages");
    bytes[5000] ^= 0x10;
    fs::write(&pages, bytes).expect("a write");
    rewake(&["verify", name]).code(1).stdout_eq("").stderr_eq(str![[r#"
rewake verify: image [..]/good: pages: [..]
  remedy: [..]

"#]]);
}

#[test]
fn list_marks_the_latest_and_says_why_others_cannot_be_used() {
    let store = store();
    let name = store.path().to_str().expect("a name in UTF-8");
    rewake(&["list", name]).success().stderr_eq("").stdout_eq(str![[r#"
IMAGE  STATE       CREATED                   PID  THREADS [..]SIZE  COMMAND
torn   incomplete  -                           -        - [..]
good   latest      2023-11-14 22:13:20 UTC  4711        2  [..]  program --fast

"#]]);
    let outcome = rewake(&["list", name, "--json"]).success();
    let value: serde_json::Value =
        serde_json::from_slice(&outcome.get_output().stdout).expect("one JSON object");
    assert_eq!(value["latest"], format!("{name}/good"));
    assert_eq!(value["images"].as_array().map(Vec::len), Some(2));
    rewake(&["show", name]).success();
    rewake(&["list", "/nonexistent"]).code(1).stdout_eq("").stderr_eq(str![[r#"
rewake list: no such directory (/nonexistent)
  remedy: give the directory that chkpnt made, or a folder of such directories

"#]]);
}

#[test]
fn colours_come_only_when_asked_for() {
    let plain = rewake(&["show", "/nonexistent"]).code(1);
    assert!(!plain.get_output().stderr.contains(&0x1b));
    let painted = rewake(&["show", "/nonexistent", "--color", "always"]).code(1);
    assert!(painted.get_output().stderr.contains(&0x1b));
    let help = rewake(&["save", "--help", "--color=always"]).success();
    assert!(help.get_output().stdout.contains(&0x1b));
}

#[test]
fn manual_pages_and_completions_are_generated() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let name = dir.path().to_str().expect("a name in UTF-8");
    rewake(&["generate", "man", name]).success();
    rewake(&["generate", "completions", name]).success();
    for file in ["rewake.1", "chkpnt.1", "resume.1", "rewake-show.1", "chkpnt.bash", "_resume", "rewake.fish"]
    {
        assert!(dir.path().join(file).exists(), "{file}");
    }
    assert!(!dir.path().join("rewake-generate.1").exists());
    let page = fs::read_to_string(dir.path().join("resume.1")).expect("a page");
    assert!(page.contains("EXAMPLES"), "{page}");
}
