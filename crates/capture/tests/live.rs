//! Captures a live program of four threads and looks at the image; the program must notice nothing.
//!
//! Without the usual harness: a capture forks, and the harness has threads.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rewake_capture::{CaptureError, Compression, Options, Progress, Summary, capture, obstacles};
use rewake_image::records::{Extent, open_file, vma};
use rewake_image::{Image, PAGES_FILE, PageReader, verify};
use rewake_linux::fork::{self, Forked};
use rustix::process::{Signal, WaitOptions};

const PRIVATE: u64 = 8 << 20;
const SHARED: u64 = 1 << 20;
const STEP: u64 = 64 << 10;

/// The program, started and ready.
struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
    private: u64,
    shared: u64,
    file: i32,
    pipe: i32,
}

impl Target {
    fn start(program: &Path, folder: &Path) -> Self {
        let mut child = Command::new(program)
            .arg(folder.join("data"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it says something");
        let words: Vec<&str> = line.split_whitespace().collect();
        let address =
            |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("an address");
        assert_eq!(words[0], "READY");
        let (private, shared) = (address(words[1]), address(words[2]));
        let (file, pipe) = (words[3].parse().expect("a number"), words[4].parse().expect("a number"));
        Self { child, output, private, shared, file, pipe }
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a process id")
    }

    /// Lets it check itself.
    fn finish(mut self) {
        self.child.stdin.take().expect("a pipe").write_all(b"go on\n").expect("it listens");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("it speaks");
        let status = self.child.wait().expect("it ends");
        assert!(status.success() && rest == "PASS\n", "the program said {rest:?} and ended with {status}");
    }
}

fn build(folder: &Path) -> Option<PathBuf> {
    let program = folder.join("target");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/target.c");
    let status = Command::new("gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
    match status {
        Ok(status) => {
            assert!(status.success(), "gcc: {status}");
            Some(program)
        }
        Err(error) => {
            println!("SKIPPED: no gcc: {error}");
            None
        }
    }
}

fn pattern(i: u64) -> u8 {
    if (i / STEP).is_multiple_of(2) { (i * 7 + i / 4096 + 1).to_le_bytes()[0] } else { 0 }
}

/// The whole page stream.
fn stream(dir: &Path, image: &Image) -> Vec<u8> {
    let reader = PageReader::open(dir, &image.stream).expect("pages");
    let mut buffer = reader.buffer().expect("a buffer");
    let mut bytes = Vec::new();
    for index in 0..image.stream.checksums.len() {
        bytes.extend_from_slice(
            reader.read_block(u64::try_from(index).expect("small"), &mut buffer).expect("a block"),
        );
    }
    bytes
}

/// Checks `len` bytes at `base` against the pattern: what no extent covers is zero.
fn check_pattern(extents: &[Extent], stream: &[u8], base: u64, len: u64) {
    let mut memory = vec![0u8; usize::try_from(len).expect("small")];
    let mut stored = 0;
    for extent in extents {
        for i in 0..extent.length {
            let address = extent.address + i;
            if (base..base + len).contains(&address) {
                let byte = stream[usize::try_from(extent.stream_offset + i).expect("small")];
                memory[usize::try_from(address - base).expect("small")] = byte;
                stored += 1;
            }
        }
    }
    assert!(memory.iter().zip(0..).all(|(byte, i)| *byte == pattern(i)), "memory at {base:#x} differs");
    assert_eq!(stored, len / 2, "holes at {base:#x} are not stored");
}

fn check_threads(image: &Image) {
    let process = &image.processes[0];
    assert_eq!(process.threads.len(), 4);
    let named = |name: &[u8]| {
        process.threads.iter().find(|thread| thread.comm == name).expect("a thread of that name")
    };
    for thread in &process.threads {
        assert_eq!(thread.registers[17], 0x33, "code segment");
        assert_ne!(thread.registers[16], 0, "instruction pointer");
        assert_ne!(thread.registers[21], 0, "thread pointer");
        assert!(thread.rseq.is_some() && thread.robust_list != 0 && thread.clear_child_tid != 0);
        assert_eq!(thread.timer_slack_ns, 50_000);
    }
    assert_eq!(named(b"waiter").alternate_stack.map(|stack| stack.size), Some(16384));
    assert_eq!(named(b"compute").alternate_stack, None);
    assert_eq!(process.threads[0].pending.len(), 1, "raise is for the thread");
    assert!(process.actions.iter().any(|action| action.signal == 10 && action.handler != 0));
    assert_eq!(process.threads[0].signal_mask, 1 << 11);
    assert_eq!(process.interval_timers.len(), 1);
    assert_eq!(process.umask, 0o027);
    let fields = process.memory.as_ref().and_then(|memory| memory.fields).expect("fields");
    assert!(fields.brk >= fields.start_brk && fields.start_brk != 0);
}

fn check_files(image: &Image, target: &Target) {
    let process = &image.processes[0];
    let kind = |fd: i32| {
        let id = process.descriptors.iter().find(|one| one.fd == fd).expect("a descriptor").file;
        (
            id,
            image
                .open_files
                .iter()
                .find(|one| one.id == id)
                .and_then(|one| one.kind.clone())
                .expect("a kind"),
        )
    };
    for (fd, stream) in [(0, 0), (1, 1)] {
        assert!(matches!(kind(fd).1, open_file::Kind::Outside(outside) if outside.standard_stream == stream));
    }
    assert!(matches!(kind(2).1, open_file::Kind::Device(device) if device.path == b"/dev/null"));
    let open_file::Kind::Regular(regular) = kind(target.file).1 else { panic!("a regular file") };
    assert_eq!(regular.position, 4);
    assert_eq!(kind(target.file).0, kind(target.file + 1).0, "a duplicate");
    let closes = |fd| process.descriptors.iter().any(|one| one.fd == fd && one.close_on_exec);
    assert!(closes(target.file) && !closes(target.file + 1));
    let open_file::Kind::Pipe(end) = kind(target.pipe).1 else { panic!("a pipe") };
    assert!(!end.write);
    let pipe = image.pipes.iter().find(|pipe| pipe.id == end.pipe).expect("its record");
    assert_eq!((pipe.content.as_slice(), pipe.capacity), (&b"in the pipe"[..], 65536));
    assert_eq!(process.locks.len(), 1);
    assert_eq!((process.locks[0].start, process.locks[0].length, process.locks[0].write), (2, 3, true));
}

fn check_memory(dir: &Path, image: &Image, target: &Target) {
    let memory = image.processes[0].memory.as_ref().expect("memory");
    let stream = stream(dir, image);
    check_pattern(&memory.pages, &stream, target.private, PRIVATE);
    let shared = memory.vmas.iter().find(|vma| vma.start == target.shared).expect("a mapping");
    assert_eq!(shared.backing, i32::from(vma::Backing::SharedMemory));
    check_pattern(&image.shared_memory[0].pages, &stream, 0, SHARED);
    let backings = |backing| memory.vmas.iter().filter(|vma| vma.backing == i32::from(backing)).count();
    assert_eq!((backings(vma::Backing::Vdso), backings(vma::Backing::Vvar)), (1, 1));
    assert!(memory.vdso_crc != 0 && !memory.auxv.is_empty());
    assert!(
        image
            .mapped_files
            .iter()
            .any(|file| file.identity.as_ref().is_some_and(|it| it.path.ends_with(b"/target")))
    );
    assert!(memory.vmas.iter().any(|vma| vma.advice == [15]), "advice");
}

fn check_summary(summary: &Summary, dir: &Path, image: &Image, pages: &[u64]) {
    let on_disk: u64 =
        ["records", PAGES_FILE].iter().map(|file| fs::metadata(dir.join(file)).expect("a file").len()).sum();
    assert_eq!((summary.bytes, summary.memory, summary.threads), (on_disk, image.stream.stream_length, 4));
    assert!(summary.paused < summary.total);
    assert_eq!(pages.last(), Some(&summary.memory), "progress ends with everything");
}

/// Captured and left running, then captured again compressed and killed.
fn a_running_program(program: &Path, folder: &Path) {
    let target = Target::start(program, folder);
    let dir = folder.join("image");
    let options = Options::new(target.pid(), &dir);
    assert_eq!(obstacles(&options).expect("a look"), []);
    let mut pages = Vec::new();
    let summary = capture(&options, &mut |progress| {
        if let Progress::Pages { done, .. } = progress {
            pages.push(done);
        }
    })
    .expect("an image");
    verify(&dir, |_, _| ()).expect("an image without damage");
    let image = Image::open(&dir).expect("records");
    check_threads(&image);
    check_files(&image, &target);
    check_memory(&dir, &image, &target);
    check_summary(&summary, &dir, &image, &pages);
    println!("paused {:?}, total {:?}, {} bytes", summary.paused, summary.total, summary.bytes);

    let error = capture(&options, &mut |_| ()).expect_err("the image exists");
    assert!(
        matches!(&error, CaptureError::Refused(list) if list[0].reason == "it exists already"),
        "{error}"
    );
    for round in 0..20 {
        let again = Options::new(target.pid(), folder.join(format!("again-{round}")));
        capture(&again, &mut |_| ()).expect("another image");
    }
    target.finish();
}

fn killed(program: &Path, folder: &Path) {
    let mut target = Target::start(program, folder);
    let dir = folder.join("killed");
    let options = Options { kill: true, compression: Compression::Zstd, ..Options::new(target.pid(), &dir) };
    let summary = capture(&options, &mut |_| ()).expect("an image");
    assert!(summary.bytes < summary.memory);
    assert_eq!(target.child.wait().expect("it ends").signal(), Some(9));
    verify(&dir, |_, _| ()).expect("an image without damage");
}

/// All that stands in the way is listed, and the program goes on.
fn refused(folder: &Path) {
    let script = "import os,time,select,socket\na=socket.socket()\ne=os.pidfd_open(os.getppid())\np=os.fork()\ntime.sleep(100)";
    let mut child = match Command::new("python3").args(["-c", script]).spawn() {
        Ok(child) => child,
        Err(error) => return println!("SKIPPED: no python3: {error}"),
    };
    let pid = child.id().try_into().expect("a process id");
    let options = Options::new(pid, folder.join("refused"));
    let wanted = ["socket:", "pidfd"];
    let found = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        // It may be on its way into the program yet, and its mappings change.
        let Ok(list) = obstacles(&options) else { return false };
        wanted.iter().all(|word| list.iter().any(|one| one.object.contains(word)))
    });
    let error = capture(&options, &mut |_| ()).expect_err("refused");
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("a list");
    for id in children.split_whitespace() {
        let id = rustix::process::Pid::from_raw(id.parse().expect("an id")).expect("an id");
        rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("it is ours");
    }
    child.kill().expect("it is ours");
    child.wait().expect("it ends");
    assert!(found && error.obstacles().len() >= 4, "{error}");
    assert!(!folder.join("refused").exists());
    let gone = obstacles(&options).expect_err("it is gone");
    assert!(gone.to_string().contains("no such process") && gone.remedy().is_some(), "{gone}");
}

/// Wakes this process, which is about to stop, in a second.
fn alarm_clock() -> Child {
    let script = format!("sleep 1; kill -CONT {}", std::process::id());
    Command::new("sh").args(["-c", &script]).spawn().expect("a shell")
}

fn signal_self(signal: Signal) {
    rustix::process::kill_process(rustix::process::getpid(), signal).expect("to oneself");
}

/// A capture that is stopped lets the program go; continued, it leaves no image.
fn stopped_for_good(program: &Path, folder: &Path) {
    let target = Target::start(program, folder);
    let options = Options { kill: true, ..Options::new(target.pid(), folder.join("stopped")) };
    let mut clock = None;
    let error = capture(&options, &mut |progress| {
        if progress == Progress::Phase("pages") {
            clock = Some(alarm_clock());
            signal_self(Signal::STOP);
        }
    })
    .expect_err("stopped");
    clock.expect("an alarm clock").wait().expect("a shell");
    assert!(error.to_string().contains("was stopped while the target stood still"), "{error}");
    assert!(error.remedy().is_some() && !options.dir.exists());
    target.finish();
}

/// Ctrl-Z waits until the program runs again.
fn stopped_by_the_terminal(program: &Path, folder: &Path) {
    let target = Target::start(program, folder);
    let options = Options::new(target.pid(), folder.join("ctrl-z"));
    let mut clock = None;
    let summary = capture(&options, &mut |progress| {
        if progress == Progress::Phase("pages") {
            clock = Some(alarm_clock());
            signal_self(Signal::TSTP);
        }
    })
    .expect("an image");
    clock.expect("an alarm clock").wait().expect("a shell");
    assert!(summary.paused < Duration::from_millis(900), "{:?}", summary.paused);
    target.finish();
}

/// Runs a capture with `--kill` in a process of its own that dies as `phase` begins.
fn killed_at(phase: &'static str, options: &Options) {
    match fork::fork().expect("a process") {
        Forked::Parent(child) => {
            rustix::process::waitpid(Some(child), WaitOptions::empty()).expect("it is ours");
        }
        Forked::Child => {
            let _ = capture(options, &mut |progress| {
                if progress == Progress::Phase(phase) {
                    signal_self(Signal::KILL);
                }
            });
            fork::leave(1);
        }
    }
}

/// Whoever dies when: there is an image and no program, or a program and no image.
fn killed_before_the_kill(program: &Path, folder: &Path) {
    let target = Target::start(program, folder);
    let options = Options { kill: true, ..Options::new(target.pid(), folder.join("too-early")) };
    killed_at("commit", &options);
    target.finish();
    assert!(!options.dir.exists());

    let mut target = Target::start(program, folder);
    let options = Options { kill: true, ..Options::new(target.pid(), folder.join("alone")) };
    killed_at("kill", &options);
    assert_eq!(target.child.wait().expect("the guardian ends it").signal(), Some(9));
    verify(&options.dir, |_, _| ()).expect("an image without damage");
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    refused(folder.path());
    let Some(program) = build(folder.path()) else { return };
    let tests =
        [a_running_program, killed, stopped_for_good, stopped_by_the_terminal, killed_before_the_kill];
    for test in tests {
        test(&program, folder.path());
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert_eq!(left, [""; 0], "nothing unfinished is left");
    let passed = tests.len() + 1;
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
