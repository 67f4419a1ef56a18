//! Trees of processes: a pipeline, a build, a pool of workers, a shell with jobs.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::programs::{functions, installed, interpreter, put};
use crate::workshop::Workshop;

/// What the pipeline's first stages have done so far; its result comes at the end.
pub(super) const STAGE: &str = "stage";

pub(super) fn pipeline(workshop: &Workshop, folder: &Path) -> Result<Command> {
    installed("awk")?;
    let script = "seq 1 500000 \
                  | awk '{ print ($1 * 48271) % 65521; if ($1 % 2500 == 0) { print $1 >\"stage\"; fflush(\"stage\") } }' \
                  | sort -n | uniq -c | tee sorted | md5sum";
    put(folder, "pipeline.sh", script)?;
    let mut command = workshop.program(&installed("bash")?);
    command.arg("pipeline.sh");
    Ok(command)
}

/// A C project of some files and a library. What a crash leaves half written must not be taken for made, and a name that is taken away
/// when the file is closed (the compiler's own temporary files, a rename) is not in the image: so the last step of each can be done twice.
pub(super) fn make(workshop: &Workshop, folder: &Path) -> Result<Command> {
    const FILES: u64 = 40;
    let make = installed("make")?;
    installed("gcc")?;
    let mut objects = String::new();
    for number in 0..FILES {
        let text = functions(6)?
            .replace("unsigned f", &format!("static unsigned f{number}_"))
            .replace("+ f", &format!("+ f{number}_"));
        let text = format!("{text}unsigned part{number}(unsigned *p) {{ return f{number}_5(p, 7); }}\n");
        put(folder, &format!("part{number}.c"), text)?;
        write!(objects, " part{number}.o")?;
    }
    let calls: Vec<String> = (0..FILES).map(|number| format!("part{number}(p)")).collect();
    let declarations: String =
        (0..FILES).map(|number| format!("unsigned part{number}(unsigned *);\n")).collect();
    let main = format!(
        "#include <stdio.h>\n{declarations}int main(void) {{ unsigned p[9] = {{3, 1, 4, 1, 5, 9, 2, 6, 5}}; printf(\"%u\\n\", {}); }}\n",
        calls.join(" + ")
    );
    put(folder, "main.c", main)?;
    let rules = format!(
        "project: main.o libparts.a\n\tgcc -o $@ main.o libparts.a\n\t./project >result\n\
         libparts.a:{objects}\n\tar rcsD $@ $^\n\
         %.o: %.c\n\tgcc -pipe -O2 -c -o $@.part $< && ln -f $@.part $@\n"
    );
    put(folder, "Makefile", rules)?;
    let mut command = workshop.program(&make);
    command.args(["-j2", "--no-print-directory"]);
    Ok(command)
}

pub(super) fn pool(workshop: &Workshop, folder: &Path) -> Result<Command> {
    interpreter(workshop, folder, "python3", &["pool.py", "1200"])
}

pub(super) fn shell(workshop: &Workshop, folder: &Path) -> Result<Command> {
    interpreter(workshop, folder, "bash", &["jobs.sh", "60"])
}

pub(super) fn redis(workshop: &Workshop, folder: &Path) -> Result<Command> {
    installed("redis-server")?;
    interpreter(workshop, folder, "bash", &["redis.sh", "40000"])
}

pub(super) fn nginx(workshop: &Workshop, folder: &Path) -> Result<Command> {
    if !Path::new("/usr/sbin/nginx").is_file() {
        installed("nginx")?;
    }
    installed("curl")?;
    interpreter(workshop, folder, "bash", &["nginx.sh", "150"])
}

pub(super) fn postgres(workshop: &Workshop, folder: &Path) -> Result<Command> {
    installed("pgbench")?;
    interpreter(workshop, folder, "bash", &["postgres.sh", "2000"])
}
