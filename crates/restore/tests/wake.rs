//! A process that never lived, written by hand as an image of two threads, comes to life and ends as its code says.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rewake_image::records::{
    Credentials, Extent, FileIdentity, MappedFile, Process, Thread, Vma, vma::Backing,
};
use rewake_image::{Compression, Image, PageWriter, PendingImage, sample};
use rewake_linux::proc::Proc;
use rewake_restore::{IpcPolicy, OnChanged, Options, Pids, Progress, RestoreError, resume};
use rustix::process::{Pid, WaitOptions, waitpid};

const CODE: u64 = 0x1000_0000;
const DATA: u64 = 0x2000_0000;
const EXE: &str = "/bin/true";
const PAGE: u64 = 4096;
const STATUS: u8 = 7;
/// Waits for a word of the data to change, ends with [`STATUS`].
const LEADER: &[u8] = &[
    0x8b, 0x04, 0x25, 0, 0, 0, 0x20, 0x85, 0xc0, 0x74, 0xf5, // mov DATA, eax; test eax, eax; jz again
    0xb8, 231, 0, 0, 0, 0xbf, STATUS, 0, 0, 0, 0x0f, 0x05, // exit_group(STATUS)
];
/// Changes the word, then turns for ever.
const OTHER: &[u8] = &[0xc7, 0x04, 0x25, 0, 0, 0, 0x20, 1, 0, 0, 0, 0xeb, 0xfe];
const OTHER_AT: usize = 64;

fn vma(start: u64, protection: u32) -> Vma {
    Vma { start, end: start + PAGE, protection, backing: Backing::Anonymous.into(), ..Vma::default() }
}

fn thread(tid: i32, at: u64) -> Thread {
    let mut registers = vec![0; 27];
    registers[15] = u64::MAX; // orig_rax: in no system call
    registers[16] = at;
    registers[17] = 0x33; // code and stack segments of 64-bit programs
    registers[18] = 0x202;
    registers[19] = DATA + PAGE - 256;
    registers[20] = 0x2b;
    let mut xstate = vec![0; 832];
    xstate[0..2].copy_from_slice(&0x37fu16.to_le_bytes()); // x87 control word and MXCSR as at the start of a program
    xstate[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    Thread { tid, comm: b"by-hand".to_vec(), registers, xstate, ..Thread::default() }
}

fn identity(path: &Path) -> FileIdentity {
    let path = path.canonicalize().expect("the whole path");
    let facts = path.metadata().expect("its facts");
    FileIdentity {
        device: facts.dev(),
        inode: facts.ino(),
        size: facts.len(),
        mtime_s: facts.mtime(),
        mtime_ns: u32::try_from(facts.mtime_nsec()).expect("below a second"),
        mode: facts.mode(),
        path: path.into_os_string().into_encoded_bytes(),
        ..FileIdentity::default()
    }
}

/// Two ids that are free now and, the kernel counting up, for a while.
fn free_ids() -> (i32, i32) {
    let id = || {
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        child.wait().expect("its end");
        i32::try_from(child.id()).expect("a pid")
    };
    (id(), id())
}

fn write_image(dir: &Path, compression: Compression, (pid, tid): (i32, i32)) {
    let mut code = vec![0; 4096];
    code[..LEADER.len()].copy_from_slice(LEADER);
    code[OTHER_AT..OTHER_AT + OTHER.len()].copy_from_slice(OTHER);
    let pending = PendingImage::create(dir).expect("a folder");
    let writer = PageWriter::create(&pending, compression).expect("a file");
    writer.block(0, &code).expect("written");
    let mut image = Image { stream: writer.finish().expect("a stream"), ..sample::image() };
    image.manifest.root_pid = pid;
    image.manifest.cpu = Some(rewake_image::records::Cpu::default());
    image.mapped_files.clear();
    image.shared_memory.clear();
    image.open_files.clear();
    image.pipes.clear();
    let mut memory = image.processes[0].memory.take().expect("memory");
    memory.exe = Some(MappedFile { identity: Some(identity(Path::new(EXE))), ..MappedFile::default() });
    memory.vmas = vec![vma(CODE, 5), vma(DATA, 3)];
    memory.pages = vec![Extent { address: CODE, length: PAGE, stream_offset: 0 }];
    let own = Proc::own().and_then(|own| own.status()).expect("our own status");
    let credentials = Some(Credentials {
        uids: own.uids.to_vec(),
        gids: own.gids.to_vec(),
        groups: own.groups,
        cap_inheritable: own.capabilities.inheritable,
        cap_permitted: own.capabilities.permitted,
        cap_effective: own.capabilities.effective,
        cap_bounding: own.capabilities.bounding,
        cap_ambient: own.capabilities.ambient,
        no_new_privs: own.no_new_privs,
    });
    image.processes[0] = Process {
        credentials,
        pid,
        cwd: b"/".to_vec(),
        root: b"/".to_vec(),
        exe: EXE.into(),
        comm: b"by-hand".to_vec(),
        threads: vec![thread(pid, CODE), thread(tid, CODE + OTHER_AT as u64)],
        memory: Some(memory),
        ..Process::default()
    };
    image.processes[0].threads.sort_by_key(|thread| thread.tid);
    pending.write_records(&image).expect("records");
    pending.commit().expect("an image");
}

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        on_changed: OnChanged::Error,
        pids: Pids::Auto,
        ipc: IpcPolicy::Auto,
        outside_sockets: rewake_restore::OutsideSockets::Reconnect,
        clock: None,
        new_session: false,
    }
}

fn wake(dir: &Path) -> Result<Option<i32>, RestoreError> {
    let mut ready = false;
    let restored =
        resume(&options(dir), &mut |progress| ready |= matches!(progress, Progress::Ready { .. }))?;
    assert!(ready, "the caller is told before the program is let go");
    let (_, status) =
        waitpid(Pid::from_raw(restored.pid), WaitOptions::empty()).expect("waited").expect("ended");
    Ok(status.exit_status())
}

fn no_children() -> bool {
    waitpid(None, WaitOptions::NOHANG).is_err()
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let dir = folder.path().join(format!("{compression:?}"));
        write_image(&dir, compression, free_ids());
        assert_eq!(wake(&dir).expect("it wakes"), Some(STATUS.into()), "{compression:?}");
        assert!(no_children());
    }
    let dir = folder.path().join("taken");
    write_image(&dir, Compression::None, (1, free_ids().1));
    let error = wake(&dir).expect_err("pid 1 is taken");
    assert!(error.to_string().contains("taken by 1 ("), "{error}");
    assert!(no_children());

    let dir = folder.path().join("thread-taken");
    write_image(&dir, Compression::None, (free_ids().0, 1));
    let error = wake(&dir).expect_err("thread id 1 is taken");
    assert!(error.to_string().starts_with("clone3 failed for pid 1 "), "{error}");
    assert!(error.to_string().contains("taken by 1 ("), "{error}");
    assert!(no_children(), "nothing of a failed restore is left");

    println!("test wake ... ok");
    println!("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}
