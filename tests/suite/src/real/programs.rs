//! The programs: what they are given, how far they are, what they make.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{redis, trees};
use crate::account::give_to_owner_of;
use crate::random::Random;
use crate::report::Skip;
use crate::workshop::{Workshop, root};

/// Something made, and by which runs are compared.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Product {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// What tells how far a program is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Progress {
    /// The size of this file.
    Grows(&'static str),
    /// The position in this file, until the program's output has these words.
    Reads(&'static str, &'static str),
}

/// A program of somebody else's.
#[derive(Debug)]
pub(super) struct Real {
    pub(super) name: &'static str,
    /// Puts what it needs into its folder, and gives its command.
    pub(super) prepare: fn(&Workshop, &Path) -> Result<Command>,
    /// What is done when it runs, before the work that counts.
    pub(super) begin: fn(&Path) -> Result<()>,
    pub(super) progress: Progress,
    /// Whether the work of a program is done that goes on until it is told to end (SIGTERM).
    pub(super) over: Option<fn(&Path) -> bool>,
    pub(super) products: fn(&Workshop, &Path) -> Result<Vec<Product>>,
    /// The files it writes, all through.
    pub(super) written: &'static [&'static str],
    /// Takes away what a killed program left outside its folder.
    pub(super) tidy: fn(u32),
    /// Whether the long ways are for it, too.
    pub(super) thorough: bool,
    /// It does not run as root: always as an ordinary user.
    pub(super) never_root: bool,
}

/// One that computes, writes and ends.
const PLAIN: Real = Real {
    name: "",
    prepare: |_, _| bail!("no program"),
    begin: |_| Ok(()),
    progress: Progress::Grows("program.out"),
    over: None,
    products: |_, folder| files(folder, &["program.out"]),
    written: &["program.out"],
    tidy: |_| {},
    thorough: false,
    never_root: false,
};

/// All of them.
pub(super) const PROGRAMS: &[Real] = &[
    Real { name: "python3", prepare: python, thorough: true, ..PLAIN },
    Real { name: "perl", prepare: perl, ..PLAIN },
    Real { name: "sqlite3 in memory", prepare: sqlite_in_memory, ..PLAIN },
    Real {
        name: "sqlite3, a database in a file",
        prepare: sqlite_in_a_file,
        products: |_, folder| files(folder, &["program.out", "numbers.db"]),
        // And the shared index of the log, which is mapped.
        written: &["program.out", "numbers.db", "numbers.db-wal"],
        ..PLAIN
    },
    Real { name: "OpenBLAS, two threads", prepare: openblas, ..PLAIN },
    Real { name: "octave", prepare: octave, ..PLAIN },
    Real { name: "xz, two threads", prepare: xz, ..PLAIN },
    Real {
        name: "gcc's cc1",
        prepare: cc1,
        progress: Progress::Grows("large.s"),
        products: |_, folder| files(folder, &["large.s"]),
        written: &["large.s"],
        ..PLAIN
    },
    Real {
        name: "node",
        prepare: node,
        products: |_, folder| files(folder, &["program.out", "rounds.log"]),
        written: &["program.out", "rounds.log"],
        thorough: true,
        ..PLAIN
    },
    Real { name: "java", prepare: java, tidy: remove_counters, thorough: true, ..PLAIN },
    Real {
        name: "seq, awk, sort, uniq, tee and md5sum in a pipeline",
        prepare: trees::pipeline,
        progress: Progress::Grows(trees::STAGE),
        products: |_, folder| files(folder, &["program.out", "sorted"]),
        written: &["program.out", trees::STAGE],
        ..PLAIN
    },
    Real {
        name: "make -j2 of a C project",
        prepare: trees::make,
        products: |_, folder| files(folder, &["project", "result"]),
        ..PLAIN
    },
    Real { name: "python3, a pool of processes", prepare: trees::pool, thorough: true, ..PLAIN },
    Real { name: "bash with background jobs", prepare: trees::shell, thorough: true, ..PLAIN },
    Real {
        name: "redis-server with two clients",
        prepare: trees::redis,
        progress: Progress::Grows("client1.out"),
        products: |_, folder| files(folder, &["program.out", "client1.out", "client2.out"]),
        written: &["program.out", "client1.out", "client2.out"],
        thorough: true,
        ..PLAIN
    },
    Real { name: "nginx with two workers and a client", prepare: trees::nginx, thorough: true, ..PLAIN },
    Real {
        name: "PostgreSQL with a running pgbench",
        prepare: trees::postgres,
        progress: Progress::Grows("transactions"),
        thorough: true,
        never_root: true,
        ..PLAIN
    },
    Real {
        name: "redis-server, loading",
        prepare: redis::loading,
        progress: Progress::Reads(redis::BASE, "DB loaded"),
        over: Some(redis::answers),
        products: redis::answered,
        written: &[],
        ..PLAIN
    },
    Real {
        name: "redis-server, writing",
        prepare: redis::writing,
        begin: redis::fill_and_close,
        progress: Progress::Grows(redis::WRITTEN),
        over: Some(redis::is_empty_of_volatile_keys),
        products: redis::written,
        written: &[redis::WRITTEN],
        ..PLAIN
    },
];

/// The contents of files in a folder.
pub(super) fn files(folder: &Path, names: &[&str]) -> Result<Vec<Product>> {
    let read = |name: &&str| {
        let content = fs::read(folder.join(name)).with_context(|| format!("reading {name}"))?;
        Ok(Product { name: (*name).to_owned(), content })
    };
    names.iter().map(read).collect()
}

/// The path of an installed program, the system's own first.
///
/// # Errors
/// A program that is not there is a [`Skip`].
pub fn installed(name: &str) -> Result<PathBuf> {
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let folders = ["/usr/bin", "/bin"].iter().map(PathBuf::from).chain(std::env::split_paths(&searched));
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Skip(format!("{name} is not installed")).into())
}

/// A file made for the program, its own.
pub(super) fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, content).with_context(|| format!("writing {name}"))?;
    give_to_owner_of(folder, &path)
}

/// A file of `tests/programs/real`, copied to where the program can read it whoever it is.
fn put_source(folder: &Path, name: &str) -> Result<()> {
    let source = fs::read(root().join("tests/programs/real").join(name));
    put(folder, name, source.with_context(|| format!("reading {name}"))?)
}

pub(super) fn interpreter(
    workshop: &Workshop,
    folder: &Path,
    program: &str,
    words: &[&str],
) -> Result<Command> {
    let mut command = workshop.program(&installed(program)?);
    for source in words.iter().filter(|word| root().join("tests/programs/real").join(word).is_file()) {
        put_source(folder, source)?;
    }
    command.args(words);
    Ok(command)
}

fn python(workshop: &Workshop, folder: &Path) -> Result<Command> {
    interpreter(workshop, folder, "python3", &["primes.py", "700000"])
}

fn perl(workshop: &Workshop, folder: &Path) -> Result<Command> {
    interpreter(workshop, folder, "perl", &["words.pl", "36"])
}

fn octave(workshop: &Workshop, folder: &Path) -> Result<Command> {
    interpreter(workshop, folder, "octave-cli", &["--quiet", "--norc", "linear.m", "80"])
}

fn node(workshop: &Workshop, folder: &Path) -> Result<Command> {
    interpreter(workshop, folder, "node", &["churn.js", "100"])
}

/// Written line by line: the shell keeps up to 4 KiB otherwise, which is nearly all.
fn sqlite(workshop: &Workshop, arguments: &[&str]) -> Result<Command> {
    let mut command = workshop.program(&installed("stdbuf")?);
    command.arg("-oL").arg(installed("sqlite3")?).arg("-batch").args(arguments);
    Ok(command)
}

fn sqlite_in_memory(workshop: &Workshop, folder: &Path) -> Result<Command> {
    put_source(folder, "recursive.sql")?;
    sqlite(workshop, &["-init", "recursive.sql", ":memory:", "select 'done';"])
}

fn sqlite_in_a_file(workshop: &Workshop, folder: &Path) -> Result<Command> {
    let mut script = "pragma journal_mode = wal;\n\
                      create table numbers(n integer primary key, round, name);\n\
                      create index by_name on numbers(name);\n"
        .to_owned();
    for round in 1..=50 {
        writeln!(
            script,
            "begin;\n\
             insert into numbers(round, name) with recursive counter(i) as (select 1 union all select i + 1 from \
             counter where i < 3000) select {round}, printf('%08x', (i * {round} * 2654435761) % 4294967296) from \
             counter;\n\
             update numbers set name = name || 'x' where n % 53 = {round};\n\
             commit;\n\
             select {round}, count(*), max(name), sum(length(name)) from numbers;"
        )?;
    }
    put(folder, "script.sql", script)?;
    sqlite(workshop, &["-init", "script.sql", "numbers.db", "select 'done';"])
}

fn openblas(workshop: &Workshop, _: &Path) -> Result<Command> {
    let mut command = workshop.program(&workshop.compile("real/matmul", &["-lopenblas"])?);
    command.args(["640", "36"]).env("OPENBLAS_NUM_THREADS", "2");
    Ok(command)
}

fn java(workshop: &Workshop, folder: &Path) -> Result<Command> {
    let (java, javac) = (installed("java")?, installed("javac")?);
    let class = workshop.make("Churn.class", "real/Churn.java", |source, output| {
        let folder = output.parent().context("a file is in a folder")?;
        let status = Command::new(javac).arg("-d").arg(folder).arg(source).status().context("javac")?;
        if status.success() { Ok(()) } else { bail!("javac failed") }
    })?;
    put(folder, "Churn.class", fs::read(class).context("the class")?)?;
    let mut command = workshop.program(&java);
    command.args(["-XX:+UseG1GC", "-Xmx256m", "-cp", ".", "Churn", "60", "20000"]);
    Ok(command)
}

/// The Java machine keeps counters in a mapped file, always below `/tmp`, and removes it when it ends.
fn remove_counters(pid: u32) {
    let Ok(entries) = fs::read_dir("/tmp") else { return };
    let folders = entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(b"hsperfdata_"));
    for folder in folders {
        // Mostly there is none.
        let _ = fs::remove_file(folder.path().join(pid.to_string()));
    }
}

/// Text of many different words, and numbers in between.
fn xz(workshop: &Workshop, folder: &Path) -> Result<Command> {
    let xz = installed("xz")?;
    let mut random = Random::new(77);
    let words: Vec<String> = (0..3000).map(|_| format!("{:x}", random.below(1 << 28))).collect();
    let mut text = String::new();
    while text.len() < 12_000_000 {
        let choice = random.next_u64();
        let word = &words[usize::try_from(choice % 3000)?];
        writeln!(text, "{word} {} {}", words[usize::try_from((choice >> 20) % 97)?], choice >> 50)?;
    }
    put(folder, "text", text)?;
    let mut command = workshop.program(&xz);
    command.args(["-T2", "-3", "--block-size=512KiB", "--stdout", "text"]);
    Ok(command)
}

/// The compiler proper, on a file of many functions.
fn cc1(workshop: &Workshop, folder: &Path) -> Result<Command> {
    let gcc = installed("gcc")?;
    let found = Command::new(gcc).arg("-print-prog-name=cc1").output().context("asking gcc for cc1")?;
    let path = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    if !path.is_absolute() {
        return Err(Skip("gcc has no C compiler (cc1)".to_owned()).into());
    }
    put(folder, "large.c", functions(130)?)?;
    let mut command = workshop.program(&path);
    command.args(["-quiet", "-O2", "large.c", "-o", "large.s"]);
    Ok(command)
}

pub(super) fn functions(count: u64) -> Result<String> {
    let mut text = String::new();
    let mut random = Random::new(12);
    for number in 0..count {
        let [a, b, c] = [3, 17, 1000].map(|limit| random.below(limit) + 2);
        writeln!(
            text,
            "unsigned f{number}(unsigned *p, unsigned n) {{\n\
               unsigned sum = {c}, i, j, table[64];\n\
               for (i = 0; i < 64; i++) table[i] = i * {b} ^ p[i % n];\n\
               for (i = 0; i < n; i++) {{\n\
                 for (j = i; j < n; j += {a}) sum += p[j] * table[(i + j) % 64] / (p[i] % {b} + 1);\n\
                 switch (sum % 9) {{\n\
                 case 0: sum ^= p[i]; break; case 1: sum -= table[sum % 64]; break; case 2: p[i] = sum; break;\n\
                 case 3: case 4: sum = sum << {a} | sum >> (32 - {a}); break;\n\
                 case 5: table[i % 64] += {c}; break; case 7: if (sum & 4) goto out; break;\n\
                 default: sum += (unsigned)((double)p[i] * 1.{c}); }}\n\
               }}\n\
             out: return sum + table[n % 64]{call};\n\
             }}",
            call = if number > 0 { format!(" + f{}(p, n / 2 + 1)", number - 1) } else { String::new() },
        )?;
    }
    Ok(text)
}
