//! Memory policies (NUMA) of mappings. `numa_maps` shows the policy of the first thread where a mapping has none of its own, so the
//! target is asked: the modes of all mappings in one go, and the nodes of those few that have a policy.

use rewake_image::records::Vma;
use rewake_linux::proc::{Mapping, MappingKind};
use rewake_linux::program::{Accept, DataRef, Program, Sysno, TrackRef, Value};
use rewake_linux::remote::Outcome;

const MPOL_F_ADDR: u32 = 2;
/// Bytes for a set of nodes: more than any kernel is built for.
const NODES: usize = 128;
const WORD: usize = 8;

/// Where the modes will be.
pub(super) struct Modes {
    starts: Vec<u64>,
    modes: DataRef,
}

impl Modes {
    pub(super) fn ask(program: &mut Program, track: TrackRef, mappings: &[Mapping]) -> Self {
        use MappingKind::{Vdso, Vsyscall, Vvar, VvarVclock};
        let own = mappings.iter().filter(|one| !matches!(one.kind(), Vdso | Vvar | VvarVclock | Vsyscall));
        let starts: Vec<u64> = own.map(|mapping| mapping.start.get()).collect();
        let modes = program.zeros(WORD * starts.len());
        for (index, start) in starts.iter().enumerate() {
            get(program, track, modes.skip(WORD * index), None, *start);
        }
        Self { starts, modes }
    }

    /// Where the mappings with a policy of their own begin.
    pub(super) fn tell(&self, outcome: &Outcome) -> Vec<u64> {
        let starts = self.starts.iter().enumerate();
        starts.filter(|(at, _)| outcome.word(self.modes, WORD * at) != 0).map(|(_, start)| *start).collect()
    }
}

/// Where modes with their nodes will be.
pub(crate) struct Policies(Vec<(u64, DataRef, DataRef)>);

impl Policies {
    pub(crate) fn ask(program: &mut Program, track: TrackRef, starts: &[u64]) -> Self {
        let places = starts.iter().map(|start| (*start, program.zeros(WORD), program.zeros(NODES)));
        let places: Vec<_> = places.collect();
        for (start, mode, nodes) in &places {
            get(program, track, *mode, Some(*nodes), *start);
        }
        Self(places)
    }

    /// Mappings of which nothing is said but where they begin and their policy.
    pub(crate) fn tell(&self, outcome: &Outcome) -> Vec<Vma> {
        let vma = |&(start, mode, nodes): &(u64, DataRef, DataRef)| {
            let bytes = outcome.data(nodes);
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            Vma {
                start,
                memory_policy: u32::try_from(outcome.word(mode, 0)).unwrap_or(0),
                memory_policy_nodes: bytes[..used].to_vec(),
                ..Vma::default()
            }
        };
        self.0.iter().map(vma).collect()
    }
}

/// A kernel without policies leaves the answer as it is: none.
fn get(program: &mut Program, track: TrackRef, mode: DataRef, nodes: Option<DataRef>, address: u64) {
    let bits = u64::try_from(NODES * 8 + 1).expect("a small number");
    let (nodes, bits) = nodes.map_or((Value::from(0), 0), |nodes| (nodes.into(), bits));
    let args = [mode.into(), nodes, bits.into(), address.into(), MPOL_F_ADDR.into()];
    program.call(track, Sysno::get_mempolicy, args).accept(Accept::Any);
}
