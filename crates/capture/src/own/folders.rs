//! Whether threads share working folder, root and umask, where the kernel does not say so (kcmp(2) is refused, as it is in containers).
//!
//! The first thread sets its umask to what nobody has, looks what the others have then, and puts it back, all in one go that nobody can
//! interrupt: no file is made meanwhile, as all stand still.

use rewake_linux::kcmp::{self, Shared};
use rewake_linux::program::{Accept, DataRef, Program, Sysno, Value};
use rewake_linux::twin;

use super::{Company, run};
use crate::error::Result;

/// Two of them: one may be what a thread has of its own.
const TRIED: [u32; 2] = [0o153, 0o624];
/// Bytes of a thread's status up to its umask; its name comes before.
const SEEN: usize = 160;

/// Finds out, and notes those that have their own, unless the kernel tells.
///
/// # Errors
/// When the threads do not answer.
pub(super) fn learn(company: &mut dyn Company) -> Result<()> {
    let pid = company.pid();
    let tids: Vec<i32> = company.threads().iter().map(|thread| thread.tid).collect();
    let others: Vec<i32> = tids.iter().copied().filter(|tid| *tid != pid).collect();
    let Some(first) = others.first() else { return Ok(()) };
    if !kcmp::compare(Shared::Fs, pid, *first).is_err_and(|error| kcmp::is_refused(&error)) {
        return Ok(());
    }
    let mut program = Program::new();
    let track = program.track(format!("thread {pid}"));
    let mut seen: Vec<(i32, u32, DataRef)> = Vec::new();
    let mut before = None;
    for tried in TRIED {
        let call = program.call(track, Sysno::umask, [Value::from(tried)]).accept(Accept::Any).done();
        before.get_or_insert(call);
        for tid in &others {
            let path = program.string(format!("/proc/self/task/{tid}/status").as_bytes());
            let room = program.zeros(SEEN);
            let (folder, flags) = (libc::AT_FDCWD.into(), (libc::O_RDONLY | libc::O_CLOEXEC).into());
            let args = [folder, path.into(), flags, Value::from(0)];
            let file = program.call(track, Sysno::openat, args).accept(Accept::Any).done();
            let len = u64::try_from(SEEN).unwrap_or_default();
            let args = [file.into(), room.into(), len.into()];
            program.call(track, Sysno::read, args).accept(Accept::Any);
            program.call(track, Sysno::close, [file.into()]).accept(Accept::Any);
            seen.push((*tid, tried, room));
        }
    }
    if let Some(before) = before {
        program.call(track, Sysno::umask, [before.into()]).accept(Accept::Any);
    }
    let outcome = run(company, &program, &[(track, pid)])?;
    let differs = |(_, tried, room): &&(i32, u32, DataRef)| umask_of(outcome.data(*room)) != Some(*tried);
    twin::note_own_folders(seen.iter().filter(differs).map(|(tid, ..)| *tid).collect());
    Ok(())
}

/// `Umask:` and an octal number.
fn umask_of(status: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(status);
    let digits = text.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(digits.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_umask_is_read_from_the_beginning_of_a_status() {
        assert_eq!(umask_of(b"Name:\tcat\nUmask:\t0022\nState:\tR (run"), Some(0o022));
        assert_eq!(umask_of(b"Name:\tcat\n"), None);
        assert_eq!(umask_of(&[0; 8]), None);
    }
}
