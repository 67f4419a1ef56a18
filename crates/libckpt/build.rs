//! Reads the ceilings of `user_config.h`: `#define CKPT_MAX... NUMBER`. Leads calls of `malloc` from within `libckpt.so` to the library's
//! own memory, as `cargo xtask lib` does for the archive.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// What the kernel takes, its end included.
const LONGEST_PATH: u64 = 4096;
/// Names of the ceilings, and between what they may be.
const CEILINGS: [(&str, u64, u64); 6] = [
    ("CKPT_MAXSEM", 0, u32::MAX as u64),
    ("CKPT_MAXSEMVECSIZE", 0, u32::MAX as u64),
    ("CKPT_MAXMSG", 0, u32::MAX as u64),
    ("CKPT_MAXSHM", 0, u32::MAX as u64),
    ("CKPT_MAXPROCESSES", 1, u32::MAX as u64),
    ("CKPT_MAXPATHSIZE", 256, LONGEST_PATH),
];

fn main() -> Result<(), Box<dyn Error>> {
    if env::var_os("CARGO_FEATURE_STANDALONE").is_some() {
        for name in ["malloc", "calloc", "realloc", "free"] {
            println!("cargo::rustc-cdylib-link-arg=-Wl,--wrap={name}");
        }
    }
    println!("cargo::rerun-if-env-changed=CKPT_USER_CONFIG");
    let file = env::var("CKPT_USER_CONFIG").unwrap_or_else(|_| "include/user_config.h".to_owned());
    println!("cargo::rerun-if-changed={file}");
    let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    let mut found = [None; CEILINGS.len()];
    for (at, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let (Some("#define"), Some(name)) = (words.next(), words.next()) else { continue };
        if !name.starts_with("CKPT_MAX") {
            continue;
        }
        let place = CEILINGS.iter().position(|(known, ..)| *known == name);
        let place = place.ok_or_else(|| format!("{file}:{}: there is no ceiling {name}", at + 1))?;
        let (_, least, most) = CEILINGS[place];
        let value = words.next().and_then(|word| word.parse::<u64>().ok());
        let value = value.filter(|value| (least..=most).contains(value));
        let value =
            value.ok_or_else(|| format!("{file}:{}: {name} is a number from {least} to {most}", at + 1))?;
        found[place] = Some(value);
    }
    let mut code = String::new();
    for ((name, ..), value) in CEILINGS.iter().zip(found) {
        let short = name.trim_start_matches("CKPT_");
        writeln!(code, "/// `{name}`.\npub const {short}: Option<u64> = {value:?};")?;
    }
    let path = found[CEILINGS.len() - 1].unwrap_or(LONGEST_PATH);
    writeln!(code, "/// Bytes of a path, its end included.\npub const PATH: usize = {path};")?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("ceilings.rs"), code)?;
    Ok(())
}
