//! Programs in a sandbox where nothing is allowed: no capability, no ptrace, no kcmp, no clone3, a root for reading only. What they have
//! is captured and recovered there as anywhere else.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Bench;
use crate::catalogue::{Probe, SECTIONS};
use crate::report::Report;
use crate::subject::{Inside, Subject};

/// Those of the catalogue that are run, by their calls: of each kind of state some.
const SANDBOXED: &[&str] = &[
    "mem_private",
    "mem_brk",
    "mem_file_private",
    "mem_file_shared",
    "mem_dlopen",
    "memfd sealed",
    "stack_grows main",
    "registers sse",
    "threads 10",
    "tls",
    "thread_attributes",
    "mutexes robust",
    "rseq",
    "blocked nanosleep",
    "blocked futex",
    "blocked read",
    "signal_actions",
    "signal_stack used",
    "itimers",
    "file_regular",
    "file_shared_position",
    "file_unlinked plain",
    "file_locks",
    "file_eventfd",
    "file_epoll plain",
    "file_epoll wait",
    "pipe_self",
    "fifo plain",
];

pub(super) fn run(bench: &Bench<'_>, report: &mut Report) {
    for call in SANDBOXED {
        let probes = SECTIONS.iter().flat_map(|section| section.rows).flat_map(|row| row.probes);
        let probe = probes.into_iter().find(|probe| probe.call == *call && probe.options.is_empty());
        report.test(&format!("{call} (in a sandbox)"), || {
            proven(bench, probe.with_context(|| format!("no program of the catalogue is called {call}"))?)
        });
    }
}

fn proven(bench: &Bench<'_>, probe: &Probe) -> Result<()> {
    let mut words = probe.call.split_whitespace();
    let program = bench.workshop.compile(words.next().context("empty call")?, probe.options)?;
    let sandbox = bench.workshop.compile("library/sandbox", &[])?;
    let folder = bench.workshop.folder(&format!("sandbox {}", probe.call))?;
    let inside = Inside::new(&bench.library, &program, &folder).within(wrapped(&sandbox, &folder));
    let mut subject =
        Subject::start_inside(&inside, bench.workshop, &words.collect::<Vec<_>>(), folder.clone())?;
    std::thread::sleep(Duration::from_millis(probe.settle));
    let result = inside.prove(&mut subject, bench.workshop);
    subject.end();
    result
}

fn wrapped(sandbox: &Path, folder: &Path) -> Vec<String> {
    [sandbox, folder].map(|path| path.display().to_string()).to_vec()
}
