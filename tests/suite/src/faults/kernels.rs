//! Programs that wake under another kernel than they were captured under: its vdso differs. The images are changed so that their vdso
//! is one of which no function does what it should, beyond the few bytes that each begins with.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rewake_image::Image;
use rewake_image::records::vma::Backing;
use rewake_image::records::{AddressSpace, Vma};

use crate::edit;
use crate::process;
use crate::report::Report;
use crate::subject::Subject;
use crate::workshop::Workshop;

/// By chance, so many captures of so many find all threads outside of the vdso once in a thousand runs.
const ENOUGH: usize = 4;
const CAPTURES: usize = 12;
const SOON: Duration = Duration::from_secs(5);
/// Place of the instruction pointer among a thread's registers.
const RIP: usize = 16;
/// `int3`: ends the program.
const TRAP: u8 = 0xcc;
/// `SHF_EXECINSTR`.
const CODE: u64 = 4;
const PAGE: u64 = 4096;

pub(super) fn run(workshop: &Workshop, report: &mut Report) {
    report.test("resumed under another kernel, whose vdso differs", || another(workshop, other_code, &[]));
    report.test("resumed under another kernel, whose vdso has other data", || {
        another(workshop, other_data, &[])
    });
    report.test("resumed under another kernel, with its clocks kept", || {
        another(workshop, other_code, &["--clock", "keep"])
    });
    report.test("resumed under another kernel, asking for the time all the while", || asking(workshop));
    report.test("resumed under another kernel, captured again, resumed under a third", || third(workshop));
    report.test("thread inside the vdso of another kernel is refused by name", || {
        refused(workshop, "inside-the-vdso", &["vdso", "captured inside"], |image| {
            let start = vdso(memory(image)).map_or(0, |vma| vma.start);
            image.processes[0].threads[0].registers[RIP] = start + 0x800;
            other_code(image);
        })
    });
    report.test("image without the vdso of another kernel is refused by name", || {
        refused(workshop, "no-vdso", &["vdso", "does not hold its own"], |image| {
            other_code(image);
            memory(image).vdso.clear();
        })
    });
    report.test("vdso that is none, of another kernel, is refused by name", || {
        refused(workshop, "nonsense-vdso", &["vdso", "not understood"], |image| {
            memory(image).vdso[..64].fill(0);
            memory(image).vdso_crc = 1;
        })
    });
}

fn memory(image: &mut Image) -> &mut AddressSpace {
    image.processes[0].memory.get_or_insert_default()
}

fn vdso(memory: &AddressSpace) -> Option<&Vma> {
    memory.vmas.iter().find(|vma| vma.backing() == Backing::Vdso)
}

fn start(workshop: &Workshop, name: &str, kind: &str) -> Result<Subject> {
    Subject::start(&workshop.compile("vdso", &[])?, &[kind], workshop.folder(name)?)
}

fn another(workshop: &Workshop, change: fn(&mut Image), options: &[&str]) -> Result<()> {
    let mut subject = start(workshop, "another-kernel", "bridged")?;
    subject.save_and_kill(workshop)?;
    edit::image(&subject.image(), change)?;
    subject.resume_and_pass(workshop, options)?;
    process::nothing_left(&[], SOON)
}

/// A thread that asks for the time all the while is nearly always inside the vdso. Captures find it outside, if not each time.
fn asking(workshop: &Workshop) -> Result<()> {
    let mut subject = start(workshop, "asking", "asking")?;
    let mut outside = 0;
    for _ in 0..CAPTURES {
        if subject.image().exists() {
            fs::remove_dir_all(subject.image()).context("removing an image")?;
        }
        subject.save(workshop)?;
        edit::image(&subject.image(), |image| {
            let vdso = vdso(memory(image)).map_or(0..0, |vma| vma.start..vma.end);
            let mut at = image.processes[0].threads.iter().filter_map(|thread| thread.registers.get(RIP));
            outside += usize::from(!at.any(|rip| vdso.contains(rip)));
            other_code(image);
        })?;
        if outside == ENOUGH {
            subject.end();
            subject.resume_and_pass(workshop, &[])?;
            return process::nothing_left(&[], SOON);
        }
    }
    bail!("only {outside} of {CAPTURES} captures found all threads outside of the vdso")
}

/// What was woken under another kernel has a vdso elsewhere, and leads to it from the old one.
fn third(workshop: &Workshop) -> Result<()> {
    let mut subject = start(workshop, "third-kernel", "bridged-twice")?;
    subject.save_and_kill(workshop)?;
    edit::image(&subject.image(), other_code)?;
    let mut resume = subject.resume_command(workshop);
    resume.arg("--detach");
    process::run(resume, &subject.folder, "resume")?.expect_code("resume --detach", 0)?;
    fs::remove_dir_all(subject.image()).context("removing the first image")?;
    let mut save = crate::subject::save_command(workshop, subject.pid(), &subject.image());
    save.arg("--kill");
    process::run(save, &subject.folder, "save")?.expect_code("save", 0)?;
    process::nothing_left(&[], SOON)?;
    edit::image(&subject.image(), other_code)?;
    subject.resume_and_pass(workshop, &[])?;
    process::nothing_left(&[], SOON)
}

fn refused(workshop: &Workshop, name: &str, words: &[&str], change: impl FnOnce(&mut Image)) -> Result<()> {
    let mut subject = start(workshop, name, "bridged")?;
    subject.save_and_kill(workshop)?;
    edit::image(&subject.image(), change)?;
    let resumed = subject.resume(workshop)?;
    resumed.expect_code("resume", 125)?;
    for word in words {
        resumed.expect_words("resume", &[word])?;
    }
    process::nothing_left(&[], SOON)
}

/// The functions are where they were, and of no use.
fn other_code(image: &mut Image) {
    let memory = memory(image);
    for (start, end) in code_sections(&memory.vdso) {
        memory.vdso[start..end].fill(TRAP);
    }
    memory.vdso_crc = crc32c::crc32c(&memory.vdso);
}

/// As of a kernel whose vdso has other data pages.
fn other_data(image: &mut Image) {
    let memory = memory(image);
    memory.vmas.retain(|vma| vma.backing() != Backing::VvarVclock);
    for vma in memory.vmas.iter_mut().filter(|vma| vma.backing() == Backing::Vvar) {
        vma.start += PAGE;
    }
}

/// Where the sections of an ELF file that hold code begin and end.
fn code_sections(file: &[u8]) -> Vec<(usize, usize)> {
    let number = |at: usize, len: usize| {
        let bytes = file.get(at..at + len).unwrap_or_default();
        bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let size = |at, len| usize::try_from(number(at, len)).unwrap_or_default();
    let (table, count) = (size(0x28, 8), size(0x3c, 2));
    let sections = (0..count).map(|index| table + index * 64);
    let code = sections.filter(|at| number(at + 8, 8) & CODE != 0);
    code.map(|at| (size(at + 0x18, 8), size(at + 0x18, 8) + size(at + 0x20, 8))).collect()
}
