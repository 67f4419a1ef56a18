//! `cargo xtask demo`: the main job, explained step by step.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rewake_suite::process::{self, PATIENCE, Running};
use rewake_suite::{real, workshop};

/// How the demo looks at the files: everything in one folder.
struct Stage {
    rewake: PathBuf,
    folder: PathBuf,
    program: PathBuf,
    arguments: Vec<PathBuf>,
    name: &'static str,
}

/// Shows a checkpoint and a resume of a real program.
///
/// # Errors
/// Fails when a step does not do what it should.
pub fn run() -> Result<bool> {
    println!("Rewake freezes a running program to disk and wakes it later. Watch it do so.\n");
    println!("1. Building the tool: cargo build --release --package rewake");
    let stage = Stage::set(workshop::build_rewake()?)?;
    process::become_subreaper()?;

    println!("2. Letting {} compute undisturbed, to know what it should write.", stage.name);
    let begun = Instant::now();
    let whole = stage.start("undisturbed")?.finish(PATIENCE)?;
    whole.expect_code(stage.name, 0)?;
    let took = begun.elapsed();
    println!("   {:.1} seconds, {} lines.", took.as_secs_f64(), whole.output.lines().count());

    println!("3. Starting it again, and waiting until it is half way.");
    let mut running = stage.start("interrupted")?;
    std::thread::sleep(took / 2);
    let result = stage.freeze_and_wake(&mut running, &whole.output);
    if matches!(running.child.try_wait(), Ok(None)) {
        running.child.kill().context("ending the program")?;
        running.child.wait().context("ending the program")?;
    }
    result?;
    println!("\nThat is all. With a program of yours (PID from `ps`):\n");
    println!("   {} save -p PID -d my-image", stage.rewake.display());
    println!("   {} resume -d my-image", stage.rewake.display());
    Ok(true)
}

impl Stage {
    fn set(rewake: PathBuf) -> Result<Self> {
        let folder = workshop::target().join("demo");
        if folder.exists() {
            fs::remove_dir_all(&folder).context("clearing the folder of the last demo")?;
        }
        fs::create_dir_all(&folder).context("making a folder for the demo")?;
        let folder = folder.canonicalize().context("folder of the demo")?;
        let programs = workshop::root().join("tests/programs");
        if let Ok(python) = real::installed("python3") {
            let arguments = vec![programs.join("real/primes.py"), PathBuf::from("900000")];
            return Ok(Stage {
                rewake,
                folder,
                program: python,
                arguments,
                name: "a Python program (primes.py)",
            });
        }
        let program = folder.join("primes");
        compile(&programs.join("real/primes.c"), &program)?;
        let arguments = vec![PathBuf::from("12000000")];
        Ok(Stage { rewake, folder, program, arguments, name: "a C program (primes.c)" })
    }

    fn start(&self, label: &str) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.folder);
        Running::start(command, &self.folder, label)
    }

    fn freeze_and_wake(&self, running: &mut Running, expected: &str) -> Result<()> {
        let (pid, image) = (running.child.id(), self.folder.join("image"));
        println!("4. Freezing it to disk and ending it: rewake save -p {pid} -d image --kill");
        let mut save = Command::new(&self.rewake);
        save.args(["save", "-p", &pid.to_string(), "--kill", "-d"]).arg(&image);
        let saved = process::run(save, &self.folder, "save")?;
        saved.expect_code("save", 0)?;
        for line in saved.output.lines().chain(saved.errors.lines()) {
            println!("   | {line}");
        }
        let status = process::wait(&mut running.child, PATIENCE).context("the program did not end")?;
        println!(
            "   Process {pid} is gone ({}); what it was lies in {}.",
            process::describe(status),
            image.display()
        );
        let lines =
            || fs::read_to_string(self.folder.join("interrupted.out")).unwrap_or_default().lines().count();
        println!("   So far it has written {} lines.", lines());

        println!(
            "5. A second passes. Its memory, its registers, its open files are on the disk, nowhere else."
        );
        std::thread::sleep(Duration::from_secs(1));

        println!("6. Waking it: rewake resume -d image");
        let mut resume = Command::new(&self.rewake);
        resume.args(["resume", "-d"]).arg(&image).current_dir(&self.folder);
        let begun = Instant::now();
        process::run(resume, &self.folder, "resume")?.expect_code("resume", 0)?;
        println!(
            "   It went on as process {pid} and ended after {:.1} seconds.",
            begun.elapsed().as_secs_f64()
        );

        println!("7. Comparing what it wrote with the undisturbed run.");
        let got = fs::read_to_string(self.folder.join("interrupted.out")).context("reading its output")?;
        ensure!(
            got == expected,
            "the outputs differ: compare undisturbed.out and interrupted.out in {}",
            self.folder.display()
        );
        println!("   {} lines, equal byte for byte. It never noticed.", lines());
        Ok(())
    }
}

fn compile(source: &Path, output: &Path) -> Result<()> {
    let status = Command::new("gcc")
        .args(["-O2", "-o"])
        .args([output, source])
        .status()
        .context("neither python3 nor gcc is installed (Debian: apt-get install python3)")?;
    ensure!(status.success(), "compiling {} failed", source.display());
    Ok(())
}
