//! Contexts of asynchronous I/O: whether the ring of one that is mapped is a context of the target's. A child has the rings of its
//! parent, and not the contexts.

use rewake_image::records::AioContext;
use rewake_linux::proc::{Mapping, MappingKind};
use rewake_linux::program::{Accept, CallRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::Outcome;

/// The answers, by where the rings begin.
pub(super) struct Contexts(Vec<(u64, CallRef)>);

impl Contexts {
    /// Asks for no event, without any time to wait.
    pub(super) fn ask(program: &mut Program, track: TrackRef, mappings: &[Mapping]) -> Self {
        let is_ring = |mapping: &&Mapping| matches!(mapping.kind(), MappingKind::Special(name) if name.starts_with(b"/[aio]"));
        let starts: Vec<u64> = mappings.iter().filter(is_ring).map(|mapping| mapping.start.get()).collect();
        let no_time = program.zeros(16);
        let zero = Value::from(0);
        let ask = |start: u64| {
            let args = [start.into(), zero, zero, zero, no_time.into()];
            (start, program.call(track, Sysno::io_getevents, args).accept(Accept::Any).done())
        };
        Self(starts.into_iter().map(ask).collect())
    }

    /// Those that are contexts; of their rings nothing is said yet.
    pub(super) fn tell(&self, outcome: &Outcome) -> Vec<AioContext> {
        let known = self.0.iter().filter(|(_, call)| outcome.result(*call) == 0);
        known.map(|(address, _)| AioContext { address: *address, ..AioContext::default() }).collect()
    }
}
