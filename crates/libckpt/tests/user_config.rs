//! What the build makes of `user_config.h`: the ceilings that somebody set, or a clear word of what is wrong with them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The build script, compiled by itself.
fn script(folder: &Path) -> std::path::PathBuf {
    let program = folder.join("build-script");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiled =
        Command::new(compiler).args(["--edition", "2024", "-o"]).arg(&program).arg(source).status();
    assert!(compiled.expect("a compiler").success());
    program
}

fn run(program: &Path, folder: &Path, config: &Path) -> Output {
    let mut command = Command::new(program);
    command.env("CKPT_USER_CONFIG", config).env("OUT_DIR", folder).env_remove("CARGO_FEATURE_STANDALONE");
    command.output().expect("the build script")
}

#[test]
fn ceilings_are_read_when_the_library_is_built() {
    let folder = tempfile::tempdir().expect("a folder");
    let (folder, config) = (folder.path(), folder.path().join("mine.h"));
    let program = script(folder);
    let made = || fs::read_to_string(folder.join("ceilings.rs")).expect("what it made");

    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/user_config.h");
    assert!(run(&program, folder, &own).status.success());
    assert!(
        made().contains("MAXSHM: Option<u64> = None") && made().contains("PATH: usize = 4096"),
        "{}",
        made()
    );

    let lines = "#ifndef MINE\n#define MINE\n#define CKPT_MAXSHM 7\n  #define CKPT_MAXPATHSIZE 300 /* bytes */\n#endif\n";
    fs::write(&config, lines).expect("a file");
    assert!(run(&program, folder, &config).status.success());
    assert!(
        made().contains("MAXSHM: Option<u64> = Some(7)") && made().contains("PATH: usize = 300"),
        "{}",
        made()
    );

    for (line, word) in [
        ("#define CKPT_MAXSHMM 4", "there is no ceiling CKPT_MAXSHMM"),
        ("#define CKPT_MAXPATHSIZE 100", "CKPT_MAXPATHSIZE is a number from 256 to 4096"),
        ("#define CKPT_MAXPROCESSES 0", "CKPT_MAXPROCESSES is a number from 1"),
        ("#define CKPT_MAXMSG many", "CKPT_MAXMSG is a number"),
        ("#define CKPT_MAXSEM", "CKPT_MAXSEM is a number"),
    ] {
        fs::write(&config, format!("\n{line}\n")).expect("a file");
        let outcome = run(&program, folder, &config);
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(
            !outcome.status.success() && said.contains("mine.h:2") && said.contains(word),
            "{line}: {said}"
        );
    }
    assert!(!run(&program, folder, &folder.join("none.h")).status.success());
}
