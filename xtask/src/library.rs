//! `cargo xtask lib`: the artifacts of libckpt in one folder.

use std::path::Path;

use anyhow::Result;

/// Builds them.
///
/// # Errors
/// Fails when a compiler or linker does.
pub fn run(folder: &Path) -> Result<bool> {
    rewake_suite::library::build(folder)?;
    println!("libckpt.a, cmain.o, libckpt.so, ckpt.h and libckpt.pc are in {}", folder.display());
    Ok(true)
}
