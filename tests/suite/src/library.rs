//! The artifacts of libckpt, built as its users get them, and what they do to a program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::workshop::{root, target};

/// Functions that programs call, functions of libc's that they find in the library instead, `main` where they have none, and the name by
/// which copies of the library know which of them acts: the rest is its own affair.
const SEEN: &[&str] = &[
    "ckpt_disable",
    "ckpt_enable",
    "ckpt_error",
    "ckpt_exclude",
    "ckpt_forget",
    "ckpt_here",
    "ckpt_include",
    "ckpt_on_checkpoint",
    "ckpt_on_resume",
    "__sysv_signal",
    "bsd_signal",
    "clock_nanosleep",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "execl",
    "execle",
    "execlp",
    "execv",
    "execve",
    "execveat",
    "execvp",
    "execvpe",
    "fexecve",
    "main",
    "msgget",
    "nanosleep",
    "poll",
    "ppoll",
    "pselect",
    "pthread_sigmask",
    "rewake_ckpt_acting",
    "semget",
    "sigaction",
    "sighold",
    "sigignore",
    "siginterrupt",
    "signal",
    "signalfd",
    "sigprocmask",
    "sigrelse",
    "sigset",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "syscall",
    "usleep",
];

/// For pkg-config; it describes the folder it is in.
const PACKAGE: &str = concat!(
    "libdir=${pcfiledir}\n",
    "includedir=${pcfiledir}\n\n",
    "Name: libckpt\n",
    "Description: Checkpoints of a program from inside, without any rights\n",
    "Version: ",
    env!("CARGO_PKG_VERSION"),
    "\n",
    "Cflags: -I${includedir}\n",
    "Libs: ${libdir}/libckpt.a ${libdir}/cmain.o -ldl -lrt\n",
);

/// Builds `libckpt.a`, `cmain.o`, `libckpt.so`, `ckpt.h` and `libckpt.pc` into a folder.
///
/// # Errors
/// Fails when a compiler or linker does.
pub fn build(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["build", "--quiet", "--release", "--package", "rewake-libckpt", "--features", "standalone"];
    run(Command::new(cargo).args(arguments).current_dir(root()))?;
    let parts = Parts { out, archive: target().join("release/libckpt.a"), seen: out.join("seen.txt") };
    fs::write(&parts.seen, SEEN.join("\n") + "\n").context("writing the list of names")?;
    let [part, tls] = ["cmain", "tls"].map(|name| out.join(format!("{name}-part.o")));
    for (name, part) in [("cmain.c", &part), ("tls.c", &tls)] {
        let source = root().join("crates/libckpt/c").join(name);
        run(Command::new("cc").args(["-O2", "-fPIC", "-c", "-o"]).arg(part).arg(source))?;
    }
    // An archive before it on the command line is not searched again: it carries all that it needs.
    let main = parts.object("cmain.o", "rewake_ckpt_part", Some(&part))?;
    let archive = out.join("libckpt.a");
    if archive.exists() {
        fs::remove_file(&archive).context("the archive of the last build")?;
    }
    // The format is said: else every plugin of the linker's is asked whether it knows the file, and one of them dies of it.
    run(Command::new("ar").args(["--target=elf64-x86-64", "rcs"]).arg(&archive).arg(&main))?;
    // From the same objects, not by rustc: that would have every program load libgcc_s as well, which takes as long as all else.
    let whole = parts.object("whole.o", "rewake_ckpt_start", None)?;
    // In as few mappings as can be: each is made at every start, and copied by every fork.
    let link =
        ["-shared", "-nostartfiles", "-Wl,-soname,libckpt.so", "-Wl,-z,relro", "-Wl,-z,noseparate-code"];
    run(Command::new("cc")
        .args(link)
        .args(["-Wl,--no-as-needed", "-o"])
        .arg(out.join("libckpt.so"))
        .args([&whole, &tls]))?;
    for file in [part, tls, whole, parts.seen] {
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    let header = root().join("crates/libckpt/include/ckpt.h");
    fs::copy(&header, out.join("ckpt.h")).context("copying ckpt.h")?;
    fs::write(out.join("libckpt.pc"), PACKAGE).context("writing libckpt.pc")?;
    Ok(())
}

/// What the artifacts are made of.
struct Parts<'a> {
    out: &'a Path,
    /// All of the library, as cargo builds it.
    archive: PathBuf,
    /// A list of the names that others see.
    seen: PathBuf,
}

impl Parts<'_> {
    /// One object with all that is needed for these names and this one. Nothing else of it meets the program's own names; and those that
    /// do give way to the program's.
    fn object(&self, name: &str, start: &str, also: Option<&Path>) -> Result<PathBuf> {
        let (whole, object) = (self.out.join(format!("{name}.whole")), self.out.join(name));
        let roots =
            SEEN.iter().filter(|name| also.is_some() || **name != "main").chain(std::iter::once(&start));
        let mut link = Command::new("ld");
        // Groups would be taken for those of other copies, or of the program's if that is in Rust too.
        // What C code of the library takes is the library's own memory.
        link.args(["malloc", "calloc", "realloc", "free"].map(|name| format!("--wrap={name}")));
        link.args(["-r", "--gc-sections", "--force-group-allocation"])
            .args(roots.flat_map(|name| ["-u", name]));
        run(link.arg("-o").arg(&whole).args(also).arg(&self.archive))?;
        let hide = format!("--keep-global-symbols={}", self.seen.display());
        run(Command::new("objcopy").args([&hide, "--strip-debug"]).arg(&whole))?;
        run(Command::new("objcopy").args(["--weaken", "--discard-all"]).arg(&whole).arg(&object))?;
        fs::remove_file(&whole).context("what it was made of")?;
        Ok(object)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("running {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

/// Another malloc, if it is installed.
#[must_use]
pub fn jemalloc() -> Option<PathBuf> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
        "/usr/lib64/libjemalloc.so.2",
        "/usr/lib/libjemalloc.so.2",
    ];
    places.map(PathBuf::from).into_iter().find(|path| path.exists())
}

/// Builds them for the tests; the folder they are in.
///
/// # Errors
/// As [`build`].
pub fn build_for_tests() -> Result<PathBuf> {
    let out = target().join("suite/library");
    build(&out)?;
    out.canonicalize().context("folder of the library")
}

/// The same, once for all tests of this process.
///
/// # Errors
/// As [`build`].
pub fn for_tests() -> Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_for_tests().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow!("building the library: {error}"))
}

/// What programs of the catalogue are not the library's business, or not yet: the beginning of their calls, and why.
const APART: &[(&str, &str)] = &[
    ("changing forks", "it has children: families are not supported from inside yet"),
    ("process_attributes untraceable", "what must not be looked into cannot be by a copy of it either"),
    ("process_settings login", "the login uid takes a right"),
    ("credentials", "credentials are those of whoever recovers it"),
    ("leader_ended", "the first thread has ended: later"),
    ("own_fs chroot", "another root directory takes a right"),
    ("own_fs thread-in-chroot", "another root directory takes a right"),
    ("seccomp", "filters of the program's own: later"),
    ("stopped", "stopped processes: later"),
    ("blocked nanosleep_null", "a direct system call begins its time anew"),
    ("blocked futex_timeout", "a direct system call begins its time anew"),
    ("blocked semtimedop", "System V semaphores: later"),
];

/// Why a program is not run with the library, if it is not.
#[must_use]
pub fn apart(call: &str) -> Option<&'static str> {
    APART.iter().find(|(begin, _)| call.starts_with(begin)).map(|(_, why)| *why)
}
