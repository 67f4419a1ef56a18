//! The messages of a POSIX queue, which nobody can look at without receiving them, and what comes with the news of the next one (mq_notify),
//! which no one but the process that asked for it ever sees. So a process of the target receives all messages and sends them again; who is
//! told of the next one is told once, takes that away again, and asks once more for the same. It does all of it in one program of its own,
//! which comes to its end whoever of ours dies meanwhile.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rewake_linux::mqueue::{self, Message, Notice};
use rewake_linux::program::{Accept, CallRef, DataRef, Failure, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::Outcome;

use crate::error::{CaptureError, During, Result};
use crate::freeze::Frozen;

/// `SIGEV_*`.
pub(crate) const SIGNAL: i32 = 0;
pub(crate) const NONE: i32 = 1;
pub(crate) const THREAD: i32 = 2;
/// `NOTIFY_COOKIE_LEN`: what a netlink socket is told.
const COOKIE: usize = 32;
/// `siginfo_t`, and where the value is in it.
const SIGINFO: usize = 128;
const VALUE: usize = 24;
/// Words of `struct sigevent`.
const EVENT: usize = 8;
const OPEN: i32 = libc::O_RDWR | libc::O_CLOEXEC;
/// Should the target go on meanwhile, its guardian killed, and fill the queue: for how long there may be no room, in seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of messages that pass through memory of the target.
pub(crate) const MOST_BYTES: u64 = 64 << 20;
const OBJECT: &str = "message queue";

/// A queue that this process has open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Its own descriptor.
    pub(crate) fd: i32,
    /// Messages, and the longest possible.
    pub(crate) messages: usize,
    pub(crate) size: usize,
    /// What it is told of the next one, if anything.
    pub(crate) notice: Option<Notice>,
    /// The netlink socket, if it is told by one.
    pub(crate) socket: i32,
}

/// What was found out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Learned {
    pub(crate) messages: Vec<Message>,
    /// `SIGEV_*`, if it is told of the next one: a process that has become another program since is told nothing.
    pub(crate) kind: i32,
    pub(crate) value: u64,
    pub(crate) cookie: Vec<u8>,
}

/// A message that was received.
#[derive(Clone, Copy)]
struct Slot {
    received: CallRef,
    priority: DataRef,
    data: DataRef,
}

/// Where the answers will be.
struct Answers {
    opened: CallRef,
    cookie: DataRef,
    slots: Vec<Slot>,
    sent: Vec<CallRef>,
    /// The message that brings the news.
    first: Option<CallRef>,
    /// That the signal was taken away.
    signal: Option<CallRef>,
    event: DataRef,
    closed: CallRef,
}

impl Asked {
    /// The signal, if there is one; it has a value.
    fn signal(&self) -> Option<i32> {
        self.notice.filter(|notice| notice.kind == SIGNAL && notice.signal != 0).map(|notice| notice.signal)
    }

    /// It is told by a socket.
    fn by_socket(&self) -> bool {
        self.notice.is_some_and(|notice| notice.kind == THREAD)
    }

    /// `struct sigevent`, but for the value.
    fn event(&self, kind: i32) -> [u64; EVENT] {
        let by = if self.by_socket() { self.socket } else { self.signal().unwrap_or(0) };
        let mut words = [0; EVENT];
        words[1] = u64::from(by.unsigned_abs()) | u64::from(kind.unsigned_abs()) << 32;
        words
    }

    fn program(&self, program: &mut Program, track: TrackRef) -> Answers {
        let zero = Value::from(0);
        let path = program.string(format!("/proc/self/fd/{}", self.fd).as_bytes());
        let args = [libc::AT_FDCWD.into(), path.into(), OPEN.into(), zero];
        let opened = program.call(track, Sysno::openat, args).note("to receive and send").done();
        let queue = Value::Result(opened);
        let cookie = program.zeros(COOKIE);
        if self.by_socket() {
            program.call(track, Sysno::mq_notify, [self.fd.into(), zero]).note("no news");
            let length = u64::try_from(COOKIE).unwrap_or(0);
            let args = [self.socket.into(), cookie.into(), length.into(), libc::MSG_DONTWAIT.into()];
            let call = program.call(track, Sysno::recvfrom, args).accept(Accept::Exactly(length));
            call.note("that there are none");
        }
        let slots: Vec<Slot> = (0..self.messages).map(|_| self.receive(program, track, queue)).collect();
        let limit = limit(program);
        let mut send = |data: Value, length: Value, priority: Value| {
            let args = [queue, data, length, priority, limit.into()];
            program.call(track, Sysno::mq_timedsend, args).note("message").done()
        };
        let sent: Vec<CallRef> = slots
            .iter()
            .map(|slot| send(slot.data.into(), Value::Result(slot.received), Value::Word(slot.priority)))
            .collect();
        let mut first = sent.first().copied();
        if self.messages == 0 && self.signal().is_some() {
            // One that is taken away again.
            first = Some(send(cookie.into(), zero, zero));
            self.receive(program, track, queue);
        }
        // To close it later would take back what is asked for.
        let closed = program.call(track, Sysno::close, [queue]).done();
        let event = program.words(&self.event(self.notice.map_or(NONE, |notice| notice.kind)));
        if self.by_socket() {
            program.point(event, 0, cookie);
        }
        let signal = self.signal().map(|signal| take_signal(signal, program, track, event));
        if self.notice.is_some() {
            program.call(track, Sysno::mq_notify, [self.fd.into(), event.into()]).note("as before");
        }
        Answers { opened, cookie, slots, sent, first, signal, event, closed }
    }

    /// At once, or not at all.
    fn receive(&self, program: &mut Program, track: TrackRef, queue: Value) -> Slot {
        let (priority, data) = (program.zeros(8), program.zeros(self.size.max(8)));
        let (size, past) = (u64::try_from(self.size).unwrap_or(0), program.zeros(16));
        let args = [queue, data.into(), size.into(), priority.into(), past.into()];
        let received = program.call(track, Sysno::mq_timedreceive, args).note("message").done();
        Slot { received, priority, data }
    }
}

/// Until when a message may wait for room.
fn limit(program: &mut Program) -> DataRef {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = now.saturating_add(PATIENCE);
    program.words(&[until.as_secs(), until.subsec_nanos().into()])
}

/// Takes the signal away and its value over: when it was taken, and all that came with it.
fn take_signal(signal: i32, program: &mut Program, track: TrackRef, event: DataRef) -> CallRef {
    let signal = signal.unsigned_abs();
    let (set, info, now) = (program.words(&[1 << (signal - 1)]), program.zeros(SIGINFO), program.zeros(16));
    let args = [set.into(), info.into(), now.into(), Value::from(8)];
    let call = program.call(track, Sysno::rt_sigtimedwait, args).accept(Accept::Exactly(signal.into()));
    let taken = call.note("the news").done();
    let own = program.call(track, Sysno::getpid, []).done();
    let (from, to) = (program.words(&[0, 8]), program.words(&[0, 8]));
    program.point(from, 0, info.skip(VALUE));
    program.point(to, 0, event);
    let args = [own.into(), to.into(), 1.into(), from.into(), 1.into(), 0.into()];
    program.call(track, Sysno::process_vm_readv, args).accept(Accept::Exactly(8)).note("its value");
    taken
}

impl Answers {
    /// Messages that were received before the program stopped, if it did, and how many of them were sent again.
    fn messages(&self, outcome: &Outcome, until: usize) -> (Vec<Message>, usize) {
        let received = self.slots.iter().filter(|slot| slot.received.index < until);
        let message = |slot: &Slot| {
            let length = usize::try_from(outcome.result(slot.received)).unwrap_or(0);
            let priority = u32::try_from(outcome.word(slot.priority, 0) & 0xffff_ffff).unwrap_or(0);
            (priority, outcome.data(slot.data)[..length.min(slot.data.len)].to_vec())
        };
        let sent = self.sent.iter().filter(|call| call.index < until).count();
        (received.map(message).collect(), sent)
    }
}

impl Frozen {
    /// What a queue holds and what comes with the news of the next message, both as they were afterwards. Nothing if this process may not
    /// open the queue.
    ///
    /// # Errors
    /// When it cannot be found out, or somebody else uses the queue.
    pub(crate) fn queue(&mut self, asked: &Asked) -> Result<Option<Learned>> {
        let pid = self.proc.id();
        self.check_signal(asked)?;
        // The one whose mask says whether a signal for the process is dropped.
        let tid =
            if self.threads.contains_key(&pid) { Some(pid) } else { self.threads.keys().next().copied() };
        let Some(tid) = tid else { return Ok(None) };
        let mut program = Program::new();
        let track = program.track(format!("thread {tid}"));
        let answers = asked.program(&mut program, track);
        let maps = self.proc.maps().during("read", pid, "maps")?;
        let outcome = self.walk(&program, &[(track, tid)], &maps)?;
        let mut kind = asked.notice.map_or(NONE, |notice| notice.kind);
        match outcome.failure() {
            None => {}
            Some(failure) if failure.at == answers.opened => return Ok(None),
            Some(failure) => kind = self.put_right(asked, &answers, &outcome, failure, tid)?,
        }
        let (messages, _) = answers.messages(&outcome, usize::MAX);
        let value = if kind == SIGNAL { outcome.word(answers.event, 0) } else { 0 };
        let cookie = if kind == THREAD { outcome.data(answers.cookie).to_vec() } else { Vec::new() };
        Ok(Some(Learned { messages, kind, value, cookie }))
    }

    /// The signal must come, and be the only one of its number.
    fn check_signal(&self, asked: &Asked) -> Result<()> {
        let pid = self.proc.id();
        let Some(signal) = asked.signal() else { return Ok(()) };
        let waits = |reason: String| {
            let error = CaptureError::failed("ask", pid, OBJECT, reason);
            Err(error.advise("try again when the program has taken its signals"))
        };
        let ways = self.threads.values().flat_map(|thread| [(thread, false), (thread, true)]);
        for (thread, shared) in ways {
            let pending = thread.pending(shared).during("read", pid, "pending signals")?;
            if pending.iter().any(|one| one.signal() == signal) {
                return waits(format!(
                    "signal {signal}, by which it is told of the next message (mq_notify), waits already"
                ));
            }
        }
        let status = self.proc.read("status").during("read", pid, "status")?;
        if !has_room(&String::from_utf8_lossy(&status)) {
            let reason =
                "there is no room for one signal more (RLIMIT_SIGPENDING), by which it is told of messages";
            return waits(reason.to_owned());
        }
        Ok(())
    }

    /// The program stopped on its way: messages go back, what it opened is closed, and what can be asked for again is. What is asked for in
    /// the end, if that is not a failure.
    fn put_right(
        &mut self,
        asked: &Asked,
        answers: &Answers,
        outcome: &Outcome,
        failure: Failure,
        tid: i32,
    ) -> Result<i32> {
        let (pid, until) = (self.proc.id(), failure.at.index);
        let (messages, sent) = answers.messages(outcome, until);
        let rest = messages.get(sent..).unwrap_or_default();
        mqueue::put_back(pid, asked.fd, rest).during("send", pid, "messages of a queue")?;
        // A process that has become another program since is told nothing.
        let nobody = answers.signal == Some(failure.at) && failure.result == -i64::from(libc::EAGAIN);
        let cookie = outcome.data(answers.cookie);
        let mut program = Program::new();
        let track = program.track(format!("thread {tid}"));
        // Before the news came, to close it would take back what is asked for, which nobody knows: rather one descriptor more.
        let asks_still = asked.signal().is_some() && answers.first.is_some_and(|first| until <= first.index);
        if until <= answers.closed.index && !asks_still {
            let queue = Value::from(outcome.result(answers.opened).cast_unsigned());
            program.call(track, Sysno::close, [queue]).accept(Accept::Any);
        }
        let known =
            if asked.by_socket() { cookie.iter().any(|byte| *byte != 0) } else { asked.signal().is_none() };
        if asked.notice.is_some() && (known || nobody) {
            let event = program.words(&asked.event(if asked.by_socket() { THREAD } else { NONE }));
            let cookie = program.bytes(cookie);
            if asked.by_socket() {
                program.point(event, 0, cookie);
            }
            let args = [asked.fd.into(), event.into()];
            program.call(track, Sysno::mq_notify, args).accept(Accept::Any).note("as before");
        }
        let maps = self.proc.maps().during("read", pid, "maps")?;
        if !program.is_empty() {
            self.walk(&program, &[(track, tid)], &maps)?;
        }
        if nobody {
            return Ok(NONE);
        }
        let cause = std::io::Error::from_raw_os_error(i32::try_from(-failure.result).unwrap_or(0));
        let error = CaptureError::failed("read", pid, OBJECT, cause);
        Err(error.advise("see that nobody else uses the queue, and try again"))
    }
}

/// Whether one more signal can be queued: `SigQ: 3/4096`.
fn has_room(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("SigQ:"));
    let numbers = line.and_then(|line| line.trim().split_once('/'));
    let number = |text: &str| text.parse::<u64>().ok();
    let parsed = numbers.and_then(|(used, most)| Some((number(used)?, number(most)?)));
    parsed.is_none_or(|(used, most)| used < most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_a_signal() {
        assert!(has_room("Name:\tx\nSigQ:\t3/7\n") && has_room(""));
        assert!(!has_room("SigQ:\t7/7\n"));
    }

    /// Whatever is received is sent, and the queue is closed before the same is asked for again.
    #[test]
    fn what_is_received_is_sent() {
        for (kind, signal) in [(SIGNAL, 34), (SIGNAL, 0), (NONE, 0), (THREAD, 0)] {
            for messages in [0, 3] {
                let notice = Some(Notice { kind, signal, pid: 1 });
                let asked = Asked { fd: 5, messages, size: 10, notice, socket: 6 };
                let mut program = Program::new();
                let track = program.track("x");
                let answers = asked.program(&mut program, track);
                let calls = &program.tracks()[0].calls;
                let count = |name: &str| {
                    calls.iter().filter(|call| format!("{:?}", call.action).contains(name)).count()
                };
                assert_eq!(count("mq_timedreceive"), count("mq_timedsend"));
                assert_eq!((count("close"), answers.slots.len()), (1, messages));
                let last = format!("{:?}", calls.last().unwrap().action);
                assert!(last.contains("mq_notify") && answers.closed.index < calls.len() - 1, "{last}");
            }
        }
    }
}
