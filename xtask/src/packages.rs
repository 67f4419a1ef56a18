//! Debian packages the tests need: installed when we may, named when we may not.

use std::path::Path;
use std::process::{Command, Stdio};

/// Something needed, the package that has it, and how to see whether it is there.
struct Need {
    package: &'static str,
    present: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need { package: "gcc", present: || runs("gcc", "--version") },
    Need { package: "g++", present: || runs("g++", "--version") },
    Need { package: "clang", present: || runs("clang", "--version") && runs("clang++", "--version") },
    Need { package: "pkg-config", present: || runs("pkg-config", "--version") },
    Need { package: "libc6-dev", present: || Path::new("/usr/include/stdio.h").exists() },
    Need {
        package: "libopenblas-dev",
        present: || compiles("#include <cblas.h>\nint main(void){return 0;}", "-lopenblas"),
    },
    Need { package: "libjemalloc2", present: || rewake_suite::library::jemalloc().is_some() },
    Need { package: "musl-tools", present: || runs("musl-gcc", "--version") },
    Need { package: "python3", present: || runs("python3", "--version") },
    Need { package: "perl", present: || runs("perl", "-v") },
    Need { package: "sqlite3", present: || runs("sqlite3", "--version") },
    Need { package: "nodejs", present: || runs("node", "--version") },
    Need { package: "octave", present: || runs("octave-cli", "--version") },
    Need {
        package: "openjdk-17-jdk-headless",
        present: || runs("java", "-version") && runs("javac", "-version"),
    },
    Need { package: "redis-server", present: || runs("redis-server", "--version") },
    Need { package: "make", present: || runs("make", "--version") },
    Need { package: "curl", present: || runs("curl", "--version") },
    Need { package: "nginx", present: || runs("/usr/sbin/nginx", "-v") },
    Need { package: "postgresql", present: || runs("pgbench", "--version") },
    Need { package: "xz-utils", present: || runs("xz", "--version") },
];

/// Installs what is missing if this is root on a Debian; otherwise says what to install. Never an error: a test
/// that lacks something says SKIPPED and why.
pub fn ensure() {
    let missing: Vec<&str> = NEEDS.iter().filter(|need| !(need.present)()).map(|need| need.package).collect();
    if missing.is_empty() {
        return;
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() || !runs("apt-get", "--version") {
        println!("Some tests will be skipped. To run them all: apt-get install {names}");
        return;
    }
    println!("Installing packages that the tests need: {names}");
    let updated = apt(&["update"]);
    let install = [&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat();
    if !(updated && apt(&install)) {
        println!("They could not be installed; tests that need them will be skipped.");
    }
}

fn apt(arguments: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    command.arg("-qq").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn compiles(source: &str, library: &str) -> bool {
    let script = "printf '%s' \"$1\" | gcc -x c - -o /dev/null \"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", source, library]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
