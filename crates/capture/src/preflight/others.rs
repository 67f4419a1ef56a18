//! What ties the tree to processes outside: a debugger would lose what it traces, and what is shared with an outsider comes back as a
//! copy.

use std::cmp::Ordering;

use rewake_linux::kcmp::{self, Shared};
use rewake_linux::proc::{self, Proc};

use crate::findings::Findings;
use crate::kin;

const KINDS: [(Shared, &str); 3] =
    [(Shared::Memory, "memory"), (Shared::Files, "descriptors"), (Shared::Fs, "working directory")];

/// Adds whom the processes of the tree trace, and with whom outside they share what cannot be shared again. `family` are all of them,
/// the root first.
pub(super) fn check(procs: &[Proc], family: &[i32], findings: &mut Findings) {
    let orders = KINDS.map(|(kind, name)| (Order::of(kind, procs), name));
    for other in proc::processes().unwrap_or_default() {
        let tracer = Proc::open(other).and_then(|other| other.status()).map_or(0, |status| status.tracer_pid);
        if tracer != other && family.contains(&tracer) {
            findings.turn_to(tracer);
            let reason = format!("it traces process {other}");
            findings.add(format!("process {tracer}"), reason, "end the tracing first");
        }
        if family.contains(&other) {
            continue;
        }
        let shared = orders.iter().filter_map(|(order, name)| Some((order.find(other)?, *name)));
        let shared: Vec<(i32, &str)> = shared.collect();
        let Some((pid, _)) = shared.first().copied() else { continue };
        // One that ends has no memory, as those of the kernel have none.
        let gone = kin::has_left(pid) || kin::has_left(other) || kin::is_of_the_kernel(other);
        if gone || !kin::is_outsider(family, other) {
            continue;
        }
        let names: Vec<&str> =
            shared.iter().filter(|(with, _)| *with == pid).map(|(_, name)| *name).collect();
        findings.turn_to(pid);
        let reason = format!("it shares its {} with process {other}", names.join(" and its "));
        let remedy = format!("wait until process {other} has ended, or end it");
        findings.add(format!("process {pid}"), reason, remedy);
    }
}

/// Processes in the kernel's order of what they have of a kind, so that each outsider is compared with few of them.
struct Order<'a> {
    kind: Shared,
    procs: Vec<&'a Proc>,
}

impl<'a> Order<'a> {
    fn of(kind: Shared, procs: &'a [Proc]) -> Self {
        let mut ordered: Vec<&Proc> = Vec::with_capacity(procs.len());
        for proc in procs {
            let place = ordered.binary_search_by(|known| order(kind, known.living(), proc.living()));
            // Of those that have the same one is enough.
            if let Err(at) = place {
                ordered.insert(at, proc);
            }
        }
        Self { kind, procs: ordered }
    }

    /// Who has the same as a process. Processes that end meanwhile, and those of others, which we may not ask, do not count.
    fn find(&self, other: i32) -> Option<i32> {
        let place = self.procs.binary_search_by(|proc| order(self.kind, proc.living(), other)).ok()?;
        let proc = self.procs[place];
        kcmp::compare(self.kind, proc.living(), other).is_ok_and(Ordering::is_eq).then(|| proc.id())
    }
}

fn order(kind: Shared, one: i32, other: i32) -> Ordering {
    kcmp::compare(kind, one, other).unwrap_or(Ordering::Less)
}
