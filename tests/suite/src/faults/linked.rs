//! Programs that are linked with the library, by the lines that its users write: each is captured, killed and recovered.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::library;
use crate::process;
use crate::report::{Report, Skip};
use crate::subject::{Inside, Subject, save_command};
use crate::workshop::{Workshop, root};

/// What comes after the compiler and its options.
const REST: &str = "libckpt.a cmain.o -ldl -lrt";
/// How the program begins that all are made of.
const RENAMED: &str = "int ckpt_target(int argc, char **argv)";
/// Signatures of C++; all but the first have these parameters.
const CXX: &[&str] = &[
    "int main()",
    "int main(int argc, char **argv)",
    "int main(int argc, char *argv[], char **)",
    "int main(int argc, const char **argv)",
    "int main(int argc, char *const argv[])",
];
/// More a start must not take with the library, by the shortest of many, and more an image must not hold.
const START: Duration = Duration::from_millis(4);
const IMAGE: u64 = 1 << 20;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    for cc in ["cc", "gcc", "clang"] {
        report.test(&format!("libckpt: {cc} -o hello hello.c libckpt.a cmain.o -ldl -lrt"), || {
            let folder = folder(workshop, cc)?;
            write(&folder, "hello.c", RENAMED)?;
            proven(workshop, &folder, &format!("{cc} -o hello hello.c {REST}"))
        });
        report.test(&format!("libckpt: {cc} -Dmain=ckpt_target"), || {
            let folder = folder(workshop, &format!("{cc}-define"))?;
            write(&folder, "hello.c", "int main(int argc, char **argv)")?;
            proven(workshop, &folder, &format!("{cc} -Dmain=ckpt_target -o hello hello.c {REST}"))
        });
    }
    report.test("libckpt: relinking alone is enough", || {
        let folder = folder(workshop, "relinked")?;
        write(&folder, "hello.c", "int main(int argc, char **argv)")?;
        compile(&folder, "gcc -c hello.c")?;
        proven(workshop, &folder, &format!("gcc -o hello hello.o {REST}"))
    });
    for cc in ["g++", "clang++"] {
        report.test(&format!("libckpt: a main of C++ is found by what it takes ({cc})"), || {
            CXX.iter().enumerate().try_for_each(|(at, signature)| {
                let folder = folder(workshop, &format!("{cc}-{at}"))?;
                write(&folder, "hello.cc", signature)?;
                let line = format!("{cc} -O2 -Dmain=ckpt_target -o hello hello.cc {REST}");
                proven(workshop, &folder, &line).context(*signature)
            })
        });
    }
    report.test("libckpt: libckpt.pc says how to compile and link", || {
        let folder = folder(workshop, "package")?;
        write(&folder, "hello.c", &format!("#include <ckpt.h>\n{RENAMED}"))?;
        installed("pkg-config")?;
        let line = "gcc -o hello hello.c $(PKG_CONFIG_PATH=. pkg-config --cflags --libs libckpt)";
        proven(workshop, &folder, line)
    });
    report.test("libckpt: ckpt.h is understood by all dialects", || dialects(workshop));
    report.test("libckpt: linked statically it is refused with a word", || refused_static(workshop));
    report.test("libckpt: with musl it runs without checkpoints, with a word", || refused_musl(workshop));
    report.test("libckpt: two copies linked in and a third preloaded: one acts", || one_acts(workshop));
    report.test("libckpt: an image of another build is refused, one of the same build taken", || {
        builds(workshop)
    });
    report.test("libckpt: another build of a library is refused, one of the same build taken", || {
        libraries(workshop)
    });
    report.test("libckpt: without a build id the same file is taken, a newer one refused", || {
        no_build_id(workshop)
    });
    report.test("libckpt: an id that somebody gave to two programs does not make them one", || {
        given_build_id(workshop)
    });
    for sanitizer in ["address", "leak", "thread", "undefined"] {
        report.test(&format!("libckpt: gcc -fsanitize={sanitizer}"), || sanitized(workshop, sanitizer));
    }
    report.test("libckpt: what the library adds to an image", || image_size(workshop));
    report.measured("libckpt: what the library adds to a start", || start_up(workshop));
}

/// A folder with the artifacts in it.
pub(super) fn folder(workshop: &Workshop, name: &str) -> Result<PathBuf> {
    let folder = workshop.folder(&format!("linked-{name}"))?;
    let library = library::for_tests()?;
    for file in ["libckpt.a", "cmain.o", "ckpt.h", "libckpt.pc"] {
        symlink(library.join(file), folder.join(file)).context(file)?;
    }
    Ok(folder)
}

/// The program with this signature instead of its own.
fn write(folder: &Path, name: &str, signature: &str) -> Result<()> {
    let text = fs::read_to_string(root().join("tests/programs/library/hello.c"))?;
    ensure!(text.contains(RENAMED), "hello.c does not begin as it did");
    let text = text.replace(RENAMED, signature);
    let unused = "    if (argc < 1 || !argv[0])\n        return 9;\n";
    let text = if signature.contains("argc") { text } else { text.replace(unused, "") };
    fs::write(folder.join(name), text).context("writing the program")
}

fn installed(program: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().map(|_| ()).map_err(|_| Skip(format!("{program} is not installed")).into())
}

/// Carries out a line of the shell, which begins with the compiler.
pub(super) fn compile(folder: &Path, line: &str) -> Result<()> {
    installed(line.split(' ').next().unwrap_or_default())?;
    let output = Command::new("sh").args(["-c", line]).current_dir(folder).output().context("sh")?;
    ensure!(output.status.success(), "{line}:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn started(workshop: &Workshop, folder: &Path, line: &str) -> Result<(Inside, Subject)> {
    compile(folder, line)?;
    let inside = Inside::linked(&folder.join("hello"), folder);
    let subject = Subject::start_inside(&inside, workshop, &[], folder.to_owned())?;
    Ok((inside, subject))
}

fn proven(workshop: &Workshop, folder: &Path, line: &str) -> Result<()> {
    let (inside, mut subject) = started(workshop, folder, line)?;
    inside.prove(&mut subject, workshop)
}

fn dialects(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "dialects")?;
    for (compiler, standards) in [("gcc", ["c90", "c17"]), ("g++", ["c++98", "c++20"])] {
        let language = if compiler == "gcc" { "c" } else { "c++" };
        fs::write(folder.join("used.c"), "#include <ckpt.h>\nint used(void) { return ckpt_here(); }\n")?;
        for (standard, define) in standards.iter().flat_map(|one| [(one, ""), (one, "-DCKPT_OPTIONAL")]) {
            let strict = "-pedantic -Wall -Wextra -Werror -fsyntax-only -I.";
            compile(&folder, &format!("{compiler} -std={standard} {define} {strict} -x {language} used.c"))?;
        }
    }
    Ok(())
}

fn refused_static(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "static")?;
    write(&folder, "hello.c", RENAMED)?;
    for option in ["-static", "-static-pie"] {
        compile(&folder, &format!("gcc {option} -o hello hello.c {REST}"))?;
        let ended = process::run(Command::new(folder.join("hello")), &folder, "hello")?;
        ended.expect_code(option, 125)?;
        ended.expect_words(option, &["libckpt", "linked statically"])?;
    }
    Ok(())
}

fn refused_musl(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "musl")?;
    write(&folder, "hello.c", RENAMED)?;
    compile(&folder, &format!("musl-gcc -o hello hello.c {REST}"))?;
    fs::write(folder.join("go"), "")?;
    let mut hello = Command::new(folder.join("hello"));
    hello.current_dir(&folder);
    let ended = process::run(hello, &folder, "hello")?;
    ended.expect_code("with musl", 0)?;
    ended.expect_words("with musl", &["libckpt", "musl", "chkpnt"])?;
    write(&folder, "plain.c", "int main(int argc, char **argv)")?;
    compile(&folder, "musl-gcc -o plain plain.c")?;
    let mut plain = Command::new(folder.join("plain"));
    plain.current_dir(&folder).env("LD_PRELOAD", library::for_tests()?.join("libckpt.so"));
    let ended = process::run(plain, &folder, "plain")?;
    ended.expect_code("preloaded", 0)?;
    ended.expect_words("preloaded", &["libckpt", "musl", "chkpnt"])
}

/// By the marks in its memory.
fn one_acts(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "copies")?;
    write(&folder, "hello.c", &format!("#include <ckpt.h>\nint (*used)(void) = ckpt_here;\n{RENAMED}"))?;
    compile(&folder, &format!("gcc -I. -o hello hello.c {REST}"))?;
    let preloaded = library::for_tests()?.join("libckpt.so");
    let inside = Inside::new(&preloaded, &folder.join("hello"), &folder);
    let mut subject = Subject::start_inside(&inside, workshop, &[], folder)?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", subject.pid())).context("its memory")?;
    let marks = maps.lines().filter(|line| line.contains("rewake-ckpt-")).count();
    ensure!(marks == 1, "{marks} copies act:\n{maps}");
    ensure!(maps.contains("libckpt.so"), "the preloaded one is not there:\n{maps}");
    inside.prove(&mut subject, workshop)
}

/// Captures it and kills it.
fn captured(workshop: &Workshop, folder: &Path, line: &str) -> Result<(Inside, Subject)> {
    let (inside, mut subject) = started(workshop, folder, line)?;
    inside.save(&mut subject)?;
    process::signal(subject.pid(), Signal::KILL);
    subject.wait_for_end()?;
    Ok((inside, subject))
}

fn refuses(inside: &Inside, subject: &Subject, workshop: &Workshop, words: &[&str]) -> Result<()> {
    let mut command = inside.command(workshop);
    command.arg("=recover").current_dir(&subject.folder);
    let ended = process::run(command, &subject.folder, "refused")?;
    ended.expect_code("=recover", 125)?;
    ended.expect_words("=recover", words)
}

fn builds(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "builds")?;
    write(&folder, "hello.c", RENAMED)?;
    let line = format!("gcc -Wl,--build-id -o hello hello.c {REST}");
    let (inside, subject) = captured(workshop, &folder, &line)?;
    let hello = folder.join("hello");
    let before = fs::metadata(&hello)?;
    fs::remove_file(&hello)?;
    compile(&folder, &line.replace("gcc", "gcc -O2 -DOTHER"))?;
    refuses(&inside, &subject, workshop, &["another program", "build id"])?;
    fs::remove_file(&hello)?;
    compile(&folder, &line)?;
    let now = fs::metadata(&hello)?;
    ensure!(before.mtime_nsec() != now.mtime_nsec(), "it was not built again");
    inside.recover_and_pass(&subject, workshop).context("built again")
}

fn libraries(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "libraries")?;
    write(&folder, "hello.c", &format!("int number(void);\nint (*used)(void) = number;\n{RENAMED}"))?;
    fs::write(folder.join("number.c"), "int number(void) { return NUMBER; }\n")?;
    let library = |number: u32| {
        let _none_yet = fs::remove_file(folder.join("libnumber.so"));
        let line = format!("gcc -shared -fPIC -Wl,--build-id -DNUMBER={number} -o libnumber.so number.c");
        compile(&folder, &line)
    };
    library(1)?;
    let line = format!("gcc -o hello hello.c -L. -lnumber -Wl,-rpath,{} {REST}", folder.display());
    let (inside, subject) = captured(workshop, &folder, &line)?;
    library(2)?;
    refuses(&inside, &subject, workshop, &["libnumber.so", "since"])?;
    library(1)?;
    inside.recover_and_pass(&subject, workshop)
}

fn no_build_id(workshop: &Workshop) -> Result<()> {
    let folder = folder(workshop, "no-build-id")?;
    write(&folder, "hello.c", RENAMED)?;
    let line = format!("gcc -Wl,--build-id=none -o hello hello.c {REST}");
    let (inside, subject) = captured(workshop, &folder, &line)?;
    let hello = fs::File::open(folder.join("hello"))?;
    let time = hello.metadata()?.modified()?;
    hello.set_modified(time + Duration::from_secs(1))?;
    refuses(&inside, &subject, workshop, &["another program", "no build id"])?;
    hello.set_modified(time)?;
    inside.recover_and_pass(&subject, workshop)
}

/// One that is no sum of the content counts as none; of one that looks like it the size counts too.
fn given_build_id(workshop: &Workshop) -> Result<()> {
    for (id, words) in
        [("0xdeadbeef", "no build id"), ("0x0123456789012345678901234567890123456789", "same build id")]
    {
        let folder = folder(workshop, &format!("given-{}", id.len()))?;
        write(&folder, "hello.c", RENAMED)?;
        let line = format!("gcc -Wl,--build-id={id} -o hello hello.c {REST}");
        let (inside, subject) = captured(workshop, &folder, &line)?;
        let hello = folder.join("hello");
        fs::rename(&hello, folder.join("first"))?;
        write(&folder, "hello.c", &format!("char more[100000] = {{1}};\n{RENAMED}"))?;
        compile(&folder, &line)?;
        refuses(&inside, &subject, workshop, &["another program", words])?;
        fs::rename(folder.join("first"), &hello)?;
        inside.recover_and_pass(&subject, workshop).context(id)?;
    }
    Ok(())
}

/// They have a malloc of their own, and look at what the library's code does as well, as far as it calls functions of libc.
fn sanitized(workshop: &Workshop, sanitizer: &str) -> Result<()> {
    let folder = folder(workshop, &format!("sanitized-{sanitizer}"))?;
    write(&folder, "hello.c", RENAMED)?;
    fs::write(folder.join("trial.c"), "int main(void) { return 0; }\n")?;
    let option = format!("-fsanitize={sanitizer}");
    let trial = compile(&folder, &format!("gcc {option} -o trial trial.c && ./trial"));
    trial.map_err(|error| Skip(format!("no program with {option} runs here: {error}")))?;
    proven(workshop, &folder, &format!("gcc -g {option} -o hello hello.c {REST}"))
}

/// Bytes of the files in a folder.
fn bytes(folder: &Path) -> Result<u64> {
    let files = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    files.map(|file| Ok(file?.metadata()?.len())).sum()
}

fn image_size(workshop: &Workshop) -> Result<()> {
    let with = folder(workshop, "image-with")?;
    write(&with, "hello.c", RENAMED)?;
    let (inside, mut subject) = started(workshop, &with, &format!("gcc -o hello hello.c {REST}"))?;
    inside.save(&mut subject)?;
    let inside = bytes(&inside.store().join("latest"))?;
    let without = folder(workshop, "image-without")?;
    write(&without, "hello.c", "int main(int argc, char **argv)")?;
    compile(&without, "gcc -o hello hello.c")?;
    let alone = Subject::start(&without.join("hello"), &[], without.clone())?;
    let image = without.join("image");
    process::run(save_command(workshop, alone.pid(), &image), &without, "save")?.expect_code("save", 0)?;
    let outside = bytes(&image)?;
    ensure!(inside < outside + IMAGE, "{inside} bytes with the library, {outside} without");
    Ok(())
}

fn start_up(workshop: &Workshop) -> Result<String> {
    let folder = folder(workshop, "start")?;
    fs::write(folder.join("null.c"), "int main(void) { return 0; }\n")?;
    compile(&folder, "gcc -o plain null.c")?;
    compile(&folder, &format!("gcc -o linked null.c {REST}"))?;
    let preloaded = library::for_tests()?.join("libckpt.so");
    let (plain, linked) = (folder.join("plain"), folder.join("linked"));
    let mut least = [Duration::MAX; 3];
    for _ in 0..40 {
        for (way, program) in [&plain, &linked, &plain].into_iter().enumerate() {
            let mut command = Command::new(program);
            if way == 2 {
                command.env("LD_PRELOAD", &preloaded);
            }
            let begun = Instant::now();
            if !command.status().context("running it")?.success() {
                bail!("{} did not end well", program.display());
            }
            least[way] = least[way].min(begun.elapsed());
        }
    }
    let [plain, linked, preloaded] = least;
    let [a, b, c] = least.map(|time| time.as_micros());
    let text = format!("plain {a} µs, linked {b} µs, preloaded {c} µs");
    ensure!(linked.max(preloaded) < plain + START, "{text}");
    Ok(text)
}
