//! Epoll instances: each watch is added while its number leads to the file it was added for.
//!
//! A watch that has fired (`EPOLLONESHOT`) cannot be added as such: it is added where it fires at once. And one that tells of
//! changes only (`EPOLLET`) tells anew of a file that is ready when it is added: where nothing was waiting at the capture, and
//! nothing can happen to the files watched meanwhile, that is fetched and forgotten. A program must expect it otherwise.
//!
//! The root adds all of them, but for those of signalfds: the kernel wakes such a watch by signals of whoever added it.

use std::collections::BTreeSet;

use rewake_image::records::{Epoll, EpollWatch, OpenFile, Pipe, PipeEnd, Process, open_file::Kind};
use rewake_linux::program::{Accept, Sysno};

use super::super::{Planner, args};

const EPOLLIN: u32 = 1;
const EPOLLOUT: u32 = 4;
const EPOLLET: u32 = 1 << 31;
/// What is left of a watch that fired: EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET.
const PRIVATE: u32 = 0xf << 28;
const EPOLLONESHOT: u32 = 1 << 30;
/// Events always told.
const ERROR_OR_HANGUP: u32 = 0x18;
/// Bytes of `struct epoll_event`.
const EVENT_SIZE: usize = 12;
/// Bytes that a slot of a pipe holds.
const SLOT: u32 = 4096;

impl<'a> Planner<'a> {
    pub(super) fn epoll(&mut self, spare: i32) {
        let call = self.program.call(self.leader, Sysno::epoll_create1, args![libc::O_CLOEXEC]);
        call.accept(Accept::Exactly(0)).note("epoll instance");
        self.move_up(0, spare);
    }

    /// All instances with the numbers at which they wait for theirs; and the watches that the root adds.
    fn epolls(&self) -> Vec<(i32, &'a Epoll, Vec<&'a EpollWatch>)> {
        let files = self.image.open_files.iter();
        let epoll = |file: &'a OpenFile| match &file.kind {
            Some(Kind::Epoll(epoll)) => {
                let watches = epoll.watches.iter();
                let watches = watches.filter(|watch| self.watcher(file.id, watch) == self.image.root().pid);
                Some((self.spare_of(file.id)?, epoll, watches.collect()))
            }
            _ => None,
        };
        files.filter_map(epoll).collect()
    }

    /// Who adds a watch: of a signalfd, who has that and the instance, and of several the one that was there first.
    fn watcher(&self, epoll: u32, watch: &EpollWatch) -> i32 {
        let watched = self.image.open_files.binary_search_by_key(&watch.file, |file| file.id);
        let is_signalfd =
            watched.is_ok_and(|at| matches!(self.image.open_files[at].kind, Some(Kind::Signalfd(_))));
        let root = self.image.root().pid;
        if !is_signalfd {
            return root;
        }
        let has = |process: &&Process, file| process.descriptors.iter().any(|one| one.file == file);
        let mut with_epoll =
            self.image.processes.iter().filter(|one| one.descriptors_of.is_none() && has(one, epoll));
        let first = with_epoll.clone().next();
        let both = with_epoll.find(|one| has(one, watch.file));
        both.or(first).map_or(root, |process| process.pid)
    }

    /// Watches of signalfds that wait for signals of this process, which is not the root.
    pub(super) fn watches_of_own_signals(&mut self) {
        let own = self.process.descriptors.iter().map(|descriptor| descriptor.file);
        let own: BTreeSet<u32> = own.collect();
        for id in own {
            let Ok(at) = self.image.open_files.binary_search_by_key(&id, |file| file.id) else { continue };
            let Some(Kind::Epoll(epoll)) = &self.image.open_files[at].kind else { continue };
            let Some(spare) = self.spare_of(id) else { continue };
            for watch in &epoll.watches {
                if self.watcher(id, watch) != self.process.pid {
                    continue;
                }
                if self.leads_there(watch) && !has_fired(watch) {
                    self.watch(spare, watch, watch.events);
                } else {
                    self.with_number(watch, |planner| planner.watch(spare, watch, watch.events));
                    self.number_again(watch);
                }
            }
        }
    }

    /// Watches whose number leads elsewhere in the end, and those that have fired. No number is taken yet.
    pub(super) fn watches_by_other_numbers(&mut self) {
        let epolls = self.epolls();
        for (spare, _, watches) in &epolls {
            for watch in watches.iter().filter(|watch| has_fired(watch)) {
                if !self.is_of_late(watch) {
                    self.with_number(watch, |planner| planner.fired(*spare, watch));
                }
            }
        }
        for (spare, _, watches) in &epolls {
            for watch in watches.iter().filter(|watch| !has_fired(watch)) {
                if !self.leads_there(watch) && !self.is_of_late(watch) {
                    self.with_number(watch, |planner| planner.watch(*spare, watch, watch.events));
                }
            }
        }
    }

    /// The same of files that were opened late. The numbers are taken: each is lent for a moment.
    pub(super) fn watches_of_late_files(&mut self) {
        for (spare, _, watches) in self.epolls() {
            for watch in watches {
                if !self.is_of_late(watch) {
                    continue;
                } else if has_fired(watch) {
                    self.with_number(watch, |planner| planner.fired(spare, watch));
                } else if !self.leads_there(watch) {
                    self.with_number(watch, |planner| planner.watch(spare, watch, watch.events));
                } else {
                    continue;
                }
                self.number_again(watch);
            }
        }
    }

    /// The number of a watch leads where it is to lead.
    fn number_again(&mut self, watch: &EpollWatch) {
        let there = self.process.descriptors.iter().find(|descriptor| descriptor.fd == watch.fd);
        if let Some(descriptor) = there
            && let Some(file) = self.spare_of(descriptor.file)
        {
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC } else { 0 };
            let args = args![file, descriptor.fd, flags];
            let note = format!("descriptor {} again", descriptor.fd);
            self.program.call(self.leader, Sysno::dup3, args).note(note);
        }
    }

    fn is_of_late(&self, watch: &EpollWatch) -> bool {
        let file = self.image.open_files.binary_search_by_key(&watch.file, |file| file.id);
        file.is_ok_and(|at| self.is_late(&self.image.open_files[at]))
    }

    /// All others, when the descriptors are at their numbers.
    pub(super) fn watches(&mut self) {
        let epolls = self.epolls();
        for (spare, _, watches) in &epolls {
            for watch in watches.iter().filter(|watch| !has_fired(watch)) {
                if self.leads_there(watch) {
                    self.watch(*spare, watch, watch.events);
                }
            }
        }
        for (spare, epoll, _) in epolls {
            if self.may_be_emptied(epoll) {
                self.fetch(spare, epoll.watches.len(), Accept::Any, "changes told before");
            }
        }
    }

    fn leads_there(&self, watch: &EpollWatch) -> bool {
        let there = self.process.descriptors.binary_search_by_key(&watch.fd, |descriptor| descriptor.fd);
        there.is_ok_and(|at| self.process.descriptors[at].file == watch.file)
    }

    fn with_number(&mut self, watch: &EpollWatch, work: impl FnOnce(&mut Self)) {
        let Some(file) = self.spare_of(watch.file) else { return };
        let note = "the number a watch was added by";
        let args = args![file, watch.fd, libc::O_CLOEXEC];
        self.program.call(self.leader, Sysno::dup3, args).note(note);
        work(self);
        self.program.call(self.leader, Sysno::close, args![watch.fd]);
    }

    fn watch(&mut self, epoll: i32, watch: &EpollWatch, events: u32) {
        let mut event = events.to_le_bytes().to_vec();
        event.extend(watch.data.to_le_bytes());
        let event = self.program.bytes(&event);
        let args = args![epoll, libc::EPOLL_CTL_ADD, watch.fd, event];
        self.program.call(self.leader, Sysno::epoll_ctl, args).note(format!("watch descriptor {}", watch.fd));
    }

    fn fetch(&mut self, epoll: i32, most: usize, accept: Accept, note: &str) {
        let most = most.clamp(1, 4096);
        let room = self.program.zeros(most * EVENT_SIZE);
        let args = args![epoll, room, u64::try_from(most).unwrap_or(1), 0, 0, 0];
        self.program.call(self.leader, Sysno::epoll_pwait, args).accept(accept).note(note);
    }

    /// Adds a watch that has fired. What never has an error or hangs up is never told of either.
    fn fired(&mut self, epoll: i32, watch: &EpollWatch) {
        let image = self.image;
        let file = image.open_files.binary_search_by_key(&watch.file, |file| file.id);
        let ready = match file.ok().and_then(|at| image.open_files[at].kind.as_ref()) {
            Some(Kind::Eventfd(eventfd)) if eventfd.count < u64::MAX - 1 => Some(EPOLLOUT),
            Some(Kind::Pipe(end)) => {
                if let Some(writer) = self.empty_with_writer(end) {
                    return self.fired_by_a_byte(epoll, watch, writer);
                }
                self.ready_pipe(end)
            }
            _ => None,
        };
        self.watch(epoll, watch, watch.events | ready.unwrap_or_default());
        if ready.is_some() {
            self.fetch(epoll, 1, Accept::Exactly(1), "a watch that has fired");
        }
    }

    fn pipe_of(&self, end: &PipeEnd) -> Option<&'a Pipe> {
        self.image.pipes.iter().find(|pipe| pipe.id == end.pipe)
    }

    /// What an end of a pipe is ready for, as the image has it.
    fn ready_pipe(&self, end: &PipeEnd) -> Option<u32> {
        let pipe = self.pipe_of(end)?;
        let slots = match u32::try_from(pipe.packets.len()) {
            Ok(packets @ 1..) => packets,
            _ => u32::try_from(pipe.content.len()).ok()?.div_ceil(SLOT),
        };
        let writable = (end.write || end.both) && slots < pipe.capacity / SLOT;
        let readable = (!end.write || end.both) && !pipe.content.is_empty();
        match (readable, writable) {
            (true, _) => Some(EPOLLIN),
            (_, true) => Some(EPOLLOUT),
            // Without anybody at the other end it hangs up.
            _ => self.other_end(end).is_none().then_some(0),
        }
    }

    /// Where a writer of an empty pipe waits, for its reader.
    fn empty_with_writer(&self, end: &PipeEnd) -> Option<i32> {
        let empty = !end.write && self.pipe_of(end)?.content.is_empty();
        empty.then(|| self.other_end(end)).flatten()
    }

    fn other_end(&self, end: &PipeEnd) -> Option<i32> {
        let other = self.image.open_files.iter().find(|file| match &file.kind {
            Some(Kind::Pipe(other)) => other.pipe == end.pipe && (other.both || other.write != end.write),
            _ => false,
        })?;
        self.spare_of(other.id)
    }

    fn fired_by_a_byte(&mut self, epoll: i32, watch: &EpollWatch, writer: i32) {
        let byte = self.program.zeros(8);
        let note = "to let a watch fire";
        let call = self.program.call(self.leader, Sysno::write, args![writer, byte, 1]);
        call.accept(Accept::Exactly(1)).note(note);
        self.watch(epoll, watch, watch.events | EPOLLIN);
        self.fetch(epoll, 1, Accept::Exactly(1), "a watch that has fired");
        let call = self.program.call(self.leader, Sysno::read, args![watch.fd, byte, 1]);
        call.accept(Accept::Exactly(1)).note(note);
    }

    /// Whether what an instance tells now was told before, all of it.
    fn may_be_emptied(&self, epoll: &Epoll) -> bool {
        let changes =
            || epoll.watches.iter().filter(|watch| watch.events & EPOLLET != 0 && !has_fired(watch));
        let quiet = |watch: &EpollWatch| {
            let place = self.image.open_files.binary_search_by_key(&watch.file, |file| file.id);
            match place.ok().and_then(|at| self.image.open_files[at].kind.as_ref()) {
                Some(Kind::Pipe(_) | Kind::Eventfd(_) | Kind::Inotify(_)) => true,
                // Not armed yet, or never.
                Some(Kind::Timerfd(timer)) => timer.ticks == 0 || timer.remaining_ns == 0,
                _ => false,
            }
        };
        !epoll.ready && changes().next().is_some() && changes().all(quiet)
    }
}

fn has_fired(watch: &EpollWatch) -> bool {
    watch.events & EPOLLONESHOT != 0
        && watch.events & !(PRIVATE | ERROR_OR_HANGUP) == 0
        && watch.events & ERROR_OR_HANGUP == 0
}
