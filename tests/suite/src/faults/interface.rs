//! The functions of `ckpt.h`, called from C, Rust and Python: each program makes checkpoints of its own, ends, and is recovered.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::linked::{compile, folder};
use crate::library;
use crate::process;
use crate::report::{Report, Skip};
use crate::subject::Inside;
use crate::workshop::{Workshop, root, target};

/// Variants of `api.c`, and what they show.
const VARIANTS: &[(&str, &str)] = &[
    ("here", "ckpt_here returns 0 after saving, 1 after recovery"),
    ("threads", "ckpt_here in several threads at once"),
    ("exclude", "ckpt_exclude: excluded pages come back as zeros"),
    ("callbacks", "callbacks before and after ckpt_here"),
    ("signal", "callbacks when a signal asks, in the normal course of a thread"),
    ("sections", "a request in a section is served at its end"),
    ("waits", "ckpt_here waits for sections of other threads"),
    ("refused", "ckpt_here says what cannot be captured"),
    ("hidden", "System V semaphores are refused, which nothing shows from inside"),
    ("child", "a child has its own sections and no callbacks"),
];
/// How a program ends that has saved itself.
const SAVED: i32 = 3;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for (variant, what) in VARIANTS {
        report.test(&format!("libckpt: {what} (linked)"), || linked(workshop, variant));
        report.test(&format!("libckpt: {what} (preloaded, as a user)"), || preloaded(workshop, variant));
    }
    report.test("libckpt: a program that may use the library runs without it", || optional(workshop));
    report.test("libckpt: checkpoints of its own wish in a Rust program, linked", || rust(workshop, true));
    report
        .test("libckpt: checkpoints of its own wish in a Rust program, preloaded", || rust(workshop, false));
    report.test("libckpt: checkpoints of its own wish in a Python program", || python(workshop));
}

fn source() -> PathBuf {
    root().join("tests/programs/library/api.c")
}

fn linked(workshop: &Workshop, variant: &str) -> Result<()> {
    let folder = folder(workshop, &format!("api-{variant}"))?;
    let source = source();
    let line = format!(
        "gcc -O2 -Wall -Wextra -Werror -pthread -I. -o api {} libckpt.a cmain.o -ldl -lrt",
        source.display()
    );
    compile(&folder, &line)?;
    both_lives(workshop, &Inside::linked(&folder.join("api"), &folder), &folder, &[variant])
}

fn preloaded(workshop: &Workshop, variant: &str) -> Result<()> {
    let user = workshop.as_user()?;
    let folder = folder(&user, &format!("api-{variant}"))?;
    let line = format!("gcc -O2 -DCKPT_OPTIONAL -pthread -I. -o api {}", source().display());
    compile(&folder, &line)?;
    let library = library::for_tests()?.join("libckpt.so");
    let library = user.account().map_or_else(|| Ok(library.clone()), |account| account.copy(&library))?;
    both_lives(&user, &Inside::new(&library, &folder.join("api"), &folder), &folder, &[variant])
}

/// It saves itself and ends; recovered, it passes.
fn both_lives(workshop: &Workshop, inside: &Inside, folder: &Path, words: &[&str]) -> Result<()> {
    let life = |words: &[&str], name: &str, code: i32| {
        let mut command = inside.command(workshop);
        command.args(words).current_dir(folder);
        let ended = process::run(command, folder, name)?;
        let said = fs::read_to_string(folder.join("first.out")).unwrap_or_default();
        ended.expect_code(name, code).with_context(|| format!("it said {said:?}"))?;
        Ok::<_, anyhow::Error>(said)
    };
    life(words, "first", SAVED)?;
    let said = life(&["=recover"], "recovered", 0)?;
    ensure!(said.ends_with("PASS\n"), "recovered, it said {said:?}");
    Ok(())
}

fn optional(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "optional")?;
    let text = "#define CKPT_OPTIONAL\n#include <ckpt.h>\nint main(void) { return ckpt_here ? ckpt_here() + 4 : 5; }\n";
    fs::write(folder.join("optional.c"), text)?;
    compile(&folder, "gcc -O2 -I. -o optional optional.c")?;
    let program = folder.join("optional");
    process::run(Command::new(&program), &folder, "alone")?.expect_code("without the library", 5)?;
    let inside = Inside::new(&library::for_tests()?.join("libckpt.so"), &program, &folder);
    process::run(inside.command(workshop), &folder, "with")?.expect_code("with the library", 4)
}

fn rust(workshop: &Workshop, linked: bool) -> Result<()> {
    let folder = folder(workshop, if linked { "rust-linked" } else { "rust" })?;
    let library = library::for_tests()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--quiet", "--release", "--package", "rewake-ckpt"];
    let built = Command::new(cargo).args(build).current_dir(root()).status().context("cargo")?;
    ensure!(built.success(), "rewake-ckpt cannot be built");
    let program = folder.join("rounds");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "-O", "-C", "panic=abort", "-o"]).arg(&program);
    rustc.arg(root().join("crates/ckpt/examples/rounds.rs")).arg("--extern");
    rustc.arg(format!("rewake_ckpt={}", target().join("release/librewake_ckpt.rlib").display()));
    if linked {
        for file in ["libckpt.a", "cmain.o"] {
            rustc.arg("-C").arg(format!("link-arg={}", library.join(file).display()));
        }
    }
    let made = rustc.current_dir(root()).output().context("rustc")?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    if linked {
        return both_lives(workshop, &Inside::linked(&program, &folder), &folder, &[]);
    }
    process::run(Command::new(&program), &folder, "alone")?.expect_code("without the library", 4)?;
    both_lives(workshop, &Inside::new(&library.join("libckpt.so"), &program, &folder), &folder, &[])
}

fn python(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "python")?;
    // What is called so may be a script that looks for one.
    let found = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
    let found = found.map_err(|_| Skip("python3 is not installed".to_owned()))?;
    let python = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    let inside = Inside::new(&library::for_tests()?.join("libckpt.so"), &python, &folder);
    let example = root().join("docs/examples/checkpoint.py").canonicalize()?;
    both_lives(workshop, &inside, &folder, &[&example.display().to_string()])
}
