//! Everything that may go wrong does: the tool's processes are killed at random instants, disks are full, images
//! broken, targets impossible. The program always goes on, and nothing is left behind.

mod births;
mod fifos;
mod files_ahead;
mod hosts;
mod huge;
mod images;
mod inside;
mod interface;
mod ipc;
mod jobs;
mod kernels;
mod linked;
mod members;
mod namespaces;
mod putback;
mod refusals;
mod removed;
mod shots;
mod sockets;
mod storms;
mod strangers;
mod terminals;
mod users;

use crate::report::Report;
use crate::workshop::Workshop;

/// Runs the group.
pub fn run(workshop: &Workshop, report: &mut Report) {
    shots::run(workshop, report);
    storms::run(workshop, report);
    refusals::run(workshop, report);
    strangers::run(workshop, report);
    images::run(workshop, report);
    hosts::run(workshop, report);
    huge::run(workshop, report);
    kernels::run(workshop, report);
    namespaces::run(workshop, report);
    putback::run(workshop, report);
    files_ahead::run(workshop, report);
    users::run(workshop, report);
    removed::run(workshop, report);
    births::run(workshop, report);
    members::run(workshop, report);
    fifos::run(workshop, report);
    sockets::run(workshop, report);
    terminals::run(workshop, report);
    ipc::run(workshop, report);
    linked::run(workshop, report);
    interface::run(workshop, report);
    jobs::run(workshop, report);
    inside::run(workshop, report);
}
